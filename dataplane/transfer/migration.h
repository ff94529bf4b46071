#pragma once
// The two ends of one migration as sans-IO state machines: Source and Destination (source.h, destination.h) share what
// is here.
//
// Owner: the daemon (or the simulation). Thread: the lcore that owns the lanes; jobs run elsewhere through Executor and
// come back. Either end lives from PrepareMigration to FinishMigration. After on_failed() it places nothing and sends
// nothing but one Abort on lanes[0]: poll that lane a little longer, or the peer learns of the failure only by silence.
//
// Time: calls that bring no Instant (from lanes and executor) only take note; everything that follows from them happens
// in tick(). deadline() then lies in the past: after packets or a job's `done`, look at deadline(), call tick() when it
// is reached, then poll_transmit() on every lane. tick() too early does no harm. Events come from within tick(),
// cancel() or flush(), on_device_state from within on_message(); do not destroy the object inside one. Jobs in flight
// outlive the object if it is destroyed, and then use only guest memory and table: those stay until the executor is
// idle.
//
// Post-copy. Until both ends have said that all is placed or announced, every failure is as above: the guest goes on at
// the source. From on_memory_ready() at the destination, and from AllAnnounced at the source, which cannot know of the
// other, a lost connection is no failure any more but on_connection_lost(): either end keeps what it has and waits for
// its owner, who knows what the store says: cancel() if the migration is aborted, else detach() and resume() with new
// lanes. An owner whose process has died makes a new object and calls resume() instead of start(); what has to survive
// for that says source.h and destination.h.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/time.h"
#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/generation_table.h"
#include "dataplane/transfer/executor.h"
#include "dataplane/transfer/guest.h"
#include "dataplane/transfer/pull_order.h"
#include "dataplane/transport/lane.h"
#include "dataplane/wire/messages.h"

namespace godwit::transfer {

using MigrationId = std::array<std::byte, 16>;

enum class Verify : std::uint8_t { kOff, kSent, kFull };
/// kPostcopy: the guest is stopped at once, all that is missing follows it. kHybrid: rounds of pre-copy, then that.
enum class Mode : std::uint8_t { kPrecopy, kPostcopy, kHybrid };
enum class OnNoConvergence : std::uint8_t { kAbort, kPostcopy, kStopAnyway };
enum class Failure : std::uint8_t {
  kGuestMemory,
  kPeerLost,
  kLaneClosed,  // transport::LaneFault
  kPeerProtocol,
  kPeerFailed,
  kVerify,
  kNoConvergence,
  kCancelled,
  kEpochsExhausted
};

using RegionShape = wire::RegionShape;

struct Policy {
  Duration downtime_limit = milliseconds(300);
  std::uint64_t bandwidth_limit_bps = 0;  // 0: none
  Verify verify = Verify::kSent;
  OnNoConvergence on_no_convergence = OnNoConvergence::kAbort;
  std::uint32_t rounds_max = 30;
  Duration time_limit{0};  // 0: none
  Mode mode = Mode::kPrecopy;
  std::uint32_t hybrid_rounds = 0;  // kHybrid: at most so many rounds before post-copy; 0: as long as it converges
  Duration hybrid_time{0};          // kHybrid: the same by time; 0: none
  PullOrderKind pull_order = PullOrderKind::kAroundFaults;
  std::vector<PageRun> pull_rank;  // of kByRank
};

/// What pages of post-copy carry on the wire in place of a round: above every round of pre-copy.
inline constexpr std::uint32_t kPullRound = UINT32_MAX;

struct MigrationConfig {
  MigrationId id{};
  std::vector<RegionShape> regions;
  std::uint32_t epoch_base = 0;                // round r uses epoch_base + r
  std::uint32_t epoch_count = 0;               // at least kEpochsMin
  std::uint32_t header_bytes_per_packet = 28;  // IP and UDP, for Stats::wire_bytes: 28 over IPv4, 48 over IPv6
};

/// Rounds that an attempt must be able to count: the first, some while the guest runs, and those kept back for
/// switchover.
inline constexpr std::uint32_t kEpochsMin = 16;

/// Mirrors godwit.dataplane.v1.MigrationStats; see there for meaning and units. pages_zero counts zero pages that
/// crossed as runs, and those that did not need to because the destination's memory was zero from the start;
/// pages_reused the reusable ones of round 1, pages_stored those that stayed with stores then. At the destination
/// pages_sent and pages_zero count what was placed.
struct Stats {
  std::uint32_t round = 0;
  std::uint64_t pages_total = 0, pages_left = 0, pages_sent = 0, pages_zero = 0, pages_reused = 0, pages_stored = 0,
                table_bytes = 0, payload_bytes = 0;
  std::uint64_t retransmitted_pages = 0, wire_bytes = 0, rate_bps = 0, written_pages_per_s = 0, elapsed_us = 0,
                estimated_left_us = 0;
  std::uint64_t device_state_bytes = 0, last_round_us = 0, pages_last_round = 0;
  // the transport, all lanes together; rtt_us: of the slowest bulk lane
  std::uint64_t packets_sent = 0, packets_lost = 0, probe_timeouts = 0, spurious_losses = 0, rtt_us = 0,
                window_packets = 0;
  // post-copy, not in MigrationStats. Of pages_left: the source has not handed them out, the destination misses them.
  // At the destination, of pages_sent and pages_zero: pages_demand came after they were asked for, pages_background
  // unasked. At the source pages_demand are those that went out because they were asked for, pages_background those
  // that were handed out unasked.
  std::uint64_t faults = 0, pages_demand = 0, pages_background = 0, pages_given_back = 0, pages_asked_again = 0;
  std::uint64_t all_there_us = 0;  // destination: from its start until nothing was missing; 0: not yet
};

/// What either end tells its owner; called on the lcore.
class MigrationEvents {
 public:
  virtual ~MigrationEvents() = default;
  virtual void on_progress(const Stats&) {}                            // source, about 5 a second
  virtual void on_ready_to_switch(Duration /*estimated_downtime*/) {}  // source; rounds go on until guest_stopped()
  virtual void on_source_done(const Stats&) {}                         // source: destination confirmed everything
  virtual void on_device_state(std::span<const std::byte>, bool /*end*/) {}  // destination, in order
  virtual void on_memory_ready(std::uint64_t /*pages_checked*/) {}           // destination: all placed and verified
  virtual void on_failed(Failure, const std::string& /*text*/) {}            // either, once
  // ---- post-copy: on_memory_ready is told when what is missing can be faulted in; on_source_done is not told ----
  virtual void on_connection_lost(const std::string& /*text*/) {}  // either: waits for cancel(), or detach(), resume()
  /// Destination, at most once and before on_memory_ready: the device state may be loaded, but for its end. Who reads
  /// guest memory for that waits until the memory is ready.
  virtual void on_memory_guarded() {}
  /// Either, once: nothing is missing any more. `equal`: false if what came was to be verified and is not the source's.
  virtual void on_complete(const Stats&, bool /*equal*/) {}
};

}  // namespace godwit::transfer
