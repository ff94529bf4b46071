#pragma once
// What both ends of a migration have in common: MigrationReports, what this end tells the control plane of it, until
// the outcome settles it; and the migration's end at this host's data plane. Threads: any; never blocks on QMP.
// FAILED is told once, nothing is told after settle(), and the last event other than PROGRESS can be repeated.

#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "controlplane.pb.h"
#include "qemu-bridge/agent/dataplane_client.h"
#include "qemu-bridge/agent/guest_services.h"

namespace godwit::bridge {

class MigrationReports {
 public:
  using Event = controlplane::v1::MigrationEvent;

  explicit MigrationReports(const GuestServices& services);

  /// An event of this migration; not told yet.
  [[nodiscard]] Event make(Event::Kind kind) const;
  /// Dropped once settled.
  void emit(Event event);
  /// Logs the error and tells `event` with it, the first time and unless settled.
  void fail(dataplane::v1::Error error, Event event);
  /// After the control plane was away: what it may have missed.
  void repeat_last();
  /// The outcome is known: what happened on the way there is no longer told.
  void settle();
  [[nodiscard]] bool settled() const;
  [[nodiscard]] bool last_is(Event::Kind kind) const;

 private:
  const std::string id_;  // 16 bytes
  const std::string label_;
  const std::function<void(Event)> emit_;
  mutable std::mutex mutex_;
  bool failed_ = false;
  bool settled_ = false;
  std::optional<Event> last_;
};

/// Storing the table of a guest of terabytes takes its time.
inline constexpr std::chrono::milliseconds kFinishTime{120'000};

/// Tells the data plane the outcome; blocks while it stores what it keeps.
std::expected<dataplane::v1::FinishMigrationResult, dataplane::v1::Error> finish_migration(
    DataplaneClient& dataplane, const Id128& migration, dataplane::v1::Outcome outcome, std::uint64_t ownership);

}  // namespace godwit::bridge
