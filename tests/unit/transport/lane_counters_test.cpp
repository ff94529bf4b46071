// Goal: what a lane counts, where, and how it says that it stands.

#include <gtest/gtest.h>

#include <array>

#include "tests/unit/transport/lane_pair.h"

namespace godwit::transport {
namespace {

TEST(Lane, CountsWhereItIsToldAndShowsHowItStands) {
  User user;
  Instant now{1'000'000'000};
  LaneConfig settings = config(true, 0);
  LaneCounters counters;
  settings.counters = &counters;
  std::array<std::byte, 8972> out{};
  {
    Lane lane(settings, user, now);
    EXPECT_EQ(&lane.counters(), &counters);
    EXPECT_EQ(counters.credit_left_packets, 64U);
    EXPECT_EQ(counters.stream_backlog_bytes, 0U);
    EXPECT_EQ(counters.smoothed_rtt_ns, 0U);  // nothing was measured
    EXPECT_EQ(lane.smoothed_rtt(), milliseconds(25));
    ASSERT_TRUE(lane.send_message(Bytes(10)));
    ASSERT_GT(lane.poll_transmit(now, out), 0U);
    while (counters.probe_timeouts == 0) {
      ASSERT_NE(lane.deadline(), kNever);
      now = lane.deadline();
      lane.tick(now);
      while (lane.poll_transmit(now, out) > 0) {
      }
    }
    EXPECT_EQ(counters.stream_backlog_bytes, 14U);  // its length travels with it
    EXPECT_LT(counters.credit_left_packets, 64U);
  }
  EXPECT_GT(counters.packets_sent, 0U);  // outlives the lane
}

TEST(Lane, ReceivedPagesAreCountedOnce) {
  for (const std::uint32_t bytes : {1472U, 8972U}) {
    Pair pair(1, bytes);
    for (pages::PageNumber page = 0; page < 20; ++page) {
      pair.user_a.work.push_back({.page = page, .count = 1, .round = 1, .zero = false});
    }
    pair.run();
    EXPECT_EQ(pair.b.counters().pages_received, 20U);
    EXPECT_EQ(pair.a.counters().works_in_hand, 0U);
    EXPECT_EQ(pair.a.counters().in_flight_packets, 0U);
    EXPECT_GT(pair.a.counters().window_packets, 0U);
    EXPECT_EQ(static_cast<std::int64_t>(pair.a.counters().smoothed_rtt_ns), pair.a.smoothed_rtt().ns);
  }
}

}  // namespace
}  // namespace godwit::transport
