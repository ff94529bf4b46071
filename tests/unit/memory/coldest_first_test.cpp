// Goal: the pages leave first whose next access is farthest, as scans and what comes back tell. Method: a guest of a
// few hundred pages whose accesses are given, asked as the evictor asks.

#include "dataplane/memory/coldest_first.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace godwit::memory::test {
namespace {

constexpr std::uint64_t kPages = 1000;

class ColdestFirstTest : public testing::Test {
 protected:
  ColdestFirstTest() { here_.set_all(); }

  /// A scan that finds these.
  void scan(pages::PageNumber first, std::uint64_t count) {
    pages::Bitmap accessed(kPages);
    accessed.set_range(first, count);
    policy_.end_scan(accessed);
  }
  std::vector<pages::PageNumber> evict(std::uint64_t count) {
    std::vector<pages::PageNumber> out;
    while (out.size() < count) {
      const std::size_t before = out.size();
      policy_.choose(looked_up_, count - out.size(), out);
      if (out.size() == before) {
        looked_up_ = here_;
        policy_.choose(looked_up_, count - out.size(), out);
      }
      if (out.size() == before) {
        break;
      }
      for (std::size_t i = before; i < out.size(); ++i) {
        EXPECT_TRUE(here_.test(out[i])) << out[i] << " is not here";
        here_.clear(out[i]);
        looked_up_.clear(out[i]);
      }
    }
    return out;
  }
  void come_back(pages::PageNumber page) {
    here_.set(page);
    policy_.note_placed(page);
  }

  ColdestFirst policy_{kPages};
  pages::Bitmap here_{kPages}, looked_up_{kPages};
};

TEST_F(ColdestFirstTest, AllLeaveOnceAndNothingIsLeft) {
  const auto out = evict(kPages + 1);
  EXPECT_EQ(std::set(out.begin(), out.end()).size(), kPages);
  EXPECT_EQ(out.size(), kPages);
}

TEST_F(ColdestFirstTest, WhatNoScanFoundGoesFirst) {
  evict(1);
  scan(0, 300);
  scan(0, 300);
  const auto out = evict(19);
  EXPECT_TRUE(std::ranges::all_of(out, [](pages::PageNumber page) { return page >= 300; }));
}

TEST_F(ColdestFirstTest, WhatScansFoundBeforeItBeganCounts) {
  pages::AccessHistory history(kPages);
  policy_.learn(history);  // of no scan: nothing
  for (const std::uint64_t first : {0U, 0U, 300U}) {
    pages::Bitmap accessed(kPages);
    accessed.set_range(first, 300);
    history.note(accessed);
    history.end_scan();
  }
  policy_.learn(history);
  const auto out = evict(kPages);
  ASSERT_EQ(out.size(), kPages);
  const auto all_in = [](auto begin, auto end, pages::PageNumber first, pages::PageNumber last) {
    return std::all_of(begin, end, [&](pages::PageNumber page) { return page >= first && page < last; });
  };
  EXPECT_TRUE(all_in(out.begin(), out.begin() + 400, 600U, kPages)) << "in no scan";
  EXPECT_TRUE(all_in(out.begin() + 400, out.begin() + 680, 0U, 300U)) << "not in the last; but for what reuse chose";
}

TEST_F(ColdestFirstTest, WhatJustCameBackStays) {
  auto out = evict(100);
  for (const pages::PageNumber page : out) {
    come_back(page);
  }
  const auto then = evict(100);
  const std::set<pages::PageNumber> back(out.begin(), out.end());
  EXPECT_TRUE(std::ranges::none_of(then, [&](pages::PageNumber page) { return back.contains(page); }));
}

TEST_F(ColdestFirstTest, WhatIsTouchedForTheFirstTimeStays) {
  here_.clear_range(0, 20);
  evict(20);
  scan(20, 280);  // 300 and on are cold
  scan(20, 280);
  here_.set_range(0, 20);
  for (const pages::PageNumber page : evict(10)) {
    EXPECT_GE(page, 300U);
  }
}

TEST_F(ColdestFirstTest, ToComeBackIsToBeAccessed) {
  const auto out = evict(10);
  scan(0, kPages);
  scan(0, kPages);
  for (const pages::PageNumber page : out) {
    come_back(page);
  }
  scan(0, 0);
  const std::set<pages::PageNumber> back(out.begin(), out.end());
  for (const pages::PageNumber page : evict(200)) {
    EXPECT_FALSE(back.contains(page)) << page;
  }
}

// A hundred are accessed in each eighth scan, the others by turns, a part of them in each. Recency alone lets the
// hundred go each time: it has to be learnt that those come back sooner.
TEST_F(ColdestFirstTest, AReadThroughMoreThanFitsLeavesWhatIsUsedOftener) {
  constexpr std::uint64_t kHot = 100, kPart = 22, kParts = 40, kRoom = 200, kRounds = 1600;
  std::uint64_t hot_back = 0;
  for (std::uint64_t round = 0; round < kRounds; ++round) {
    pages::Bitmap accessed(kPages);
    accessed.set_range(kHot + round % kParts * kPart, kPart);
    accessed.set_range(0, round % 8 == 0 ? kHot : 0);
    for (pages::PageNumber page = accessed.next_set(0); page < kPages; page = accessed.next_set(page + 1)) {
      if (!here_.test(page)) {
        hot_back += round >= kRounds / 2 && page < kHot ? 1U : 0U;
        come_back(page);
      }
    }
    policy_.end_scan(accessed);
    if (const std::uint64_t count = here_.count(); count > kRoom) {
      evict(count - kRoom);
    }
  }
  EXPECT_LE(hot_back, kRounds / 2 / 8 * kHot / 4) << "more than a quarter of what fits";
}

// Phases: what was used before never is again, however often it was.
TEST_F(ColdestFirstTest, WhatWasUsedOftenAndIsNoMoreLeaves) {
  here_.clear_range(320, kPages - 320);
  evict(1);
  for (int round = 0; round < 50; ++round) {
    scan(0, 160);
  }
  for (int round = 0; round < 10; ++round) {
    scan(160, 160);
  }
  std::uint64_t old = 0;
  for (const pages::PageNumber page : evict(100)) {
    old += page < 160 ? 1U : 0U;
  }
  EXPECT_GE(old, 99U);
}

}  // namespace
}  // namespace godwit::memory::test
