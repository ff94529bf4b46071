// The parts of post-copy by themselves: what is asked for when, in which order pages stream, what goes out twice, sets
// as messages, and pages put together while a guest looks.

#include <set>

#include "dataplane/transfer/page_requests.h"
#include "dataplane/transfer/page_sets.h"
#include "dataplane/transfer/pull_pages.h"
#include "dataplane/transfer/pull_placer.h"
#include "tests/simulation/paging_model.h"
#include "tests/unit/transfer/fixture.h"

namespace godwit::transfer {
namespace {

constexpr Duration kWait = milliseconds(3);

class PageRequestsTest : public ::testing::Test {
 protected:
  std::optional<wire::DemandRequest> next() {
    wire::DemandRequest out;
    return requests.next(now, kWait, out) ? std::optional(out) : std::nullopt;
  }
  PageRequests requests;
  Instant now{1'000'000};
};

TEST_F(PageRequestsTest, APageIsAskedForOnceAndAgainOnlyWhenItIsLate) {
  EXPECT_TRUE(requests.want(7));
  EXPECT_FALSE(requests.want(7));
  auto first = next();
  ASSERT_TRUE(first);
  EXPECT_FALSE(first->again);
  EXPECT_EQ(first->pages, std::vector<std::uint64_t>{7});
  EXPECT_FALSE(next());
  EXPECT_EQ(requests.deadline(), now + kWait);
  now = now + kWait;
  const auto late = next();
  ASSERT_TRUE(late);
  EXPECT_TRUE(late->again);
  EXPECT_EQ(requests.deadline(), now + kWait * 2) << "the second answer may take longer";
  EXPECT_TRUE(requests.forget(7));
  now = now + kWait * 100;
  EXPECT_FALSE(next());
  EXPECT_TRUE(requests.empty());
}

TEST_F(PageRequestsTest, NewLanesHaveHeardOfNoRequest) {
  requests.want(7);
  requests.want_again(3);
  while (next()) {
  }
  requests.ask_all_anew();
  const auto request = next();
  ASSERT_TRUE(request);
  EXPECT_FALSE(request->again);
  EXPECT_EQ(request->pages, (std::vector<std::uint64_t>{3, 7}));
}

TEST_F(PageRequestsTest, MessagesHoldNoMorePagesThanTheyMay) {
  for (pages::PageNumber page = 0; page < wire::kDemandPagesMax + 1; ++page) {
    requests.want(page);
  }
  EXPECT_EQ(next()->pages.size(), wire::kDemandPagesMax);
  EXPECT_EQ(next()->pages.size(), 1U);
  EXPECT_FALSE(next());
}

pages::Bitmap full(std::uint64_t size) {
  pages::Bitmap set(size);
  set.set_all();
  return set;
}

TEST(PullOrder, EveryOrderNamesEveryPageOnce) {
  for (const auto kind : {PullOrderKind::kSequential, PullOrderKind::kAroundFaults, PullOrderKind::kByRank}) {
    const auto order = make_pull_order(kind, {{500, 100}, {20'000, 5}, {0, 40}, {900, 1000}});
    pages::Bitmap left = full(1000);
    left.clear_range(100, 50);
    for (std::uint64_t blocks = 0; left.any(); ++blocks) {
      ASSERT_LT(blocks, 1000U);
      order->on_fault(blocks * 37 % 1000);
      const PageRun block = order->next_block(left);
      ASSERT_LE(block.first + block.count, left.size());
      ASSERT_LE(block.count, PullOrder::kBlockPages);
      ASSERT_TRUE(left.test(block.first)) << "a block begins with a page that is left";
      left.clear_range(block.first, block.count);
    }
  }
}

TEST(PullOrder, AroundFaultsGrowsOutwardsFromTheLatest) {
  const auto order = make_pull_order(PullOrderKind::kAroundFaults, {});
  pages::Bitmap left = full(100'000);
  order->on_fault(10'000);
  order->on_fault(50'000);
  left.clear(10'000);
  left.clear(50'000);
  for (int i = 0; i < 20; ++i) {
    const PageRun block = order->next_block(left);
    EXPECT_LT(block.first > 50'000 ? block.first - 50'000 : 50'000 - block.first, 20 * PullOrder::kBlockPages);
    left.clear_range(block.first, block.count);
  }
  EXPECT_FALSE(left.test(50'001));
  EXPECT_FALSE(left.test(49'999)) << "to both sides";
}

TEST(PullOrder, ByRankSendsTheHottestFirst) {
  const auto order = make_pull_order(PullOrderKind::kByRank, {{700, 2}, {100, 1}});
  pages::Bitmap left = full(1000);
  for (const pages::PageNumber expected : {700U, 100U, 0U}) {
    const PageRun block = order->next_block(left);
    EXPECT_EQ(block.first, expected);
    left.clear_range(block.first, block.count);
  }
}

class PullPagesTest : public ::testing::Test {
 protected:
  void load(std::uint64_t pages) {
    pages::Bitmap missing(kPages);
    missing.set_range(0, pages);
    pull.load(missing);
    while (auto stretch = pull.take_unsorted(16)) {
      pages::Bitmap zero(kPages);
      if (stretch->test(5)) {
        zero.set(5);
        stretch->clear(5);
      }
      pull.sorted(std::move(*stretch), std::move(zero));
    }
  }
  PullPages pull{kPages, make_pull_order(PullOrderKind::kSequential, {})};
  transport::Work work;
};

TEST_F(PullPagesTest, EveryMissingPageGoesOutOnceAndZeroPagesAsRuns) {
  load(40);
  std::set<pages::PageNumber> seen;
  while (pull.next_background(1, work)) {
    EXPECT_EQ(work.zero, work.page == 5);
    EXPECT_TRUE(seen.insert(work.page).second);
    EXPECT_FALSE(pull.all_sent());
    pull.on_acknowledged(work);
  }
  EXPECT_EQ(seen.size(), 40U);
  EXPECT_TRUE(pull.all_sent());
}

TEST_F(PullPagesTest, WhatIsOnItsWayIsSentTwiceOnlyIfItIsLate) {
  load(2);
  ASSERT_TRUE(pull.next_background(1, work));
  EXPECT_FALSE(pull.ask(work.page, false));
  EXPECT_TRUE(pull.ask(work.page, true));
  EXPECT_FALSE(pull.ask(work.page, true)) << "the priority lane has it";
  transport::Work asked;
  ASSERT_TRUE(pull.next_asked(asked));
  EXPECT_EQ(asked.page, work.page);
  pull.on_acknowledged(work);
  pull.on_acknowledged(asked);
  EXPECT_FALSE(pull.ask(work.page, false)) << "it has arrived";
  EXPECT_TRUE(pull.ask(work.page, true)) << "but could not be placed";
}

TEST_F(PullPagesTest, AnyPageIsGivenAndNoneOfThemTwice) {
  EXPECT_TRUE(pull.ask(63, false)) << "never announced";
  EXPECT_TRUE(pull.ask(1, false)) << "before it is known what is missing";
  load(3);
  EXPECT_EQ(pull.left(), 2U);
  while (pull.next_asked(work)) {
    EXPECT_NE(work.page, 0U);
  }
}

TEST_F(PullPagesTest, OnNewLanesAllBeginsAnew) {
  load(3);
  while (pull.next_background(1, work)) {
  }
  pull.forget_lanes();
  EXPECT_TRUE(pull.all_sent());
  load(3);
  EXPECT_EQ(pull.left(), 3U);
  EXPECT_TRUE(pull.ask(0, false));
}

TEST(PageSets, ComeBackAsTheyWere) {
  pages::Bitmap set(300'000);
  for (pages::PageNumber page = 0; page < set.size(); page += 1 + page % 7) {
    set.set(page);
  }
  std::vector<std::vector<std::byte>> messages;
  encode_page_set(set, 3, wire::PageSet::kZero, 0, messages);
  PageSetPieces pieces(set.size());
  for (const auto& message : messages) {
    EXPECT_FALSE(pieces.complete());
    EXPECT_EQ(pieces.add(std::get<wire::PageSetPiece>(*wire::decode_message(message))), "");
  }
  ASSERT_TRUE(pieces.complete());
  const auto back = decode_page_set(pieces.take(), set.size());
  ASSERT_TRUE(back) << back.error();
  EXPECT_EQ(*back, set);
  EXPECT_TRUE(pieces.idle());
}

TEST(PageSets, AnotherSetInBetweenIsRefusedAndSoIsOneOfAnotherGuest) {
  const std::vector<std::byte> bytes(3, std::byte{1});
  PageSetPieces pieces(kPages);
  EXPECT_EQ(pieces.add({.round = 1, .kind = wire::PageSet::kMissing, .last = false, .bytes = bytes}), "");
  EXPECT_NE(pieces.add({.round = 2, .kind = wire::PageSet::kMissing, .last = true, .bytes = bytes}), "");
  EXPECT_NE(pieces.add({.round = 1, .kind = wire::PageSet::kZero, .last = true, .bytes = bytes}), "");
  std::vector<std::vector<std::byte>> messages;
  encode_page_set(pages::Bitmap(kPages), 1, wire::PageSet::kMissing, 0, messages);
  pieces.clear();
  EXPECT_EQ(pieces.add(std::get<wire::PageSetPiece>(*wire::decode_message(messages[0]))), "");
  EXPECT_FALSE(decode_page_set(pieces.take(), kPages + 64));
}

TEST(PageSets, NobodyFillsMemoryWithPieces) {
  const std::vector<std::byte> bytes(60'000, std::byte{1});
  PageSetPieces pieces(kPages);
  std::string wrong;
  for (int i = 0; i < 100 && wrong.empty(); ++i) {
    wrong = pieces.add({.round = 1, .kind = wire::PageSet::kMissing, .last = false, .bytes = bytes});
  }
  EXPECT_NE(wrong, "");
}

class PullPlacerTest : public ::testing::Test {
 protected:
  void arm() {
    pages::Bitmap missing(kPages);
    missing.set_range(0, 10);
    ASSERT_TRUE(paging.arm(missing));
    gate.want_hashes();
    gate.open(kPullRound);
  }
  simulation::ModelMemory memory{kPages};
  simulation::Random random{1};
  simulation::Verdict verdict;
  simulation::PagingModel paging{memory, random, verdict};
  RoundGate gate;
  PullPlacer placer{&paging, 0, kPages, gate};
  std::vector<std::byte> page = std::vector<std::byte>(pages::kPageSize, std::byte{7});
};

TEST_F(PullPlacerTest, AGuestNeverSeesHalfAPage) {
  arm();
  for (std::uint32_t offset = 0; offset < pages::kPageSize; offset += 1024) {
    EXPECT_TRUE(paging.missing(3));
    placer.on_page(3, offset, std::span(page).subspan(offset, 1024));
    placer.place();
  }
  EXPECT_FALSE(paging.missing(3));
  ASSERT_EQ(placer.placed().size(), 1U);
  EXPECT_EQ(placer.placed()[0].digest,
            pages::digest_term(3, pages::hash_page(std::span(page).first<pages::kPageSize>())));
  EXPECT_EQ(memory.page(3)[4095], std::byte{7});
}

TEST_F(PullPlacerTest, ASecondCopyChangesNothing) {
  arm();
  placer.on_page(3, 0, page);
  placer.place();
  memory.fill(3, std::byte{9});
  placer.placed().clear();
  placer.on_page(3, 0, page);
  placer.on_page(40, 0, page);  // never was missing
  placer.on_zero_run(2, 4);
  placer.place();
  EXPECT_EQ(memory.page(3)[0], std::byte{9});
  ASSERT_EQ(placer.placed().size(), 2U);
  EXPECT_EQ(placer.placed()[0].first, 2U);
  EXPECT_EQ(placer.placed()[1].first, 4U);
  EXPECT_FALSE(placer.error());
}

TEST_F(PullPlacerTest, BeforeItIsArmedAPageIsAnErrorAndAfterTheEndNothing) {
  gate.begin(2);
  placer.on_page(3, 0, page);
  ASSERT_TRUE(placer.error());
  EXPECT_EQ(placer.error()->failure, Failure::kPeerProtocol);
  placer.forget_lanes();
  gate.close();
  placer.on_page(3, 0, page);
  placer.place();
  EXPECT_FALSE(placer.error());
  EXPECT_TRUE(placer.placed().empty());
}

TEST_F(PullPlacerTest, APeerThatNamesPagesBeyondTheGuestIsRefused) {
  arm();
  placer.on_zero_run(kPages - 1, 2);
  EXPECT_TRUE(placer.error());
}

}  // namespace
}  // namespace godwit::transfer
