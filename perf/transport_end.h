#pragma once
// One end of the transport benchmark: a process of its own with one lcore on one memif port. The sender takes pages
// from guest RAM in order, pass after pass; the receiver puts them into its guest RAM. Everything between is what the
// data plane runs: Port, Neighbours, wire, Lane, PollLoop, GuestRam. run_end() is a forked child's main; it reports
// through Shared, times in ns, and a failure as a text there.

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "dataplane/port/port.h"
#include "dataplane/transport/lane.h"
#include "perf/end_parts.h"

namespace godwit::perf {

inline constexpr std::uint32_t kPassesMax = 64;

/// The clocks of one lcore at the beginning of a pass.
struct PassMark {
  std::int64_t at_ns = 0;         // monotonic, the same clock on both ends
  std::int64_t cpu_ns = 0;        // of the lcore's thread, empty polls too
  std::uint64_t busy_cycles = 0;  // in turns that found work
  transport::LaneCounters lane;
};

struct EndReport {
  std::atomic<bool> ready{false};  // its port is open
  EndError error{};
  /// [i]: when pass i began; the last one is a page more than the passes, and marks their end.
  std::array<PassMark, kPassesMax + 1> marks{};
  port::QueueCounters queue;
};

/// In memory that both ends and their parent share.
struct Shared {
  std::array<EndReport, 2> ends;
  std::atomic<bool> stop{false};
};

enum class Role : std::uint8_t { kSender, kReceiver };

struct EndOptions {
  Role role = Role::kSender;
  std::string socket;     // of memif
  std::string interface;  // of af_packet, in the namespace; empty: memif
  int network_namespace = -1;
  std::string cpus;  // of the lcore
  int ram = -1;      // descriptor of a file of `pages` pages, populated
  std::uint64_t pages = 0;
  std::uint32_t passes = 0;
  std::uint32_t mtu = 9000;
  transport::Cipher cipher = transport::Cipher::kNone;
};

/// Runs the end until all passes are acknowledged (sender) or `stop` is set. Ends the process; comes back, with its
/// exit status, only if it fails.
int run_end(const EndOptions& options, Shared& shared);

}  // namespace godwit::perf
