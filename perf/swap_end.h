#pragma once
// One end of a split VM over memif, as a process of its own with one lcore: what a data plane runs of it (DataPath,
// LiveSplit with its evictor and MainFlow; or a page store and StoreFlow), without control thread and bridge. All of
// the guest's memory is put out to the store before it begins to touch it.
//
// run_swap_end() is a forked child's main; it reports through SwapShared, a failure as a text there.

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "dataplane/transport/lane.h"
#include "perf/end_parts.h"
#include "perf/fault_guest.h"

namespace godwit::perf {

/// In memory that both ends and their parent share.
struct SwapShared {
  std::array<std::atomic<bool>, 2> ready{};  // its port is open; by is_store
  std::atomic<bool> begin{false};            // the store expects the main host
  std::atomic<bool> stop{false};
  std::array<EndError, 2> errors{};
  // at the main host
  double evict_all_s = 0;                                // until the store had all
  std::uint64_t evicted_pages = 0, refetched_pages = 0;  // while the guest ran
};

struct SwapEndOptions {
  bool is_store = false;
  std::string socket;
  std::string directory;  // on tmpfs
  std::string cpus;       // of the lcore
  unsigned evictor_cpu = 0;
  FaultGuest* guest = nullptr;
  std::uint64_t pages = 0;
  /// While the guest touches its pages; 0: nothing is evicted then.
  std::uint64_t budget_pages = 0;
  transport::Cipher cipher = transport::Cipher::kNone;
};

/// Runs the end until the guest is done or `stop` is set. Ends the process; comes back, with its exit status, only if
/// it fails.
int run_swap_end(const SwapEndOptions& options, SwapShared& shared);

}  // namespace godwit::perf
