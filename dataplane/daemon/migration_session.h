#pragma once
// One migration as the control thread sees it, from PrepareMigration to FinishMigration, and the relay that carries its
// events there. The session is the control thread's; the relay is called on the lcore and outlives the flow. Neither
// touches guest memory.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/uuid.h"
#include "dataplane/daemon/inbox.h"
#include "dataplane/daemon/requests.h"
#include "dataplane/transfer/migration.h"

namespace godwit::daemon {

/// Turns what a migration says on its lcore into API events, in order, on the control thread.
class EventRelay final : public transfer::MigrationEvents {
 public:
  /// Runs on the control thread.
  using Deliver = std::function<void(api::Event event)>;
  /// `paging`: of a destination where pages may be missing, else null.
  EventRelay(const Id128& migration_id, std::shared_ptr<const LivePaging> paging, Inbox& control, Deliver deliver)
      : migration_id_(migration_id.to_bytes()),
        paging_(std::move(paging)),
        control_(control),
        deliver_(std::move(deliver)) {}

  void on_progress(const transfer::Stats& stats) override;
  void on_ready_to_switch(Duration estimated_downtime) override;
  void on_source_done(const transfer::Stats& stats) override;
  void on_device_state(std::span<const std::byte> data, bool end) override;
  void on_memory_guarded() override;
  void on_memory_ready(std::uint64_t pages_checked) override;
  void on_failed(transfer::Failure failure, const std::string& text) override;
  void on_connection_lost(const std::string& text) override;
  void on_complete(const transfer::Stats& stats, bool equal) override;

 private:
  void post(api::Event event);
  void fill(const transfer::Stats& stats, api::MigrationStats& out);

  const std::string migration_id_;
  const std::shared_ptr<const LivePaging> paging_;
  Inbox& control_;
  const Deliver deliver_;
  std::uint64_t faults_before_ = 0, elapsed_us_before_ = 0;  // at the last look
};

struct MigrationSession {
  enum class State : std::uint8_t {
    kPreparing,  // a job is to end first; `waiting` is answered then
    kPrepared,
    kStarted,     // the flow is on its lcore
    kCommitting,  // CommitMigration is being obeyed
    kWithout,     // committed, and no flow: ResumeMigration brings one
    kFinishing,   // its jobs and its flow are being ended
  };

  /// A source's memory may be needed although its QEMU has exited: the destination may run the guest already.
  [[nodiscard]] bool outlives_qemu() const {
    return role == api::ROLE_SOURCE && (committed || (device_state_ended && mode != transfer::Mode::kPrecopy));
  }

  /// Once committed.
  [[nodiscard]] api::PagingStatus paging_status() const;

  Id128 id;
  Id128 vm_uuid;
  api::Role role = api::ROLE_NONE;
  State state = State::kPreparing;
  std::uint64_t ownership = 0;
  std::uint32_t epoch_base = 0;
  std::uint32_t epoch_count = 0;
  std::uint32_t flow_id = 0;
  bool failed = false;
  transfer::Mode mode = transfer::Mode::kPrecopy;
  bool keeps_stores = false;       // of a guest that is split
  std::uint64_t budget_pages = 0;  // destination that keeps stores
  // ---- pages may come after the guest ----
  bool device_state_ended = false;  // source
  bool memory_ready = false;        // destination
  bool committed = false;           // CommitMigration is obeyed
  bool securing = false;            // committed as said, but no record names the memory yet: QEMU must stay
  api::CommitMigrationResult commit_result;
  std::uint32_t epoch_next = 0;         // from then on
  std::string lost;                     // why no pages flow; empty: they do, or none are missing
  std::optional<api::Event> complete;   // as it is to be told
  bool equal = true;                    // what came is what was sent
  api::PagingStats paging;              // the latest that was told
  std::unique_ptr<MigrationPart> part;  // kWithout; null: of a former daemon, or it had failed

  /// Destination: the image's table, until the flow takes it.
  std::optional<pages::GenerationTable> arriving;
  std::string reuse_reason;
  transport::Cipher cipher = transport::Cipher::kAes128Gcm;
  /// As it came, its secret apart: asked again, the same is answered alike.
  std::string start_request;
  transport::Secret secret;
  api::PrepareMigrationResult prepared;
  std::unique_ptr<EventRelay> relay;
  std::vector<std::function<void(api::Reply)>> waiting;  // for the end of what is under way
};

}  // namespace godwit::daemon
