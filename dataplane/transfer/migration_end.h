#pragma once
// What both ends of a migration have in common: lanes and clock, the guest's memory, how the end of it all is recorded
// and told. Private to source*.cpp and destination*.cpp, which derive from it; see migration.h for owner, thread, time.

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dataplane/transfer/migration.h"
#include "dataplane/transfer/outbox.h"
#include "dataplane/wire/messages.h"

namespace godwit::transfer {

inline constexpr Duration kPumpInterval = milliseconds(1);  // of what waits for room on the priority lane
/// A deadline that has passed: no clock shows less. Not INT64_MIN, from which nobody could subtract the time.
inline constexpr Instant kAtOnce{0};

/// A table piece carries at least 4 bytes a page in the worst case, and some heads.
constexpr std::uint64_t table_bytes_max(std::uint64_t page_count) { return page_count * 5 + (1 << 20); }

class MigrationEnd {
 public:
  void cancel(Instant now, const std::string& reason);

 protected:
  MigrationEnd(const MigrationConfig& config, GuestMemory& memory, Executor& executor, MigrationEvents& events);
  ~MigrationEnd() = default;

  /// Ends the migration unless it has failed already: calls end_failed() and whatever the end has to undo.
  virtual void fail(Failure failure, std::string text) = 0;
  /// Before a cancellation, while what has happened still counts.
  virtual void before_cancel() {}

  void begin(Instant now, std::span<transport::Lane* const> lanes);
  /// Records the failure, and tells the peer unless it is the peer that is gone.
  void end_failed(Failure failure, std::string text);
  void tell_failure();
  /// "" if the regions, the memory and a table of so many pages fit each other.
  [[nodiscard]] std::string shape_mismatch(std::uint64_t table_pages) const;
  [[nodiscard]] bool any_lane_dead() const;
  /// Why a lane has closed for good; "" if none has.
  [[nodiscard]] std::string closed_lane() const;
  /// Every now and then, and at once when an access has met memory that is not there.
  void check_memory_if_due();
  /// False: it cannot be believed any more, and the migration has failed.
  bool check_memory();
  /// What all lanes have counted.
  void add_transport(Stats& stats) const;
  /// The peer is not reached, or not to be believed, any more; nothing else changes.
  void lose_connection(std::string text);
  void tell_connection_lost();
  /// The lanes go; what they have counted stays.
  void detach_lanes();
  /// New ones.
  void attach_lanes(Instant now, std::span<transport::Lane* const> lanes);
  /// Encoded messages of tables and sets, which are counted as such.
  void push_tables(std::vector<std::vector<std::byte>>& messages) {
    for (auto& message : messages) {
      totals_.table_bytes += message.size();
      outbox_.push_encoded(std::move(message));
    }
  }
  void pump_outbox() {
    if (connected_) {
      outbox_.pump(*lanes_[0]);
    }
  }

  const MigrationConfig config_;
  GuestMemory& memory_;
  Executor& executor_;
  MigrationEvents& events_;
  const std::uint64_t page_count_;
  std::vector<transport::Lane*> lanes_;  // the first is the priority lane

  Instant now_{};
  bool wake_ = false;
  bool connected_ = true;  // not after lose_connection(), until attach_lanes()
  Outbox outbox_;
  Instant started_{}, finished_at_{};
  Stats totals_;

 private:
  Instant memory_check_at_{};
  Failure failure_{};
  std::string failure_text_;
  bool failure_told_ = false;
  std::string lost_text_;  // told when not empty
};

}  // namespace godwit::transfer
