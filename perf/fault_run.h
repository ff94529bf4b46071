#pragma once
// One post-copy between two processes (fault_end.h) and the guest that touches its pages meanwhile: what `fault`
// measures, and what `swap` is held against. Owner: one benchmark; its main thread. Times in nanoseconds. Failure: one
// line.

#include <array>
#include <cstdint>
#include <expected>
#include <memory>
#include <string>
#include <vector>

#include "perf/benchmark.h"
#include "perf/fault_end.h"
#include "perf/processes.h"

namespace godwit::perf {

struct FaultRunOptions {
  std::uint64_t touches = 0;        // of the guest, of kFaultPages at most
  std::uint64_t local_touches = 0;  // of the one that is answered from here
  bool background = false;
  transport::Cipher cipher = transport::Cipher::kNone;
  std::array<std::string, 2> cpus;  // of the source with the guests, and of the destination: perf/README.md
};

struct FaultRun {
  std::unique_ptr<FaultGuest> local, guest;  // done
  SharedMemory<FaultShared> shared;
};

/// To its end; what the guest has touched is what the source has.
std::expected<std::unique_ptr<FaultRun>, std::string> run_fault(const FaultRunOptions& options);

/// Touches of one kind that waited, of all runs.
struct FaultTimes {
  std::vector<std::uint64_t> times_ns;
  std::uint64_t span_ns = 0;  // in which they were

  /// The touches from `first` to `end`.
  void add(const FaultGuest& guest, std::uint64_t first, std::uint64_t end);
};
/// A row of the table, and metrics {key}_{p50,p90,p99,p99_9,max}_us and {key}_per_s. Sorts.
void report_faults(const std::string& name, const std::string& key, FaultTimes& faults, Result& result);

}  // namespace godwit::perf
