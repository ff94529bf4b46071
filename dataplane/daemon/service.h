#pragma once
// What the bridge may ask: every request of dataplane.proto, against the guests and migrations of this host. Control
// thread only; what takes long runs as jobs, what concerns lanes on the lcore, and both come back through the control
// inbox. Owns guests, sessions and flow ids. Failure: each request is answered by exactly one Reply; none brings the
// daemon down.

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/uuid.h"
#include "dataplane/daemon/data_path.h"
#include "dataplane/daemon/figures.h"
#include "dataplane/daemon/flows.h"
#include "dataplane/daemon/guest.h"
#include "dataplane/daemon/live_split.h"
#include "dataplane/daemon/migration_session.h"
#include "dataplane/daemon/requests.h"
#include "dataplane/daemon/service_options.h"
#include "dataplane/daemon/store_service.h"

namespace godwit::daemon {

/// A store of a split guest, as its main host's control thread sees it.
struct SplitSub {
  split::SubId sub = 0;
  transport::Cipher cipher = transport::Cipher::kAes128Gcm;
  std::uint32_t flow_id = 0;  // 0: not prepared
  bool changing = false;      // its former flow is being given up
  bool started = false;
  std::string start_request;
  transport::Secret secret;
  std::string reason = "not prepared yet";
};
struct SplitSession {
  std::map<Id128, SplitSub> subs;
  bool busy = false;  // a job of SplitGuest or of the end is under way
};

class Service {
 public:
  using Respond = std::function<void(api::Reply)>;

  /// `emit` sends an event to whatever bridge is connected; `watch` adds a pidfd to the control thread's epoll.
  Service(ServiceOptions options, Images& images, Inbox& control, DataPath& data_path,
          std::function<void(const api::Event&)> emit, std::function<void(int)> watch);
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  void handle(api::ToDataplane request, std::vector<UniqueFd> descriptors, Respond respond);
  /// A watched pidfd has become readable: its QEMU is gone.
  void on_process_exit(int pidfd);
  /// Any thread, as long as the service lives.
  [[nodiscard]] const FigureBook& figures() const { return figures_; }

 private:
  /// Of a pidfd.
  [[nodiscard]] static bool runs(const UniqueFd& process);

  struct Entry {
    enum class State : std::uint8_t { kAttaching, kReady, kLeaving };
    State state = State::kAttaching;
    std::string request;          // serialised, to know a repeated one
    std::uint64_t ownership = 0;  // as long as there is no guest
    std::uint64_t bytes_total = 0;
    std::int32_t qemu_pid = 0;
    std::vector<std::function<void()>> when_gone;  // who has asked that it be forgotten
    api::AttachGuestResult result;
    std::vector<Respond> waiting;
    std::unique_ptr<Guest> guest;
    UniqueFd process;
    bool lost = false;                              // QEMU has exited
    Id128 migration;                                // nil: none
    bool scanning = false;                          // its accesses; no migration may begin meanwhile
    std::vector<std::function<void()>> after_scan;  // requests that wait for that
    std::uint64_t access_scans = 0;
    std::uint64_t accessed_pages = 0;  // found by the last of them
    std::unique_ptr<Worker> worker;

    [[nodiscard]] bool qemu_runs() const { return runs(process); }
  };

  /// What was known of a guest that was detached while its QEMU runs on: it may be attached again, so that it can be
  /// split.
  struct KeptAccesses {
    UniqueFd process;
    std::int32_t qemu_pid = 0;
    pages::AccessHistory history;
    api::AccessSource source = api::ACCESS_UNKNOWN;
    std::uint64_t accessed_pages = 0;
  };

  void hello(const api::Hello& request, const Respond& respond);
  void attach_guest(const api::AttachGuest& request, std::vector<UniqueFd> descriptors, const Respond& respond);
  void attached(const Id128& vm, std::expected<std::unique_ptr<Guest>, ApiError> guest);
  void attach_ended(const Id128& vm, Entry& entry);
  void keep_accesses(const Id128& vm, KeptAccesses kept);
  void give_accesses_back(const Id128& vm, Entry& entry);
  void detach_guest(const api::DetachGuest& request, const Respond& respond);
  void prepare(const api::PrepareMigration& request, const Respond& respond);
  void prepare_destination(MigrationSession& preparing, Entry& entry, const std::optional<Id128>& wanted);
  void start(api::StartMigration& request, const Respond& respond);
  void guest_stopped(const api::GuestStopped& request, const Respond& respond);
  void device_state(const std::string& migration_id, std::string data, bool end, const Respond& respond);
  void cancel(const api::CancelMigration& request, const Respond& respond);
  void finish(const api::FinishMigration& request, const Respond& respond);
  void list_images(const Respond& respond);
  void drop_image(const api::DropImage& request, const Respond& respond);
  void make_room(const api::MakeRoom& request, const Respond& respond);
  void get_status(const Respond& respond);

  // ---- which pages are hot (service_heat.cpp) ----
  void note_accesses(const api::NoteAccesses& request, const Respond& respond);
  void get_heat(const api::GetHeat& request, const Respond& respond);
  [[nodiscard]] std::optional<ApiError> refuse_scan(const Accesses& accesses, const Entry& entry) const;
  /// Now, or when the scan of this VM that is under way has ended.
  void after_scan(const std::string& vm_uuid, std::function<void()> then);

  // ---- while pages are missing (service_paging.cpp) ----
  void switch_to_postcopy(const api::SwitchToPostcopy& request, const Respond& respond);
  void commit(const api::CommitMigration& request, const Respond& respond);
  struct Commitment;
  void run_commit_job(const std::shared_ptr<Commitment>& commitment);
  void committed(const std::shared_ptr<Commitment>& commitment);
  void prepare_resume(const api::PrepareResume& request, const Respond& respond);
  void give_up_flow(MigrationSession& session);
  void resume_without_session(const api::PrepareResume& request, const Id128& id, const Respond& respond);
  void resume_from_image(const api::PrepareResume& request, const Id128& id, const Respond& respond);
  MigrationSession& take_up(const api::PrepareResume& request, const Id128& id, Entry& entry);
  void resume_prepared(MigrationSession& session);
  void resume(api::ResumeMigration& request, const Respond& respond);
  /// What a part tells once it is committed, or on the way there.
  void on_paging_event(MigrationSession& session, api::Event event);
  /// From here on no lcore reads the faults of this guest, and nobody is told what of it is missing.
  void end_paging(const Id128& vm, std::function<void()> then);
  void watch_paging(const Id128& vm, const Entry& entry);

  // ---- a guest that is split (service_split.cpp) ----
  struct Splitting;
  void split_guest(const api::SplitGuest& request, std::vector<UniqueFd> descriptors, const Respond& respond);
  void run_split_job(Splitting& splitting, Guest& guest);
  void split_done(Splitting& splitting);
  void leave_out(const std::shared_ptr<Splitting>& splitting);
  void respond_split(const Splitting& splitting);
  SplitTold split_told(const Id128& vm);
  std::expected<std::pair<SplitSession*, SplitSub*>, ApiError> find_sub(const std::string& vm_uuid,
                                                                        const std::string& store_id,
                                                                        const char* request);
  void prepare_sub(const api::PrepareSub& request, const Respond& respond);
  void start_sub(api::StartSub& request, const Respond& respond);
  void release_flow(std::uint32_t flow_id, std::function<void()> then);
  void gathered(const Id128& vm);
  void end_split(const Id128& vm, std::function<void()> then);
  /// It is another host's now.
  void give_up_split(const Id128& vm);
  void fill_status(const Id128& vm, api::SplitStatus& status) const;

  // ---- finishing, in the order of its steps (service_finish.cpp) ----
  struct Ending;
  void take_flow(const std::shared_ptr<Ending>& ending);
  void run_finish_job(const std::shared_ptr<Ending>& ending);
  void finish_pulled(Ending& ending);
  void finished(const std::shared_ptr<Ending>& ending);
  [[nodiscard]] std::optional<ApiError> refuse_paging_end(const api::FinishMigration& request,
                                                          const MigrationSession& migration) const;
  void finish_image(const Id128& id, bool committed, const Respond& respond);

  /// `then` may be null.
  void forget_guest(const Id128& vm, std::function<void()> then);
  void close_guest(const Id128& vm);
  void gone(const Id128& vm);
  std::expected<MigrationSession*, ApiError> find_session(const std::string& migration_id, api::Role role);
  std::expected<Entry*, ApiError> find_guest(const Id128& vm, std::uint64_t ownership);
  void prepared(MigrationSession& session);
  [[nodiscard]] std::optional<ApiError> refuse_while_split_changes(const Id128& vm) const;
  void hold_stores(const MigrationSession& session, Entry& entry);
  static bool stop_holding(MigrationSession& migration);
  /// A flow of this session to that peer, on which its part starts or goes on. `respond`: once it is on its way.
  void launch(MigrationSession& session, Start start, const Respond& respond);
  [[nodiscard]] FlowConfig migration_flow_config(const MigrationSession& session, const Start& start,
                                                 const wire::IpAddress& local) const;
  [[nodiscard]] std::shared_ptr<const port::Loan> lend(const LiveGuest& guest);
  [[nodiscard]] std::uint64_t guest_bytes() const;
  /// After a guest has come, gone, or begun or ended a migration.
  void publish_guests();
  void emit_failure(const Id128& migration, api::Error::Code code, const std::string& text);
  EventRelay::Deliver deliver_to(const Id128& migration);

  const ServiceOptions options_;
  Images& images_;
  Inbox& control_;
  DataPath& data_path_;
  const std::function<void(const api::Event&)> emit_;
  const std::function<void(int)> watch_;
  FlowIds flow_ids_;
  FigureBook figures_;
  std::map<Id128, Entry> guests_;
  std::map<Id128, KeptAccesses> kept_accesses_;
  std::map<Id128, std::unique_ptr<MigrationSession>> sessions_;
  std::map<Id128, SplitSession> splits_;                                          // by VM
  std::deque<std::pair<Id128, api::Reply>> finished_;                             // the latest, to answer again
  std::map<Id128, std::vector<std::pair<api::PrepareResume, Respond>>> opening_;  // images that are to serve again
  std::unique_ptr<Worker> disk_;  // for image requests, and what else no guest waits for
  StoreService stores_;
};

/// The bytes in a message; what serialising and sockets have held is overwritten in its time.
void wipe_secret(std::string& secret);
/// A Reply that says only what went wrong.
api::Reply refusal(const ApiError& error);

}  // namespace godwit::daemon
