// Goal: the edge of a lane: what it refuses, what a refusal leaves untouched, when it is quiet or its peer dead, and
// that it never allocates. The network's faults are in tests/simulation/lane_sim.cpp.

#include "dataplane/transport/lane.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "tests/unit/transport/lane_pair.h"

namespace {
std::size_t allocations = 0;
}

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* const memory = std::malloc(bytes)) {
    return memory;
  }
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace godwit::transport {
namespace {

TEST(Lane, RefusesAndStaysAsItWas) {
  struct Case {
    const char* description;
    std::size_t at;
    std::uint8_t value;
    Received expected;
  };
  const Case cases[] = {
      {"version", 0, 0x16, Received::kWrongVersion},
      {"type", 0, 0x2f, Received::kMalformed},
      {"flag", 1, 0x80, Received::kMalformed},
      {"seal downgraded", 1, wire::kFlagChecksum, Received::kMalformed},
      {"lane", 2, 9, Received::kWrongLane},
      {"flow", 4, 9, Received::kWrongFlow},
      {"number far ahead", 9, 9, Received::kBeyondCredit},
      {"number", 8, 9, Received::kBadTag},
      {"key phase", 1, wire::kFlagKeyPhase, Received::kBadTag},
      {"body", 30, 9, Received::kBadTag},
  };
  Pair pair(0);
  ASSERT_TRUE(pair.a.send_message(Bytes(100)));
  Bytes packet = pair.packet();
  ASSERT_GT(packet.size(), 100U);
  for (const Case& c : cases) {
    SCOPED_TRACE(c.description);
    Bytes bad = packet;
    bad[c.at] = static_cast<std::byte>(c.value);
    EXPECT_EQ(pair.b.on_packet(pair.now, bad), c.expected);
    EXPECT_EQ(pair.b.poll_transmit(pair.now, pair.out), 0U);  // never a reply
    EXPECT_EQ(pair.b.deadline(), kNever);
  }
  for (std::size_t length = 0; length < packet.size(); ++length) {
    Bytes cut(packet.begin(), packet.begin() + static_cast<std::ptrdiff_t>(length));
    EXPECT_NE(pair.b.on_packet(pair.now, cut), Received::kAccepted);
  }
  Bytes huge(20'000);
  EXPECT_EQ(pair.b.on_packet(pair.now, huge), Received::kMalformed);
  EXPECT_EQ(pair.user_b.message_bytes, 0U);
  EXPECT_EQ(pair.b.counters().packets_received, 0U);
  const Bytes sent = packet;  // opening decrypts
  EXPECT_EQ(pair.b.on_packet(pair.now, packet), Received::kAccepted);
  packet = sent;
  EXPECT_EQ(pair.b.on_packet(pair.now, packet), Received::kDuplicate);
  EXPECT_EQ(pair.user_b.message_bytes, 100U);
  // Its own packet, reflected.
  EXPECT_EQ(pair.a.on_packet(pair.now, packet), Received::kWrongFlow);
}

TEST(Lane, PagesAndRunsAtEveryLayout) {
  for (const std::uint32_t bytes : {1232U, 1472U, 4180U, 8972U, 9188U}) {
    Pair pair(1, bytes);
    for (pages::PageNumber page = 0; page < 300; ++page) {
      const bool zero = page % 7 == 0;
      pair.user_a.work.push_back({.page = page * 100, .count = zero ? 50U : 1U, .round = 1, .zero = zero});
    }
    pair.run();
    EXPECT_TRUE(pair.a.quiet());
    EXPECT_EQ(pair.user_a.acknowledged, 300U);
    EXPECT_EQ(pair.user_b.page_bytes, (300U - 43U) * pages::kPageSize);
    EXPECT_EQ(pair.user_b.zero_pages, 43U * 50U);
    EXPECT_EQ(pair.a.counters().pages_sent, 257U);
    EXPECT_EQ(pair.a.counters().pages_retransmitted, 0U);
  }
}

TEST(Lane, QuietAndDead) {
  Pair pair(0);
  EXPECT_TRUE(pair.a.quiet());
  ASSERT_TRUE(pair.a.send_message(Bytes(10)));
  EXPECT_FALSE(pair.a.quiet());
  // Nobody answers: it probes, in ever longer intervals, and then says so.
  std::size_t packets = 0;
  while (!pair.a.peer_dead(pair.now)) {
    while (pair.a.poll_transmit(pair.now, pair.out) > 0) {
      ++packets;
    }
    ASSERT_NE(pair.a.deadline(), kNever);
    pair.now = std::max(pair.now + microseconds(1), pair.a.deadline());
    pair.a.tick(pair.now);
    ASSERT_LT(packets, 100U);
  }
  EXPECT_GE(pair.now, (Instant{1'000'000'000} + milliseconds(3000)));
  EXPECT_GE(pair.a.counters().probe_timeouts, 6U);
  // And recovers when somebody does.
  pair.run();
  EXPECT_TRUE(pair.a.quiet());
  EXPECT_FALSE(pair.a.peer_dead(pair.now));
  EXPECT_EQ(pair.user_b.message_bytes, 10U);
}

TEST(Lane, APeerThatSpeaksButDoesNotReadIsDead) {
  Pair pair(0);
  ASSERT_TRUE(pair.a.send_message(Bytes(10)));
  while (!pair.a.peer_dead(pair.now)) {
    while (pair.a.poll_transmit(pair.now, pair.out) > 0) {
    }
    ASSERT_TRUE(pair.b.send_message(Bytes(10)));
    pair.pass(pair.b, pair.a);
    pair.now = pair.now + milliseconds(10);
    if (pair.a.deadline() <= pair.now) {
      pair.a.tick(pair.now);
    }
    ASSERT_LT(pair.now, (Instant{1'000'000'000} + milliseconds(4000)));
  }
  EXPECT_GE(pair.now, (Instant{1'000'000'000} + milliseconds(3000)));
}

/// A lane that has rested for long, with a lost probe as the last thing it knows, gives its peer the whole timeout.
TEST(Lane, AfterALostProbeAndARestThePeerHasItsTime) {
  Pair pair(1, 1472);
  pair.user_a.work.push_back({.page = 1, .count = 1, .round = 1, .zero = false});
  pair.run();
  pair.user_a.work.push_back({.page = 2, .count = 1, .round = 1, .zero = false});
  std::vector<Bytes> content;
  while (const std::size_t length = pair.a.poll_transmit(pair.now, pair.out)) {
    content.emplace_back(pair.out.begin(), pair.out.begin() + static_cast<std::ptrdiff_t>(length));
  }
  // The content comes late: a bare probe has gone, and is lost.
  pair.now = pair.a.deadline();
  pair.a.tick(pair.now);
  ASSERT_GT(pair.a.poll_transmit(pair.now, pair.out), 0U);
  ASSERT_EQ(pair.a.poll_transmit(pair.now, pair.out), 0U);
  for (Bytes& packet : content) {
    static_cast<void>(pair.b.on_packet(pair.now, packet));
  }
  pair.now = pair.now + microseconds(200);
  pair.b.tick(pair.now);
  pair.run();
  ASSERT_TRUE(pair.a.quiet());
  while (pair.a.deadline() != kNever && pair.a.counters().probe_timeouts < 1) {
    pair.now = std::max(pair.now + microseconds(1), pair.a.deadline());
    pair.a.tick(pair.now);
  }
  ASSERT_EQ(pair.a.counters().probe_timeouts, 1U);
  pair.now = pair.now + milliseconds(60'000);
  pair.user_a.work.push_back({.page = 3, .count = 1, .round = 1, .zero = false});
  const std::uint64_t before = pair.a.counters().probe_timeouts;
  while (pair.a.counters().probe_timeouts < before + 3) {
    while (pair.a.poll_transmit(pair.now, pair.out) > 0) {
    }
    ASSERT_NE(pair.a.deadline(), kNever);
    pair.now = std::max(pair.now + microseconds(1), pair.a.deadline());
    pair.a.tick(pair.now);
    EXPECT_FALSE(pair.a.peer_dead(pair.now));
  }
}

TEST(Lane, OwnPauseIsNotThePeersDeath) {
  Pair pair(0);
  ASSERT_TRUE(pair.a.send_message(Bytes(10)));
  static_cast<void>(pair.packet());
  pair.now = pair.now + milliseconds(60'000);
  EXPECT_FALSE(pair.a.peer_dead(pair.now));
}

TEST(Lane, NeverAllocatesAfterConstruction) {
  Pair pair(0);
  Pair bulk(1);
  for (pages::PageNumber page = 0; page < 5000; ++page) {
    bulk.user_a.work.push_back({.page = page, .round = 1, .zero = page % 3 == 0});
  }
  const Bytes message(50'000);
  const std::size_t before = allocations;
  for (int i = 0; i < 200; ++i) {
    if (!pair.a.send_message(message)) {
      pair.run();
    }
  }
  pair.run();
  bulk.run();
  EXPECT_EQ(allocations, before);
  EXPECT_EQ(bulk.user_a.acknowledged, 5000U);
  EXPECT_TRUE(pair.a.quiet());
}

}  // namespace
}  // namespace godwit::transport
