#pragma once
// SourceMigration: the source's part in one migration, from PrepareSource to the store's outcome.
// Threads: prepare .. abort and the destructor on the VM's queue; on_qmp_event() in the QMP reader's thread and
// on_dataplane_event() in the data plane client's, neither ever blocking on QMP; fail() from any.
// A failure before the outcome is told (FAILED, once) and nothing else: what becomes of the guest is the store's word.
//
// The guest runs in exactly one place. The destination resumes only after COMMITTED is stored, and COMMITTED is stored
// only after LOADED, which needs the whole device state, which ends only after QEMU's migration is "completed", from
// where this QEMU does not resume by itself. What is left are the moments at which this host loses a process:
//
//   killed                      | guest at that moment    | why one place
//   ----------------------------|-------------------------|------------------------------------------------------------
//   bridge, before `migrate`    | runs here               | no stream, so no LOADED: the store can only say ABORTED
//   bridge, stream under way    | QEMU's write fails, it  | the stream has no end at the destination: never LOADED; the
//                               | resumes by itself here  | new bridge reports FAILED and gets ABORTED
//   bridge, QEMU "completed",   | paused (postmigrate)    | the end was not sent: never LOADED. The new bridge keeps it
//   end of stream not sent      |                         | paused, reports FAILED, asks until told ABORTED, continues
//   bridge, end of stream sent  | paused                  | may be LOADED or COMMITTED: kept paused until the store
//                               |                         | answers; COMMITTED retires, ABORTED continues
//   bridge, after COMMITTED     | paused                  | phase kCommitted is journaled before anything is done: the
//                               |                         | new bridge retires it, whoever is reachable
//   bridge, after ABORTED       | paused or running       | phase kAborted is journaled before `cont`; the store never
//                               |                         | changes an outcome, so the new bridge may continue it alone
//   data plane, any time        | as it is                | the destination lacks pages or the end: never MemoryReady,
//                               |                         | never LOADED; or has all: then the store decides as above
//   QEMU, before commit         | nowhere (guest crashed) | FAILED; the destination is never resumed from half a
//   stream.
//                               |                         | If LOADED was reached the store may still say COMMITTED
//   control plane               | paused or running       | a paused guest stays so and asks once a second
//   QEMU's monitor              | as it is                | as if the bridge had been killed and started again; without
//                               |                         | one COMMITTED ends this QEMU, ABORTED waits for it

#include <condition_variable>
#include <memory>
#include <mutex>

#include "qemu-bridge/agent/migration_reports.h"
#include "qemu-bridge/device-state/source_stream.h"

namespace godwit::bridge {

/// A committed source whose part is over.
struct Retirement {
  controlplane::v1::MigrationEvent event;  // RETIRED
  bool ram_files_unused = false;           // the data plane has said that it keeps no image in the RAM files
};
/// The store said COMMITTED, and QEMU's monitor cannot be reached. Nobody can say whether its guest stands still, so
/// QEMU is ended (the very process of the record, or nothing) before the data plane hears of it, which therefore keeps
/// no image: what it may still have written is not known.
Retirement retire_without_monitor(const VmRecord& record, DataplaneClient& dataplane, std::uint64_t ownership);

/// Passes DeviceState to the data plane with at most kUnansweredMax requests open: back-pressure up to QEMU. Any
/// thread.
class DeviceStateSender : public std::enable_shared_from_this<DeviceStateSender> {
 public:
  static constexpr int kUnansweredMax = 64;  // 4 MiB

  DeviceStateSender(DataplaneClient& dataplane, const Id128& migration,
                    std::function<void(dataplane::v1::Error)> on_failed);
  bool send(std::string chunk);  // blocks; false once closed or refused
  void end();
  void close();

 private:
  void answered(const std::expected<dataplane::v1::Reply, dataplane::v1::Error>& reply);

  DataplaneClient& dataplane_;
  const std::string migration_;
  const std::function<void(dataplane::v1::Error)> on_failed_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int unanswered_ = 0;
  bool closed_ = false;
};

class SourceMigration {
 public:
  /// The record names the migration already; after a restart it also says how far it got.
  explicit SourceMigration(GuestServices services);
  ~SourceMigration();
  SourceMigration(const SourceMigration&) = delete;
  SourceMigration& operator=(const SourceMigration&) = delete;

  std::expected<dataplane::v1::PrepareMigrationResult, dataplane::v1::Error> prepare(
      const controlplane::v1::PrepareSource& command);
  std::expected<void, dataplane::v1::Error> start(const controlplane::v1::StartTransfer& command);
  std::expected<void, dataplane::v1::Error> switch_to_postcopy();
  /// Told again (after a new registration, or of a bridge that ended): the first answer again, and nothing else.
  std::expected<void, dataplane::v1::Error> switch_over();

  /// The store said COMMITTED: retain the image, end QEMU.
  Retirement commit(std::uint64_t ownership);
  /// The store said PULLING: this QEMU writes nothing any more. The RETIRED event, for when the memory serves without
  /// it.
  controlplane::v1::MigrationEvent hand_over();
  /// The store said ABORTED: the guest goes on here. The event is BACK, or FAILED with the reason why it does not run.
  controlplane::v1::MigrationEvent abort(std::uint64_t ownership);

  void fail(dataplane::v1::Error error);
  void on_qmp_event(const QmpEvent& event);
  void on_dataplane_event(const dataplane::v1::Event& event);
  void repeat_last_event() { reports_.repeat_last(); }

 private:
  std::expected<void, dataplane::v1::Error> begin_switch();
  std::expected<void, dataplane::v1::Error> note_switch();
  controlplane::v1::MigrationEvent make_event(controlplane::v1::MigrationEvent::Kind kind) const;
  void guest_stopped(std::int64_t unix_us);
  void stream_ended(const std::expected<std::uint64_t, SourceStream::Error>& result);
  void end_stream_if_complete();
  void close_stream();
  std::expected<void, std::string> cancel_in_qemu();
  std::expected<void, std::string> continue_guest(bool switch_begun);

  GuestServices services_;
  const Id128 id_;
  MigrationReports reports_;
  const bool taken_over_in_switch_;  // by a restarted bridge: only QEMU knows whether the guest stopped
  std::shared_ptr<DeviceStateSender> sender_;
  std::optional<std::expected<void, dataplane::v1::Error>> switched_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<SourceStream> stream_;
  bool switching_ = false;
  bool stopped_ = false;
  bool stream_ended_ = false;
  bool qemu_completed_ = false;
  bool end_sent_ = false;
  std::int64_t stop_unix_us_ = 0;
};

}  // namespace godwit::bridge
