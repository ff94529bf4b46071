// Goal: pages on the priority lane: in which order they leave beside messages, what bounds each, and that neither waits
// for the other. The network's faults are in tests/simulation/lane_sim.cpp.

#include <gtest/gtest.h>

#include "dataplane/transport/page_layout.h"
#include "tests/unit/transport/lane_pair.h"

namespace godwit::transport {
namespace {

constexpr std::uint32_t kOnePageBytes = 4180;  // a packet has one whole page

void demand(User& user, pages::PageNumber count) {
  for (pages::PageNumber i = 0; i < count; ++i) {
    user.work.push_back({.page = user.work.size(), .round = 1});
  }
}

wire::PacketType type_of(const Bytes& packet) {
  Bytes copy = packet;
  return wire::parse_packet(copy)->header.type;
}

std::vector<Bytes> all_packets(Pair& pair) {
  std::vector<Bytes> packets;
  for (Bytes packet = pair.packet(); !packet.empty(); packet = pair.packet()) {
    packets.push_back(std::move(packet));
  }
  return packets;
}

std::string kinds(const std::vector<Bytes>& packets) {
  std::string text;
  for (const Bytes& packet : packets) {
    text += type_of(packet) == wire::PacketType::kPages     ? 'p'
            : type_of(packet) == wire::PacketType::kMessage ? 'm'
                                                            : '?';
  }
  return text;
}

TEST(PriorityPages, PagesRunsAndMessagesAtEveryLayout) {
  for (const std::uint32_t bytes : {1232U, 1472U, kOnePageBytes, 8972U, 9188U}) {
    SCOPED_TRACE(bytes);
    Pair pair(kPriorityLane, bytes);
    for (pages::PageNumber page = 0; page < 300; ++page) {
      const bool zero = page % 7 == 0;
      pair.user_a.work.push_back({.page = page * 100, .count = zero ? 50U : 1U, .round = 1, .zero = zero});
    }
    std::size_t message_bytes = 0;
    for (std::size_t i = 0; i < 30; ++i) {
      message_bytes += i * 1000;
      ASSERT_TRUE(pair.a.send_message(Bytes(i * 1000)));
      ASSERT_TRUE(pair.b.send_message(Bytes(10)));
    }
    pair.run();
    EXPECT_TRUE(pair.a.quiet());
    EXPECT_EQ(pair.user_a.acknowledged, 300U);
    EXPECT_EQ(pair.user_b.page_bytes, (300U - 43U) * pages::kPageSize);
    EXPECT_EQ(pair.user_b.zero_pages, 43U * 50U);
    EXPECT_EQ(pair.user_b.message_bytes, message_bytes);
    EXPECT_EQ(pair.user_b.lanes, 1U << kPriorityLane);
    EXPECT_EQ(pair.user_a.message_bytes, 300U);
  }
}

TEST(PriorityPages, PagesGoFirstAndMessagesHaveTheirTurn) {
  Pair pair(kPriorityLane, kOnePageBytes);
  demand(pair.user_a, 10);
  ASSERT_TRUE(pair.a.send_message(Bytes(20'000)));
  EXPECT_EQ(kinds(all_packets(pair)), "ppppmppppmppmmm");
  // A message that comes after many pages is the next but none.
  pair.run();
  demand(pair.user_a, 10);
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(type_of(pair.packet()), wire::PacketType::kPages);
  }
  ASSERT_TRUE(pair.a.send_message(Bytes(1)));
  EXPECT_EQ(kinds(all_packets(pair)), "mpp");
}

TEST(PriorityPages, WhatIsLostGoesFirst) {
  Pair pair(kPriorityLane, kOnePageBytes);
  demand(pair.user_a, 1);
  ASSERT_TRUE(pair.a.send_message(Bytes(10'000)));
  std::vector<Bytes> packets = all_packets(pair);
  ASSERT_EQ(kinds(packets), "pmmm");
  demand(pair.user_a, 20);
  ASSERT_TRUE(pair.a.send_message(Bytes(10'000)));
  for (const Bytes& packet : all_packets(pair)) {
    Bytes copy = packet;
    EXPECT_EQ(pair.b.on_packet(pair.now, copy), Received::kAccepted);
  }
  // The first four are lost: the peer has only later ones.
  demand(pair.user_a, 1);
  ASSERT_TRUE(pair.a.send_message(Bytes(1)));
  pair.pass(pair.b, pair.a);
  EXPECT_EQ(kinds(all_packets(pair)), "pmmmpm");
  EXPECT_EQ(pair.a.counters().pages_retransmitted, 1U);
}

TEST(PriorityPages, NeitherWaitsForTheOthersLoss) {
  for (const wire::PacketType lost : {wire::PacketType::kPages, wire::PacketType::kMessage}) {
    Pair pair(kPriorityLane, kOnePageBytes);
    demand(pair.user_a, 3);
    ASSERT_TRUE(pair.a.send_message(Bytes(5000)));
    for (Bytes& packet : all_packets(pair)) {
      if (type_of(packet) != lost) {
        EXPECT_EQ(pair.b.on_packet(pair.now, packet), Received::kAccepted);
      }
    }
    EXPECT_EQ(pair.user_b.page_bytes, lost == wire::PacketType::kPages ? 0 : 3 * pages::kPageSize);
    EXPECT_EQ(pair.user_b.message_bytes, lost == wire::PacketType::kPages ? 5000U : 0U);
  }
}

TEST(PriorityPages, TheWindowHoldsBackMessagesOnly) {
  Pair pair(kPriorityLane, kOnePageBytes);
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(pair.a.send_message(Bytes(60'000)));
  }
  EXPECT_EQ(all_packets(pair).size(), pair.a.congestion_window_packets());
  demand(pair.user_a, 20);
  EXPECT_EQ(kinds(all_packets(pair)), std::string(20, 'p'));
  EXPECT_EQ(pair.a.in_flight_packets(), pair.a.congestion_window_packets() + 20) << "pages count in it";
}

TEST(PriorityPages, AFullWindowOfPagesLeavesOnePacketForMessages) {
  Pair pair(kPriorityLane, kOnePageBytes);
  pair.run();
  demand(pair.user_a, 100);
  const std::uint32_t window = pair.a.congestion_window_packets();
  for (std::uint32_t i = 0; i < window + 2; ++i) {
    EXPECT_EQ(type_of(pair.packet()), wire::PacketType::kPages);
  }
  ASSERT_TRUE(pair.a.send_message(Bytes(20'000)));
  const std::string rest = kinds(all_packets(pair));
  EXPECT_EQ(std::ranges::count(rest, 'm'), 1);
  EXPECT_EQ(rest.front(), 'm');
}

TEST(PriorityPages, NoMoreThanABurstInHand) {
  Pair pair(kPriorityLane);
  demand(pair.user_a, 100);
  static_cast<void>(all_packets(pair));
  EXPECT_EQ(pair.user_a.at, kPriorityWorksMax);
}

/// Pages that cannot be split are sent again in parts where the path drops large packets.
TEST(PriorityPages, InAnMtuBlackHole) {
  Pair pair(kPriorityLane);
  demand(pair.user_a, 100);
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(pair.a.send_message(Bytes(5000)));
  }
  for (int i = 0; i < 2000 && !pair.a.quiet(); ++i) {
    while (const std::size_t length = pair.a.poll_transmit(pair.now, pair.out)) {
      if (length <= 1472) {
        pair.b.on_packet(pair.now, std::span(pair.out).first(length));
      }
    }
    pair.pass(pair.b, pair.a);
    const Instant next = std::min(pair.a.deadline(), pair.b.deadline());
    pair.now = std::max(pair.now + microseconds(50), next == kNever ? pair.now : next);
    for (Lane* const end : {&pair.a, &pair.b}) {
      if (end->deadline() <= pair.now) {
        end->tick(pair.now);
      }
    }
  }
  EXPECT_TRUE(pair.a.quiet());
  EXPECT_EQ(pair.a.counters().mtu_black_holes, 1U);
  EXPECT_EQ(pair.user_b.message_bytes, 20U * 5000);
  EXPECT_EQ(pair.user_a.acknowledged, 100U);
  EXPECT_EQ(pair.user_b.page_bytes, 100 * pages::kPageSize);
}

}  // namespace
}  // namespace godwit::transport
