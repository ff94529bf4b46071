#pragma once
// One end of the demand-page measurement: a process of its own with one lcore on one memif port, and a priority and a
// bulk lane on it. The destination asks for pages one after the other and places what comes; the source answers, and
// sends bulk pages without end while the destination wants them. run_demand_end() is a forked child's main; it reports
// through DemandShared, times in ns, and a failure as a text there.

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "perf/end_parts.h"

namespace godwit::perf {

inline constexpr std::uint32_t kRoundTripsMax = 100'000;

/// In memory that both ends and their parent share.
struct DemandShared {
  std::array<std::atomic<bool>, 2> ready{};  // its port is open; by is_source
  std::atomic<bool> stop{false};
  std::atomic<bool> bulk{false};  // wanted
  std::array<EndError, 2> errors{};
  std::array<std::array<std::uint32_t, kRoundTripsMax>, 2> round_trips_ns{};  // without and with bulk
  std::uint64_t bulk_pages = 0;  // placed while round trips with bulk were measured
  std::int64_t bulk_ns = 0;
};

struct DemandEndOptions {
  bool is_source = false;
  std::string socket;
  std::string cpus;  // of the lcore
  int ram = -1;      // descriptor of a file of `pages` pages, populated
  std::uint64_t pages = 0;
  std::uint32_t round_trips = 0;  // of each kind
  std::uint32_t mtu = 9000;
};

/// Runs the end until the destination has its round trips or `stop` is set. Ends the process; comes back, with its exit
/// status, only if it fails.
int run_demand_end(const DemandEndOptions& options, DemandShared& shared);

}  // namespace godwit::perf
