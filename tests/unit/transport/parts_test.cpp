// Goal: each part of a lane by itself: replay window, ack ranges, range set, credit, page layout, work table.
// Sets are compared with std::set through random operations.

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

#include "dataplane/transport/ack_ranges.h"
#include "dataplane/transport/credit.h"
#include "dataplane/transport/page_layout.h"
#include "dataplane/transport/range_set.h"
#include "dataplane/transport/replay_window.h"
#include "dataplane/transport/work_table.h"

namespace godwit::transport {
namespace {

using Verdict = ReplayWindow::Verdict;

TEST(ReplayWindow, AgreesWithASet) {
  for (const std::uint64_t spread : {8U, 200U, 3000U, 100'000U}) {
    std::mt19937_64 random(spread);
    ReplayWindow window;
    std::set<std::uint64_t> seen;
    std::uint64_t at = 0;
    for (int i = 0; i < 50'000; ++i) {
      at += random() % 3;
      const std::uint64_t back = random() % spread;
      const std::uint64_t number = at > back ? at - back : at + (random() % 50 == 0 ? spread : 0);
      const Verdict verdict = window.check(number);
      if (seen.contains(number)) {
        ASSERT_NE(verdict, Verdict::kNew);
      } else if (seen.empty() || number + ReplayWindow::kPacketsMin > *seen.rbegin()) {
        ASSERT_EQ(verdict, Verdict::kNew) << number << " of " << *seen.rbegin();
      }
      if (verdict == Verdict::kNew) {
        window.set(number);
        seen.insert(number);
        ASSERT_EQ(window.largest(), *seen.rbegin());
        at = std::max(at, number);
      }
    }
  }
}

TEST(AckRanges, FloorAndWordsAgreeWithASet) {
  std::mt19937_64 random(3);
  for (int run = 0; run < 50; ++run) {
    AckRanges acks(AckPolicy::kDelayed);
    std::set<std::uint64_t> seen;
    std::uint64_t given_up = 0;
    for (std::uint64_t i = 0; i < 600; ++i) {
      const std::uint64_t number = i + random() % 40;
      if (acks.window().check(number) != Verdict::kNew) {
        continue;
      }
      acks.on_received({}, number, true, false);
      seen.insert(number);
      if (random() % 50 == 0) {
        given_up = random() % (number + 1);
        acks.raise_floor(given_up);
      }
      const wire::AckBlock ack = acks.build({}, *seen.rbegin());
      ASSERT_EQ(ack.largest, *seen.rbegin());
      ASSERT_GE(ack.floor, given_up);
      ASSERT_LE(ack.floor, ack.largest + 1);
      ASSERT_FALSE(seen.contains(ack.floor));
      for (std::uint64_t w = 0; w < ack.word_count; ++w) {
        const std::uint64_t first = (ack.largest / 64 - w) * 64;
        for (std::uint64_t bit = 0; bit < 64; ++bit) {
          ASSERT_EQ((ack.words[w] >> bit & 1) != 0, seen.contains(first + bit));
        }
      }
    }
  }
}

TEST(AckRanges, Policy) {
  const Instant start{1000};
  struct Case {
    const char* description;
    AckPolicy policy;
    std::vector<std::uint64_t> numbers;
    bool eliciting, ask;
    Duration later;
    bool due;
  };
  const Case cases[] = {
      {"one waits", AckPolicy::kDelayed, {0}, true, false, {0}, false},
      {"one after the delay", AckPolicy::kDelayed, {0}, true, false, kAckDelayMax, true},
      {"seven wait", AckPolicy::kDelayed, {0, 1, 2, 3, 4, 5, 6}, true, false, {0}, false},
      {"eight do not", AckPolicy::kDelayed, {0, 1, 2, 3, 4, 5, 6, 7}, true, false, {0}, true},
      {"gap", AckPolicy::kDelayed, {0, 2}, true, false, {0}, true},
      {"asked", AckPolicy::kDelayed, {0}, true, true, {0}, true},
      {"priority lane", AckPolicy::kImmediate, {0}, true, false, {0}, true},
      {"an acknowledgement is not acknowledged", AckPolicy::kImmediate, {0, 5}, false, false, milliseconds(10), false},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.description);
    AckRanges acks(c.policy);
    for (const std::uint64_t number : c.numbers) {
      acks.on_received(start, number, c.eliciting, c.ask);
    }
    EXPECT_EQ(acks.due(start + c.later), c.due);
    if (c.due) {
      EXPECT_LE(acks.deadline(), start + c.later);
      EXPECT_EQ(acks.build(start + c.later, 100).ack_delay_us, c.later.us());
      EXPECT_FALSE(acks.due(start + milliseconds(100)));
    }
  }
}

TEST(AckRanges, ThePeerIsToldOfAPauseOfOurs) {
  AckRanges acks(AckPolicy::kDelayed);
  const Instant now{1'000'000'000};
  acks.on_received(now, 0, true, true, milliseconds(3));
  EXPECT_EQ(acks.build(now + microseconds(20), 100).ack_delay_us, 3020U);
  EXPECT_EQ(acks.deadline(), kNever);
  acks.on_received(now, 1, true, false, milliseconds(3));
  EXPECT_EQ(acks.deadline(), now + kAckDelayMax) << "and it does not wait less for that";
}

TEST(RangeSet, AgreesWithASet) {
  std::mt19937_64 random(5);
  for (int run = 0; run < 200; ++run) {
    RangeSet ranges(64);
    std::set<std::uint64_t> model;
    for (int i = 0; i < 100; ++i) {
      const std::uint64_t begin = random() % 300;
      const std::uint64_t end = begin + 1 + random() % 12;
      ASSERT_TRUE(ranges.insert(begin, end));
      for (std::uint64_t at = begin; at < end; ++at) {
        model.insert(at);
      }
      for (std::uint64_t at = 0; at < 320; ++at) {
        ASSERT_EQ(ranges.contains(at), model.contains(at)) << at;
      }
      ASSERT_FALSE(model.contains(ranges.floor()));
    }
  }
}

TEST(RangeSet, FullSetRefusesAndStays) {
  RangeSet ranges(2);
  EXPECT_TRUE(ranges.insert(10, 11));
  EXPECT_TRUE(ranges.insert(20, 21));
  EXPECT_FALSE(ranges.insert(30, 31));
  EXPECT_FALSE(ranges.contains(30));
  EXPECT_TRUE(ranges.insert(11, 20));  // joins two
  EXPECT_EQ(ranges.range_count(), 1U);
  EXPECT_TRUE(ranges.insert(0, 10));
  EXPECT_EQ(ranges.floor(), 21U);
}

TEST(Credit, EdgeNeverGoesBackAndSlackIsLimited) {
  CreditUse use;
  EXPECT_TRUE(use.allows(kCreditPacketsInitial - 1));
  EXPECT_FALSE(use.allows(kCreditPacketsInitial));
  use.on_edge(500);
  use.on_edge(400);
  EXPECT_TRUE(use.allows(500));
  EXPECT_FALSE(use.allows(501));
  const CreditGrant grant(100);
  EXPECT_TRUE(grant.allows(true, 1000, 1100 + kCreditSlack));
  EXPECT_FALSE(grant.allows(true, 1000, 1101 + kCreditSlack));
  EXPECT_FALSE(grant.allows(false, 0, kCreditPacketsInitial + kCreditSlack));
  EXPECT_EQ(CreditGrant(1).edge(0), kCreditPacketsInitial);
  EXPECT_EQ(CreditGrant(1U << 30).edge(0), kCreditPacketsMax);
}

TEST(PageLayout, EveryMtu) {
  struct Case {
    std::size_t datagram_bytes;
    std::uint32_t pages, parts, part_bytes;
  };
  for (const Case& c : {Case{1472, 1, 3, 1408}, Case{1452, 1, 4, 1024}, Case{4160, 1, 1, 4096}, Case{4159, 1, 2, 2048},
                        Case{8280, 2, 1, 4096}, Case{8279, 1, 1, 4096}, Case{8972, 2, 1, 4096}}) {
    const PageLayout layout = page_layout(c.datagram_bytes);
    EXPECT_EQ(layout.pages_per_packet, c.pages) << c.datagram_bytes;
    EXPECT_EQ(layout.parts_per_page, c.parts) << c.datagram_bytes;
    EXPECT_EQ(layout.part_bytes, c.part_bytes) << c.datagram_bytes;
  }
  EXPECT_EQ(page_layout(1472).packet_bytes, 1472U);  // an IP packet of exactly 1500 bytes
  EXPECT_EQ(page_layout(8972).packet_bytes + 28, 8308U);
  for (std::size_t bytes = wire::kDatagramBytesMinimum; bytes <= wire::kDatagramBytesMaximum; ++bytes) {
    const PageLayout layout = page_layout(bytes);
    ASSERT_LE(layout.packet_bytes, bytes);
    std::size_t total = 0;
    for (std::uint32_t part = 0; part < layout.parts_per_page; ++part) {
      ASSERT_EQ(layout.offset(part), total);
      ASSERT_GT(layout.length(part), 0U);
      total += layout.length(part);
    }
    ASSERT_EQ(total, pages::kPageSize) << bytes;
  }
}

constexpr std::uint32_t kSlots = 100;

TEST(WorkTable, APartIsInOnePlace) {
  WorkTable table(kSlots);
  Work done;
  table.next() = {.page = 7, .round = 1};
  table.add(0b111);
  const std::uint32_t slot = table.front();
  EXPECT_EQ(table.send_part(), 0b001);
  EXPECT_EQ(table.send_part(), 0b010);
  table.on_lost(slot, 0b001);
  EXPECT_EQ(table.send_part(), 0b001);
  EXPECT_EQ(table.send_part(), 0b100);
  EXPECT_EQ(table.front(), kNoSlot);
  EXPECT_FALSE(table.on_acknowledged(slot, 0b110, done));
  table.on_lost(slot, 0b001);
  EXPECT_EQ(table.front(), slot);
  EXPECT_EQ(table.send_part(), 0b001);
  EXPECT_TRUE(table.on_acknowledged(slot, 0b001, done));
  EXPECT_EQ(done.page, 7U);
  EXPECT_TRUE(table.empty());
}

TEST(WorkTable, FullAndReused) {
  WorkTable table(kSlots);
  for (std::uint32_t i = 0; i < kSlots; ++i) {
    ASSERT_FALSE(table.full());
    table.next().page = i;
    table.add(1);
  }
  EXPECT_TRUE(table.full());
  Work done;
  for (std::uint32_t i = 0; i < kSlots; ++i) {
    const std::uint32_t slot = table.front();
    table.send_part();
    ASSERT_TRUE(table.on_acknowledged(slot, 1, done));
    ASSERT_EQ(done.page, i);  // in order
  }
  EXPECT_TRUE(table.empty());
}

}  // namespace
}  // namespace godwit::transport
