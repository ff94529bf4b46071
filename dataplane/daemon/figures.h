#pragma once
// What this daemon can tell of its flows and guests: kept by the control thread, read by any (telemetry, metrics). The
// lcores only write counters of their own, so reading never disturbs them; figures are possibly a moment old. A flow's
// counters live as long as anybody holds its FlowFigures; when it ends, they go into the totals, which therefore never
// fall. Failure: none.

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/single_writer.h"
#include "base/time.h"
#include "base/uuid.h"
#include "dataplane/daemon/live_paging.h"
#include "dataplane/transfer/migration.h"
#include "dataplane/transport/lane.h"

namespace godwit::daemon {

enum class FlowRole : std::uint8_t { kSource, kDestination, kCount };
[[nodiscard]] std::string_view to_string(FlowRole role);

/// transfer::Stats that one thread sets and any reads; the fields may be of two neighbouring moments.
class PublishedStats {
 public:
  void set(const transfer::Stats& stats);
  [[nodiscard]] transfer::Stats get() const;

 private:
  static_assert(std::is_trivially_copyable_v<transfer::Stats> && sizeof(transfer::Stats) % 8 == 0);
  std::array<SingleWriter<std::uint64_t>, sizeof(transfer::Stats) / 8> words_;
};

/// One flow, from StartMigration to FinishMigration.
struct FlowFigures {
  static constexpr Duration kPublishEvery = milliseconds(100);

  std::uint32_t flow_id = 0;
  Id128 migration;
  Id128 vm_uuid;
  FlowRole role = FlowRole::kSource;
  std::string peer;
  std::vector<std::unique_ptr<transport::LaneCounters>> lanes;  // by number, each written by its lcore
  PublishedStats stats;                                         // by the home lcore, each kPublishEvery
};
/// With counters for lanes 0 to `bulk_lanes`.
[[nodiscard]] std::shared_ptr<FlowFigures> make_flow_figures(std::uint16_t bulk_lanes);

/// Sums of LaneCounters' counters.
struct LaneTotals {
  std::uint64_t packets_sent = 0, bytes_sent = 0, packets_received = 0, bytes_received = 0;
  std::uint64_t pages_sent = 0, pages_retransmitted = 0, pages_in_place = 0, pages_received = 0, payload_bytes_sent = 0;
  std::uint64_t packets_lost = 0, probe_timeouts = 0, spurious_losses = 0, mtu_black_holes = 0;
  void add(const transport::LaneCounters& counters);
};

struct RoleTotals {
  std::uint64_t pages_sent = 0, pages_zero = 0, pages_reused = 0;
  std::uint64_t wire_bytes = 0, table_bytes = 0, device_state_bytes = 0, rounds = 0;
  std::uint64_t committed = 0, aborted = 0;  // of flows that have ended
  void add(const transfer::Stats& stats);
};

struct FlowTotals {
  std::vector<LaneTotals> lanes;  // by number
  std::array<RoleTotals, static_cast<std::size_t>(FlowRole::kCount)> roles{};
};

struct GuestFigures {
  Id128 vm_uuid;
  std::string tracker;
  std::uint64_t bytes_total = 0;
  std::uint64_t ownership = 0;
  Id128 migration;                           // nil: none
  std::uint64_t access_scans = 0;            // since it was attached
  std::uint64_t accessed_pages = 0;          // found by the last of them
  std::shared_ptr<const LivePaging> paging;  // null: nothing of it can be missing
};

/// Of retained images that no migration writes into.
struct ImageFigures {
  std::uint64_t count = 0, bytes_resident = 0;
};

class FigureBook {
 public:
  using Flow = std::shared_ptr<const FlowFigures>;

  // ---- control thread ----
  void begin(const Flow& flow);
  /// No lcore writes to it any more. Nothing if it is not there. `committed` not known: its migration goes on with
  /// another flow, whose stats contain these.
  void end(std::uint32_t flow_id, const transfer::Stats& last, std::optional<bool> committed);
  void set_guests(std::vector<GuestFigures> guests);
  /// Any thread: whoever has just counted them.
  void set_images(const ImageFigures& images);

  // ---- any thread ----
  [[nodiscard]] std::vector<Flow> flows() const;
  [[nodiscard]] Flow flow(std::uint32_t flow_id) const;  // null: none of this id
  [[nodiscard]] std::vector<GuestFigures> guests() const;
  [[nodiscard]] ImageFigures images() const;
  /// Of all flows since the daemon started.
  [[nodiscard]] FlowTotals totals() const;

 private:
  static void add(FlowTotals& totals, const FlowFigures& flow, const transfer::Stats& stats);

  mutable std::mutex mutex_;
  std::map<std::uint32_t, Flow> flows_;
  FlowTotals ended_;
  std::vector<GuestFigures> guests_;
  ImageFigures images_;
};

}  // namespace godwit::daemon
