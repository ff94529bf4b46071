// Goal: a bulk lane fills the path it is given: idle, shaped, lossy, and where pollers are scheduled away for
// milliseconds. Method: an endless supply of pages over one lane in virtual time; goodput against what the path or the
// poller could carry.

#include <gtest/gtest.h>

#include <iostream>

#include "simulation/bulk_flows.h"

namespace godwit::simulation {
namespace {

struct Path {
  const char* description;
  std::uint32_t datagram_bytes;
  std::uint64_t rate_bps;  // 0: as fast as the pollers
  std::size_t queue_bytes;
  std::uint32_t loss_ppm;
  Duration run_max, pause_max;
  std::uint64_t goodput_min_bps;
  std::uint64_t drops_max_ppm;  // of the queue
};

constexpr Duration kPacketCost = microseconds(2);  // of a poller, for one packet of two pages
constexpr std::uint64_t kGigabit = 1'000'000'000;

BulkPath bulk_path(const Path& path) {
  return {.link = {.delay = microseconds(10),
                   .rate_bps = path.rate_bps,
                   .queue_bytes = path.queue_bytes,
                   .loss_ppm = path.loss_ppm},
          .datagram_bytes = path.datagram_bytes,
          .packet_cost = kPacketCost,
          .run_max = path.run_max,
          .pause_max = path.pause_max};
}

TEST(LaneThroughput, FillsThePath) {
  constexpr std::size_t kTbfQueue = kGigabit / 8 / 20;  // "latency 50ms"
  const Path paths[] = {
      {"idle, jumbo frames", 8972, 0, 0, 0, {}, {}, 25 * kGigabit, 0},
      {"idle, 1500", 1472, 0, 0, 0, {}, {}, 20 * kGigabit, 0},
      {"shaped to 1 Gbit/s", 8972, kGigabit, kTbfQueue, 0, {}, {}, 940'000'000, 1000},
      {"shaped to 1 Gbit/s, 1500", 1472, kGigabit, kTbfQueue, 0, {}, {}, 880'000'000, 1000},
      {"shaped to 1 Gbit/s, short queue", 8972, kGigabit, 200'000, 0, {}, {}, 850'000'000, 80'000},
      {"shaped and scheduled away", 8972, kGigabit, kTbfQueue, 0, milliseconds(4), milliseconds(4), 850'000'000, 1000},
      {"scheduled away up to 1 ms", 8972, 0, 0, 0, milliseconds(4), milliseconds(1), 8 * kGigabit, 0},
      {"scheduled away up to 4 ms", 8972, 0, 0, 0, milliseconds(4), milliseconds(4), 4 * kGigabit, 0},
      {"loss 0.1 %", 8972, 0, 0, 1000, {}, {}, 22 * kGigabit, 0},
      {"loss 1 %", 8972, 0, 0, 10'000, {}, {}, 15 * kGigabit, 0},
      {"loss 5 %", 8972, 0, 0, 50'000, {}, {}, 6 * kGigabit, 0},
      {"loss 1 %, scheduled away", 8972, 0, 0, 10'000, milliseconds(4), milliseconds(2), 3 * kGigabit, 0},
  };
  for (const Path& path : paths) {
    SCOPED_TRACE(path.description);
    BulkFlows run(bulk_path(path));
    run.add_flow();
    run.run(milliseconds(1000));
    const std::uint64_t goodput_bps = run.acknowledged_bits(0);
    const std::uint64_t drops_ppm = run.link_counters().queue_drops * 1'000'000 / run.link_counters().sent;
    EXPECT_GE(goodput_bps, path.goodput_min_bps);
    EXPECT_LE(drops_ppm, path.drops_max_ppm);
    const transport::Lane& source = run.source(0);
    const transport::LaneCounters& counters = source.counters();
    std::cout << path.description << ": " << goodput_bps / 1'000'000 << " Mbit/s, window "
              << source.congestion_window_packets() << ", rtt " << source.smoothed_rtt().us() << " us, lost "
              << counters.packets_lost << " (spurious " << counters.spurious_losses << ") of " << counters.packets_sent
              << ", probes " << counters.probe_timeouts << ", queue drops " << drops_ppm << " ppm\n";
  }
}

/// Two flows share one link; the second comes when the first has all of it.
// What waits in the network for a demand page is little, and what the scheduler does is not taken for it: as much comes
// through as with a long queue.
TEST(LaneThroughput, BackgroundKeepsTheQueueShortAndFillsThePath) {
  constexpr std::size_t kTbfQueue = kGigabit / 8 / 20;
  struct Background {
    Path path;
    std::uint32_t in_flight_max;  // packets, on average
  };
  const Background paths[] = {
      {{"idle", 8972, 0, 0, 0, {}, {}, 25 * kGigabit, 0}, 70},
      {{"shaped", 8972, kGigabit, kTbfQueue, 0, {}, {}, 940'000'000, 0}, 16},
      {{"shaped and away", 8972, kGigabit, kTbfQueue, 0, milliseconds(4), milliseconds(4), 850'000'000, 1000}, 60},
      {{"seldom away", 8972, 0, 0, 0, milliseconds(20), milliseconds(4), 20 * kGigabit, 0}, 200},
      {{"away half of the time", 8972, 0, 0, 0, milliseconds(4), milliseconds(4), 9 * kGigabit, 0}, 200},
      {{"hardly ever there", 8972, 0, 0, 0, milliseconds(2), milliseconds(8), 5 * kGigabit, 0}, 300},
      {{"away twice a millisecond", 8972, 0, 0, 0, microseconds(500), microseconds(500), 10 * kGigabit, 0}, 100},
      {{"shaped, away twice", 8972, kGigabit, kTbfQueue, 0, microseconds(500), microseconds(500), 850'000'000, 0}, 25},
  };
  for (const Background& background : paths) {
    SCOPED_TRACE(background.path.description);
    BulkPath path = bulk_path(background.path);
    path.background = true;
    BulkFlows run(path);
    run.add_flow();
    constexpr std::uint64_t kLooks = 1000;
    std::uint64_t in_flight = 0;
    for (std::uint64_t i = 0; i < kLooks; ++i) {
      run.run(milliseconds(1));
      in_flight += run.source(0).in_flight_packets();
    }
    std::cout << background.path.description << ": " << run.acknowledged_bits(0) / 1'000'000 << " Mbit/s, in flight "
              << in_flight / kLooks << '\n';
    EXPECT_GE(run.acknowledged_bits(0), background.path.goodput_min_bps);
    EXPECT_LE(in_flight / kLooks, background.in_flight_max);
  }
}

TEST(LaneThroughput, SharesThePath) {
  struct Case {
    const char* description;
    std::uint64_t rate_bps;
    std::size_t queue_bytes;
    std::uint32_t loss_ppm;
    Duration base_rtt, rtt_granularity;
  };
  const Case cases[] = {
      {"100 Gbit/s, NICs", 100 * kGigabit, 4'000'000, 0, microseconds(50), microseconds(100)},
      {"100 Gbit/s, NICs, short queue", 100 * kGigabit, 500'000, 0, microseconds(50), microseconds(100)},
      {"100 Gbit/s, NICs, loss 1 %", 100 * kGigabit, 4'000'000, 10'000, microseconds(50), microseconds(100)},
      {"10 Gbit/s, NICs", 10 * kGigabit, 2'000'000, 0, microseconds(50), microseconds(100)},
      {"10 Gbit/s, vdevs", 10 * kGigabit, 8'000'000, 0, microseconds(500), milliseconds(2)},
      {"1 Gbit/s, vdevs", kGigabit, 4'000'000, 0, microseconds(500), milliseconds(2)},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.description);
    BulkFlows run({.link = {.delay = microseconds(20),
                            .rate_bps = c.rate_bps,
                            .queue_bytes = c.queue_bytes,
                            .loss_ppm = c.loss_ppm},
                   .base_rtt = c.base_rtt,
                   .rtt_granularity = c.rtt_granularity});
    const std::size_t first = run.add_flow();
    run.run(milliseconds(100));
    const std::size_t second = run.add_flow();
    run.run(milliseconds(300));
    const std::uint64_t before[] = {run.acknowledged_bits(first), run.acknowledged_bits(second)};
    run.run(milliseconds(500));
    const double shares[] = {static_cast<double>(run.acknowledged_bits(first) - before[0]),
                             static_cast<double>(run.acknowledged_bits(second) - before[1])};
    const double jain = jain_index({shares[0], shares[1]});
    EXPECT_GE(jain, 0.95);
    EXPECT_GE(shares[0] + shares[1], 0.85 * 0.5 * static_cast<double>(c.rate_bps));
    std::cout << c.description << ": " << shares[0] / 5e8 << " and " << shares[1] / 5e8 << " Gbit/s, index " << jain
              << ", windows " << run.source(first).congestion_window_packets() << " and "
              << run.source(second).congestion_window_packets() << '\n';
  }
}

}  // namespace
}  // namespace godwit::simulation
