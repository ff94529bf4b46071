// Goal: a lane whose path drops larger packets finds a size that passes, ends clearly where none does, and tries larger
// packets again as RFC 8899 has it. Method: two lanes and a path that drops what is longer than a limit.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "tests/unit/transport/lane_pair.h"

namespace godwit::transport {
namespace {

constexpr Instant kBegin{1'000'000'000};
constexpr std::size_t kMessageBytes = 5000;

struct NarrowPath : Pair {
  NarrowPath(std::uint16_t lane_number, std::uint32_t limit, std::uint32_t datagram_bytes = 8972)
      : Pair(lane_number, datagram_bytes), lane(lane_number), bytes_max(limit) {}

  /// `count` more pages, each seventh of them zero; or as many messages.
  void offer(std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i) {
      if (lane == 0) {
        ASSERT_TRUE(a.send_message(Bytes(kMessageBytes)));
      } else {
        user_a.work.push_back({.page = user_a.work.size(), .round = 1, .zero = user_a.work.size() % 7 == 0});
      }
    }
    offered += count;
  }
  [[nodiscard]] bool busy() const { return !a.quiet() || user_a.at < user_a.work.size(); }
  /// Until all is acknowledged, the lane has closed, or time is over.
  void run_until(Instant end) {
    while (busy() && a.fault() == LaneFault::kNone && now < end) {
      while (const std::size_t length = a.poll_transmit(now, out)) {
        ++sent[length];
        if (++sent_count <= shrinks_after || length <= bytes_max) {
          ASSERT_EQ(b.on_packet(now, std::span(out).first(length)), Received::kAccepted);
        }
      }
      pass(b, a);
      const Instant next = std::min(a.deadline(), b.deadline());
      now = std::max(now + microseconds(50), next == kNever ? now : next);
      for (Lane* const end_of_lane : {&a, &b}) {
        if (end_of_lane->deadline() <= now) {
          end_of_lane->tick(now);
        }
      }
    }
  }
  [[nodiscard]] bool all_arrived() const {
    return lane == 0 ? user_b.message_bytes == offered * kMessageBytes : user_a.acknowledged == offered;
  }
  [[nodiscard]] std::uint64_t sent_above(std::size_t bytes) const {
    std::uint64_t count = 0;
    for (const auto& [length, packets] : sent) {
      count += length > bytes ? packets : 0;
    }
    return count;
  }

  const std::uint16_t lane;
  std::size_t bytes_max;
  std::uint64_t shrinks_after = 0, sent_count = 0, offered = 0;
  std::map<std::size_t, std::uint64_t> sent;  // by length
};

TEST(PathMtu, FallsUntilPacketsPass) {
  struct Case {
    std::uint32_t datagram_bytes, limit;
    std::uint64_t falls[2];  // of the priority lane, of a bulk lane
  };
  // The second size is 1452. A page has four parts there already, which pass where messages do not.
  const Case cases[] = {
      {8972, 1472, {1, 1}}, {8972, 1372, {2, 1}}, {8972, 1232, {2, 1}}, {1472, 1300, {1, 1}},
      {1452, 1372, {1, 0}}, {1452, 1232, {1, 0}}, {1300, 1232, {1, 0}}, {1232, 1232, {0, 0}},
  };
  for (const Case& c : cases) {
    for (const std::uint16_t lane : {std::uint16_t{0}, std::uint16_t{1}}) {
      for (const std::uint64_t shrinks_after : {0U, 50U}) {
        SCOPED_TRACE(std::to_string(c.datagram_bytes) + " to " + std::to_string(c.limit) + ", lane " +
                     std::to_string(lane) + " after " + std::to_string(shrinks_after));
        NarrowPath path(lane, c.limit, c.datagram_bytes);
        path.shrinks_after = shrinks_after;
        path.offer(300);
        path.run_until(kBegin + milliseconds(1000));
        EXPECT_FALSE(path.busy());
        EXPECT_TRUE(path.all_arrived());
        EXPECT_EQ(path.a.counters().mtu_black_holes, c.falls[lane]);
        EXPECT_EQ(path.a.fault(), LaneFault::kNone);
      }
    }
  }
}

TEST(PathMtu, EndsClearlyWhereNoSizePasses) {
  for (const std::uint16_t lane : {std::uint16_t{0}, std::uint16_t{1}}) {
    for (const std::uint32_t limit : {1000U, 600U, 150U}) {
      SCOPED_TRACE(std::to_string(lane) + " below " + std::to_string(limit));
      NarrowPath path(lane, limit);
      path.shrinks_after = 50;
      path.offer(300);
      path.run_until(kBegin + milliseconds(10'000));
      EXPECT_EQ(path.a.fault(), LaneFault::kPathTooNarrow);
      EXPECT_NE(to_string(path.a.fault()).find("1280"), std::string_view::npos);
      EXPECT_FALSE(path.a.peer_dead(path.now));  // it answers: the message would be wrong
      // The peer has its timeout from the first sign on.
      EXPECT_GE(path.now, (kBegin + milliseconds(3000)));
      EXPECT_LT(path.now, (kBegin + milliseconds(3500)));
    }
  }
}

/// Long silence of large packets, then one arrives: the path is bad, not too narrow.
TEST(PathMtu, OneLargePacketInTimeIsEnough) {
  NarrowPath path(1, 600, 1232);
  path.offer(2000);
  for (int i = 1; i <= 4; ++i) {
    path.bytes_max = 600;
    path.run_until(kBegin + milliseconds(2500 * i));
    ASSERT_EQ(path.a.fault(), LaneFault::kNone);
    path.bytes_max = 9000;
    const std::uint64_t before = path.user_b.page_bytes;
    while (path.user_b.page_bytes == before) {
      path.run_until(path.now + milliseconds(1));
    }
  }
  path.run_until(path.now + milliseconds(1000));
  EXPECT_TRUE(path.all_arrived());
}

TEST(PathMtu, RisesWhenThePathHasHealed) {
  for (const std::uint16_t lane : {std::uint16_t{0}, std::uint16_t{1}}) {
    SCOPED_TRACE(lane);
    NarrowPath path(lane, 1232);
    path.offer(300);
    path.run_until(kBegin + milliseconds(1000));
    ASSERT_TRUE(path.all_arrived());
    path.bytes_max = 9000;
    // Not at once: a burst of losses may still go on.
    path.sent.clear();
    path.offer(300);
    path.run_until(kBegin + milliseconds(2000));
    EXPECT_EQ(path.sent_above(1452), 0U);
    path.now = path.now + milliseconds(15'000);
    path.sent.clear();
    path.offer(300);
    path.run_until(path.now + milliseconds(1000));
    EXPECT_TRUE(path.all_arrived());
    EXPECT_GT(path.sent_above(8000), 90U);  // the rest of what was offered, after two probes
    EXPECT_LT(path.sent_above(8000), 300U);
    EXPECT_LE(path.a.counters().mtu_black_holes, 2U);  // and none anew
  }
}

TEST(PathMtu, AsksAHoleThreeTimesAndThenSeldom) {
  NarrowPath path(1, 1472);
  path.offer(300);
  path.run_until(kBegin + milliseconds(1000));
  ASSERT_EQ(path.a.counters().mtu_black_holes, 1U);
  path.sent.clear();
  const Instant fallen = path.now;
  std::vector<std::int64_t> asked_at_s;
  std::uint64_t asked = 0;
  for (int second = 0; second < 1300; ++second) {
    path.offer(3);
    path.run_until(path.now + milliseconds(500));
    ASSERT_TRUE(path.all_arrived());
    if (const std::uint64_t all = path.sent_above(1472); all != asked) {
      EXPECT_EQ(all, asked + 1);
      asked = all;
      asked_at_s.push_back(((path.now - fallen).us() + 500'000) / 1'000'000);
    }
    path.now = fallen + milliseconds(1000 * (second + 1));
  }
  const std::vector<std::int64_t> expected = {15, 30, 45, 645, 660, 675, 1275, 1290};
  EXPECT_EQ(asked_at_s, expected);
  EXPECT_EQ(path.a.counters().mtu_black_holes, 1U);
}

}  // namespace
}  // namespace godwit::transport
