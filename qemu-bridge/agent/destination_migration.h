#pragma once
// DestinationMigration: the destination's part in one migration, from an attached QEMU that waits with -incoming defer
// to the store's outcome. Threads: prepare .. abort and the destructor on the VM's queue; on_qmp_event() in the QMP
// reader's thread and on_dataplane_event() in the data plane client's, neither ever blocking; fail() from any.
//
// The guest runs in exactly one place: this QEMU is started with -S, so loading a whole stream leaves it paused, and
// `cont` is issued in one place only (commit), on the store's word COMMITTED. The moments at which a process is lost:
//
//   killed                      | guest here              | why one place
//   ----------------------------|-------------------------|------------------------------------------------------------
//   bridge, before LOADED       | paused or half loaded   | the stream's socket closes: QEMU's load fails, it exits. No
//                               |                         | LOADED was told, so the store can only say ABORTED
//   bridge, LOADED told, no     | paused, loaded          | the new bridge keeps it paused and asks: COMMITTED
//   continues outcome heard               |                         | it (its load is "completed"), ABORTED ends it
//   bridge, before or after     | paused or running       | whatever the journal says, the new bridge knows or hears
//   `cont`                      |                         | the word again, and continues (again: no effect). `cont`
//                               |                         | waits for no journal: no disk wait inside the downtime
//   data plane, before LOADED   | paused                  | no MemoryReady or no end of stream: FAILED, ABORTED
//   data plane, after LOADED    | paused, all pages there | the word decides; COMMITTED continues it, tracking begins
//                               |                         | anew with the next attachment
//   QEMU, before COMMITTED      | none                    | FAILED; the source continues
//   QEMU, after COMMITTED       | none                    | the guest crashed here; the source has retired or will
//   control plane               | paused                  | stays so and asks once a second
//   data plane, after the word  | running, or in `cont`,  | a new one is given the guest whether `cont` was answered or
//                               | where it waits for a    | not
//                               | page                    |
//   QEMU's monitor              | as it is                | as if the bridge had been killed and started again

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

#include "qemu-bridge/agent/migration_reports.h"
#include "qemu-bridge/agent/pull.h"
#include "qemu-bridge/device-state/destination_stream.h"

namespace godwit::bridge {

class DestinationMigration {
 public:
  explicit DestinationMigration(GuestServices services);
  ~DestinationMigration();
  DestinationMigration(const DestinationMigration&) = delete;
  DestinationMigration& operator=(const DestinationMigration&) = delete;

  std::expected<dataplane::v1::PrepareMigrationResult, dataplane::v1::Error> prepare(
      const controlplane::v1::PrepareDestination& command);
  std::expected<void, dataplane::v1::Error> start(const controlplane::v1::StartTransfer& command);

  /// The store said COMMITTED: continues the guest, and meanwhile tells the data plane and then calls `meanwhile`: QEMU
  /// may wait, in `cont`, for a page that comes only with these. RESUMED, or FAILED with the reason.
  controlplane::v1::MigrationEvent commit(std::uint64_t ownership, const std::function<void()>& meanwhile);
  /// The store said PULLING: the same, but `pull` tells the data plane, and goes on with it.
  controlplane::v1::MigrationEvent commit(std::uint64_t ownership, Pull& pull, const std::function<void()>& meanwhile);
  /// The store said ABORTED: the data plane keeps what it may; the caller then ends QEMU. BACK is the source's to say:
  /// the event is RETIRED.
  controlplane::v1::MigrationEvent abort(std::uint64_t ownership);
  /// After commit(): true once the guest was continued.
  [[nodiscard]] bool resumed() const { return resumed_; }
  /// After abort(): the data plane has said that it keeps no image in the RAM files.
  [[nodiscard]] bool ram_files_unused() const { return ram_files_unused_; }

  void fail(dataplane::v1::Error error);
  void on_qmp_event(const QmpEvent& event);
  void on_dataplane_event(const dataplane::v1::Event& event);
  void repeat_last_event() { reports_.repeat_last(); }

 private:
  controlplane::v1::MigrationEvent make_event(controlplane::v1::MigrationEvent::Kind kind) const;
  void close_stream();
  std::expected<bool, std::string> runs_already();
  controlplane::v1::MigrationEvent continue_guest();

  GuestServices services_;
  const Id128 id_;
  MigrationReports reports_;
  bool asked_to_continue_ = false;
  bool resumed_ = false;
  bool ram_files_unused_ = false;

  std::mutex stream_mutex_;  // order: before mutex_
  std::unique_ptr<DestinationStream> stream_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool memory_ready_ = false;
  std::uint64_t pages_missing_ = 0;  // then
  std::int64_t resume_unix_us_ = 0;
};

}  // namespace godwit::bridge
