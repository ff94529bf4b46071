#include "perf/transport_simulated.h"

#include <fmt/core.h>

#include "simulation/bulk_flows.h"

namespace godwit::perf {
namespace {

constexpr std::uint64_t kRateBps = 100'000'000'000;
constexpr Duration kDelay = microseconds(20);
constexpr std::size_t kQueueBytes = 4'000'000;  // of a switch port

struct Times {
  Duration settle, measure;
};

simulation::BulkPath path(std::uint32_t loss_ppm) {
  return {.link = {.delay = kDelay, .rate_bps = kRateBps, .queue_bytes = kQueueBytes, .loss_ppm = loss_ppm},
          .base_rtt = microseconds(50),  // what docs/configuration.md names for NICs and pinned lcores
          .rtt_granularity = microseconds(100)};
}

double gbps(std::uint64_t bits, Duration time) { return static_cast<double>(bits) / static_cast<double>(time.ns); }

double goodput_gbps(std::uint32_t loss_ppm, const Times& times) {
  simulation::BulkFlows flows(path(loss_ppm));
  const std::size_t flow = flows.add_flow();
  flows.run(times.settle);
  const std::uint64_t before = flows.acknowledged_bits(flow);
  flows.run(times.measure);
  return gbps(flows.acknowledged_bits(flow) - before, times.measure);
}

void report_loss(const Times& times, Result& result) {
  struct Point {
    const char* key;
    std::uint32_t loss_ppm;
  };
  const double without = goodput_gbps(0, times);
  result.metric("simulated_goodput_gbps", without);
  result.row({"simulated, no loss", fmt::format("{:.2f}", without)});
  for (const Point& point : {Point{"0_1", 1'000}, Point{"1", 10'000}, Point{"5", 50'000}}) {
    const double goodput = goodput_gbps(point.loss_ppm, times);
    result.ratio(std::string("goodput_loss_") + point.key, goodput / without);
    result.row({fmt::format("simulated, loss {} %", point.loss_ppm / 1e4), fmt::format("{:.2f}", goodput)});
  }
}

void report_fairness(const Times& times, Result& result) {
  simulation::BulkFlows flows(path(0));
  const std::size_t first = flows.add_flow();
  flows.run(times.settle);
  const std::size_t second = flows.add_flow();
  flows.run(times.settle);
  const std::uint64_t before[] = {flows.acknowledged_bits(first), flows.acknowledged_bits(second)};
  flows.run(times.measure);
  const double shares[] = {gbps(flows.acknowledged_bits(first) - before[0], times.measure),
                           gbps(flows.acknowledged_bits(second) - before[1], times.measure)};
  result.metric("jain", simulation::jain_index({shares[0], shares[1]}));
  result.row({"simulated, two flows", fmt::format("{:.2f}", shares[0]), fmt::format("{:.2f}", shares[1])});
}

}  // namespace

void report_simulated(const Options& options, Result& result) {
  const Times times =
      options.quick ? Times{milliseconds(5), milliseconds(20)} : Times{milliseconds(100), milliseconds(400)};
  report_loss(times, result);
  report_fairness(times, result);
}

}  // namespace godwit::perf
