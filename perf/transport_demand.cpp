#include "perf/transport_demand.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "dataplane/pages/page.h"
#include "perf/processes.h"
#include "perf/ram.h"
#include "perf/transport_demand_end.h"

namespace godwit::perf {
namespace {

constexpr Duration kRunMax = milliseconds(120'000);

std::expected<void, std::string> run_ends(const DemandSettings& settings, const std::array<std::string, 2>& cpus,
                                          DemandShared& shared) {
  const std::uint64_t bytes = settings.mib << 20;
  const auto ram = RamPair::make(bytes);
  if (!ram) return std::unexpected(ram.error());
  const TemporaryDirectory directory;
  if (!directory.made()) return std::unexpected("no temporary directory");

  Children children;
  DemandEndOptions options{.socket = directory.path() + "/memif.sock",
                           .pages = bytes / pages::kPageSize,
                           .round_trips = settings.round_trips,
                           .mtu = settings.mtu};
  for (const bool is_source : {false, true}) {
    options.is_source = is_source;
    options.cpus = cpus[is_source ? 0 : 1];
    options.ram = is_source ? ram->source.file() : ram->destination.file();
    if (auto started = children.start([&options, &shared] { return run_demand_end(options, shared); }); !started) {
      return started;
    }
  }
  if (auto ended = wait_for_ends(children, kRunMax, shared.errors); !ended) return ended;
  for (pages::PageNumber page = 0; page < options.pages; ++page) {
    if (!ram->destination.same_page(ram->source, page) && !ram->destination.untouched(page)) {
      return std::unexpected(fmt::format("page {} of the destination is not the source's", page));
    }
  }
  return {};
}

/// Nearest rank.
double percentile_us(const std::vector<std::uint32_t>& sorted_ns, double permille) {
  const auto rank = static_cast<std::size_t>(std::ceil(permille / 1000 * static_cast<double>(sorted_ns.size())));
  return sorted_ns[std::max<std::size_t>(rank, 1) - 1] * 1e-3;
}

void report(const std::string& name, std::span<const std::uint32_t> round_trips_ns, Result& result) {
  constexpr std::array<std::pair<const char*, double>, 5> kShown{
      {{"p50", 500}, {"p90", 900}, {"p99", 990}, {"p99_9", 999}, {"max", 1000}}};
  std::vector<std::uint32_t> sorted(round_trips_ns.begin(), round_trips_ns.end());
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::string> row{"demand page, " + name};
  for (const auto& [suffix, permille] : kShown) {
    const double us = percentile_us(sorted, permille);
    result.metric("demand_" + name + "_" + suffix + "_us", us);
    row.push_back(fmt::format("{:.1f}", us));
  }
  result.row(row);
}

}  // namespace

std::expected<void, std::string> measure_demand(const DemandSettings& settings, const std::array<std::string, 2>& cpus,
                                                Result& result) {
  const SharedMemory<DemandShared> memory;
  if (memory.get() == nullptr) return std::unexpected("no shared memory");
  DemandShared& shared = *memory.get();
  if (auto done = run_ends(settings, cpus, shared); !done) return done;
  result.row({"us", "p50", "p90", "p99", "p99.9", "max"});
  report("idle", std::span(shared.round_trips_ns[0]).first(settings.round_trips), result);
  report("loaded", std::span(shared.round_trips_ns[1]).first(settings.round_trips), result);
  const double gbps =
      static_cast<double>(shared.bulk_pages * pages::kPageSize * 8) / static_cast<double>(shared.bulk_ns);
  result.metric("demand_bulk_gbps", gbps);
  result.row({"bulk beside it", fmt::format("{:.2f} Gbit/s", gbps)});
  result.ratio("p99_loaded_vs_idle",
               result.metrics().at("demand_loaded_p99_us") / result.metrics().at("demand_idle_p99_us"));
  return {};
}

}  // namespace godwit::perf
