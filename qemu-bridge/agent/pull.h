#pragma once
// Pull: this host's part in a migration from the store's word PULLING until all pages are at the destination. The same
// at both ends: the source serves pages, the destination places them; the data plane does either, and this class knows
// how it stands and brings its flow up again. It needs no QEMU.
// Threads: commit .. finish on the VM's queue, blocking on the data plane; on_dataplane_event() and lost() in the data
// plane client's thread; status() from any. Failure: an Error of the data plane, passed on; nothing here gives up.
//
// The guest's pages are safe whoever dies, as each is somewhere in memory that no process of ours owns alone:
//
//   killed                      | source                            | destination
//   ----------------------------|-----------------------------------|-------------------------------------------------
//   bridge                      | journal: kPulling; the data plane | the same; QEMU runs on, faults are answered
//                               | serves on; the new bridge looks   |
//   data plane, before          | QEMU holds the RAM; attached      | QEMU holds the RAM, what is missing is in the
//   CommitMigration             | again, PrepareResume takes it up  | data plane's file; CONTINUING, PrepareResume
//   data plane, after it        | the RAM files and the image's     | the same; faults wait meanwhile
//                               | record; PrepareResume finds them  |
//   QEMU                        | ours to end, once the memory      | the guest has ended: ENDED, nobody needs the
//                               | serves without it                 | source any more
//   control plane               | everything goes on                | everything goes on; a cut flow waits for it

#include <functional>
#include <mutex>
#include <optional>

#include "qemu-bridge/agent/dataplane_client.h"
#include "qemu-bridge/agent/journal.h"
#include "qemu-bridge/agent/migration_reports.h"

namespace godwit::bridge {

class Pull {
 public:
  using Error = dataplane::v1::Error;

  /// The record names the migration and outlives this. `on_change`: status() tells something new, from any thread.
  Pull(DataplaneClient& dataplane, const VmRecord& record, std::function<void(controlplane::v1::MigrationEvent)> emit,
       std::function<void()> on_change);

  /// Tells the data plane that the store has said so. NO_SUCH_MIGRATION: it was restarted; prepare_resume() takes the
  /// migration up then.
  std::expected<dataplane::v1::CommitMigrationResult, Error> commit(std::uint64_t ownership);
  /// Source: the memory serves without QEMU. After that nothing but finish() may touch the RAM files.
  [[nodiscard]] bool secured() const;

  std::expected<dataplane::v1::PrepareResumeResult, Error> prepare_resume(dataplane::v1::Encryption encryption);
  std::expected<void, Error> resume(const controlplane::v1::ResumeTransfer& command);
  std::expected<dataplane::v1::FinishMigrationResult, Error> finish(dataplane::v1::Outcome outcome);

  /// After a restart of either daemon: takes the state that the data plane has. False: it knows nothing of it, or is
  /// down.
  bool look();
  void lost(const std::string& reason);
  void on_dataplane_event(const dataplane::v1::Event& event);
  /// None until the data plane has been heard.
  [[nodiscard]] std::optional<dataplane::v1::PagingStatus> status() const;

 private:
  void report(const dataplane::v1::MigrationStats& stats);

  DataplaneClient& dataplane_;
  const VmRecord& record_;
  const Id128 id_;
  const std::function<void(controlplane::v1::MigrationEvent)> emit_;
  const std::function<void()> on_change_;

  mutable std::mutex mutex_;
  dataplane::v1::PagingStatus status_;
  bool heard_ = false;
  bool lost_meanwhile_ = false;  // since CommitMigration was sent
  bool secured_ = false;
};

}  // namespace godwit::bridge
