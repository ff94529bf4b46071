// Source: what is likely to be written again goes a round later, and is never forgotten.

#include <algorithm>

#include "tests/unit/transfer/source_fixture.h"

namespace godwit::transfer {
namespace {

/// Rounds of a guest that never writes little enough.
class OrderTest : public SourceTest {
 protected:
  /// Round 1 of the first `pages`, over; the first scan after it finds these written.
  void begin(const std::vector<pages::PageNumber>& written, const pages::AccessHistory* accesses = nullptr) {
    for (pages::PageNumber page = 0; page < 8; ++page) {
      s.memory.fill(page, std::byte{1});
    }
    source.emplace(make_config(), Policy{.downtime_limit = microseconds(1)},
                   SourceGuest{s.memory, table, kVisit, accesses}, s.executor, s.events);
    source->start(s.now, s.lanes);
    s.settle(*source);
    answer_hello();
    acknowledge_round(1);
    EXPECT_EQ(round(written).size(), 8U);
  }
  /// What the open round sends; meanwhile these are written, as the next scan finds.
  std::vector<pages::PageNumber> round(const std::vector<pages::PageNumber>& written) {
    const auto works = take(false);
    for (const pages::PageNumber page : written) {
      s.memory.fill(page, std::byte{++content_});
    }
    acknowledge(works);
    advance(milliseconds(100));
    acknowledge_next();
    std::vector<pages::PageNumber> sent;
    for (const Work& work : works) {
      sent.push_back(work.page);
    }
    std::ranges::sort(sent);
    return sent;
  }
  void acknowledge_next() {
    if (const auto begin = s.find<wire::RoundBegin>(s.sent())) {
      acknowledge_round(begin->round);
    }
  }
  using Pages = std::vector<pages::PageNumber>;
  std::uint8_t content_ = 1;
};

TEST_F(OrderTest, WhatTwoScansRunningHaveFoundGoesARoundLater) {
  begin({0, 1, 2, 3});
  EXPECT_EQ(round({2, 3, 5}), (Pages{0, 1, 2, 3}));
  EXPECT_EQ(round({}), (Pages{5}));
  EXPECT_EQ(round({6}), (Pages{2, 3}));
  EXPECT_EQ(round({}), (Pages{6}));
}

TEST_F(OrderTest, NoPageWaitsTwice) {
  begin({0, 1});
  EXPECT_EQ(round({0, 1, 5}), (Pages{0, 1}));
  EXPECT_EQ(round({0, 1, 6}), (Pages{5}));
  EXPECT_EQ(round({0, 1, 7}), (Pages{0, 1, 6}));
  EXPECT_EQ(round({}), (Pages{7}));
}

TEST_F(OrderTest, WhatHistoryKnowsAsWrittenOftenWaitsFromTheFirstScanOn) {
  pages::AccessHistory accesses(kPages);
  for (unsigned scan = 0; scan < pages::AccessHistory::kScans; ++scan) {
    accesses.note(1);
    if (scan % 3 == 0) {
      accesses.note(2);
    }
    accesses.end_scan();
  }
  begin({1, 2, 3}, &accesses);
  EXPECT_EQ(round({}), (Pages{2, 3}));
  EXPECT_EQ(round({}), (Pages{1}));
}

TEST_F(OrderTest, WhatWaitsIsSentBeforeTheEnd) {
  begin({0, 1});
  EXPECT_EQ(round({0, 1, 5}), (Pages{0, 1}));
  const auto cold = take(false);
  EXPECT_EQ(cold.size(), 1U);
  source->guest_stopped(s.now);
  source->device_state_end(s.now);
  acknowledge(cold);
  Pages sent;
  bool ended = false;
  for (int i = 0; i < 4 && !ended; ++i) {
    const auto messages = s.sent();
    if (const auto begin = s.find<wire::RoundBegin>(messages)) {
      acknowledge_round(begin->round);
    }
    for (const Work& work : take(false)) {
      sent.push_back(work.page);
    }
    s.settle(*source);
    ended = s.find<wire::AllPlaced>(messages).has_value();
  }
  EXPECT_TRUE(ended);
  EXPECT_EQ(sent, (Pages{0, 1}));
}

}  // namespace
}  // namespace godwit::transfer
