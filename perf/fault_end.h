#pragma once
// One end of a post-copy over memif, as a process of its own with one lcore: what a data plane runs of it (DataPath,
// MigrationFlow, Source or Destination, LivePaging, LiveGuest), without control thread and bridge. All of the guest's
// memory is missing when it begins to touch it. Before that, while the source's lcore polls an idle port, another guest
// is answered from the destination's own memory, by a loop of its own (fault_pager.h).
//
// run_fault_end() is a forked child's main; it reports through FaultShared, times in ns, monotonic, and a failure as a
// text there.

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "dataplane/transport/lane.h"
#include "perf/end_parts.h"
#include "perf/fault_guest.h"

namespace godwit::perf {

inline constexpr std::uint64_t kFaultPages = 65'536;  // of each guest

/// The way of one page that a thread waited for; 0: it has not come there.
struct FaultSteps {
  std::uint64_t read_ns = 0;      // the fault, on the destination's lcore
  std::uint64_t asked_ns = 0;     // the request is with the driver
  std::uint64_t answered_ns = 0;  // the source reads the page to send it
  std::uint64_t arrived_ns = 0;   // opened, to be placed
  std::uint64_t placed_ns = 0;
};

/// In memory that both ends and their parent share.
struct FaultShared {
  std::array<std::atomic<bool>, 2> ready{};  // its port is open; by is_source
  std::atomic<bool> begin{false};            // the destination expects the source
  std::atomic<bool> stop{false};
  std::array<EndError, 2> errors{};
  std::array<FaultSteps, kFaultPages> steps{};  // by page
  // at the destination
  std::uint64_t placed_pages = 0, first_placed_ns = 0, last_placed_ns = 0;
};

struct FaultEndOptions {
  bool is_source = false;
  std::string socket;
  std::string cpus;             // of the lcore
  FaultGuest* guest = nullptr;  // at the source it only has the memory
  FaultGuest* local = nullptr;  // destination: the one to answer from here
  bool background = false;      // source: what nobody asks for is sent, too
  std::uint32_t mtu = 9000;
  transport::Cipher cipher = transport::Cipher::kNone;
};

/// Runs the end until its guest is done or `stop` is set. Ends the process; comes back, with its exit status, only if
/// it fails.
int run_fault_end(const FaultEndOptions& options, FaultShared& shared);

}  // namespace godwit::perf
