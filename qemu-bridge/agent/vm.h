#pragma once
// Vm: one guest on this host, from its start, attachment or arrival until it is gone: its QEMU, its monitor, its place
// in the journal and the migration it takes part in. Owns a queue: every command, and every event that needs a
// decision, is one task there, so commands of one VM never overlap. Threads: all public functions from any;
// on_dataplane_event() is passed on in the caller's thread, without blocking. The owner destroys a Vm from another
// thread than its queue, after on_gone told that it is over. Failure: each command is answered by one Error; what it
// had begun is undone (QEMU that it started is ended).

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>

#include "config/bridge_config.h"
#include "qemu-bridge/agent/access_scans.h"
#include "qemu-bridge/agent/control_session.h"
#include "qemu-bridge/agent/destination_migration.h"
#include "qemu-bridge/agent/guest_attachment.h"
#include "qemu-bridge/agent/pull.h"
#include "qemu-bridge/agent/serial_queue.h"
#include "qemu-bridge/agent/source_migration.h"

namespace godwit::bridge {

using AgentResult = std::expected<controlplane::v1::AgentReply, dataplane::v1::Error>;
using Reply = std::function<void(AgentResult)>;

struct VmServices {
  const config::BridgeConfig& config;
  DataplaneClient& dataplane;
  Journal& journal;
  std::function<void(controlplane::v1::FromAgent, ControlSession::Delivery)> send;
  std::function<void(const Id128& uuid)> on_gone;  // from the queue; the Vm is to be destroyed
  std::function<void()> on_change;                 // what running() tells has changed
  std::function<std::uint64_t()> promised_bytes = [] { return std::uint64_t{0}; };  // lent to others, not used yet
};

class Vm {
 public:
  Vm(VmServices services, VmRecord record);
  ~Vm();
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  void start(Reply reply);
  void attach(Reply reply);
  void stop(std::uint64_t ownership, Reply reply);
  void prepare_source(const controlplane::v1::PrepareSource& command, Reply reply);
  void prepare_destination(const controlplane::v1::PrepareDestination& command, Reply reply);
  void start_transfer(const controlplane::v1::StartTransfer& command, Reply reply);
  void switch_over(Reply reply);
  void switch_to_postcopy(Reply reply);
  void prepare_resume(const controlplane::v1::PrepareResume& command, Reply reply);
  void resume_transfer(const controlplane::v1::ResumeTransfer& command, Reply reply);
  void outcome(const controlplane::v1::Outcome& outcome, Reply reply);
  void split_guest(const controlplane::v1::SplitGuest& command, Reply reply);
  void end_split(const controlplane::v1::EndSplit& command, Reply reply);
  void prepare_sub(const controlplane::v1::PrepareSub& command, Reply reply);
  void start_sub(const controlplane::v1::StartSub& command, Reply reply);

  /// Which parts of its memory are hot.
  void heat(std::uint32_t cells, Reply reply);
  /// Takes over what an earlier run of the bridge left, by the record.
  void recover();

  void on_dataplane_up(const dataplane::v1::HelloResult& hello);
  void on_dataplane_down(const std::string& reason);
  void on_dataplane_event(const dataplane::v1::Event& event);
  /// With each heartbeat; nullptr: the data plane does not answer.
  void on_dataplane_status(const dataplane::v1::Status* status);
  /// More of it is here than its budget, and becomes less. A migration may wait for the end of that.
  [[nodiscard]] bool shrinks() const;
  void on_gathered();
  /// Somebody waits for so many pages that no store can give; 0: not any more.
  void on_guest_blocked(std::uint64_t pages);
  /// A new stream to the control plane: repeat what it may have missed, ask what is undecided.
  void on_registered();
  /// Once a second: brings what the store decided into effect, connects a lost monitor again, asks while in doubt.
  void tick();
  /// The store says that the guest is another host's, by a higher ownership: it must not run here.
  void fence(std::uint64_t ownership);

  [[nodiscard]] const Id128& uuid() const { return uuid_; }
  [[nodiscard]] controlplane::v1::RunningVm running() const;
  /// Nil when none is under way.
  [[nodiscard]] Id128 migration_id() const;

 private:
  using Error = dataplane::v1::Error;

  // vm.cpp
  std::expected<void, Error> save();
  void publish();
  void run_command(std::function<AgentResult()> command, Reply reply);
  AgentResult do_start();
  AgentResult do_attach();
  AgentResult do_stop(std::uint64_t ownership);
  std::expected<void, Error> launch_qemu(StartKind kind, const std::string& machine);
  std::expected<void, Error> connect_monitor(std::chrono::milliseconds time);
  /// Where write protection would miss writes only hashes track: takes them, or refuses if another tracker is forced.
  std::expected<void, Error> require_visible_writes(const QemuFacts& facts);
  std::expected<QemuFacts, Error> inspect();
  std::expected<Attachment, Error> attach_memory(AttachKind kind, Paging paging);
  void on_qmp_event(const QmpEvent& event);
  void watch_process();
  void on_exit();
  void end_qemu();
  /// As the data plane has it, or is about to; nothing if it does not, or has another QEMU's.
  std::optional<dataplane::v1::GuestStatus> find_attached();
  void detach_guest();
  void remove_files();
  void remove_pin();
  void gone();
  void do_recover();

  // vm_migration.cpp
  AgentResult do_prepare_source(const controlplane::v1::PrepareSource& command);
  AgentResult do_prepare_destination(const controlplane::v1::PrepareDestination& command);
  AgentResult do_start_transfer(const controlplane::v1::StartTransfer& command);
  AgentResult do_switch_over();
  std::expected<void, Error> make_room(std::uint64_t budget_bytes, std::uint64_t saved_bytes);
  std::uint64_t choose_ram(const controlplane::v1::PrepareDestination& command);
  void drop_images();
  void use_ram_of(const dataplane::v1::Image& image);
  std::vector<dataplane::v1::Image> images_here();
  void fail_migration(const std::string& reason);
  void do_tick();

  // vm_outcome.cpp
  AgentResult do_outcome(const controlplane::v1::Outcome& outcome);
  AgentResult settle();
  void take_decision_from_journal();
  [[nodiscard]] bool retires() const;
  void settle_source(bool committed, std::uint64_t ownership);
  void settle_destination(bool committed, std::uint64_t ownership);

  // vm_pull.cpp
  [[nodiscard]] bool serves_or_pulls() const;
  [[nodiscard]] bool is_source() const;
  [[nodiscard]] bool arrives() const;
  [[nodiscard]] bool may_lack_pages() const;
  void reattach();
  std::expected<void, Error> check_can_serve() const;
  std::expected<void, Error> check_can_page() const;
  AgentResult settle_pulling(std::uint64_t ownership);
  AgentResult serve(std::uint64_t ownership);
  AgentResult pull(std::uint64_t ownership);
  AgentResult finish_pull(bool complete);
  AgentResult do_prepare_resume(const controlplane::v1::PrepareResume& command);
  AgentResult do_resume_transfer(const controlplane::v1::ResumeTransfer& command);
  void release_qemu();
  bool outlive_qemu(const std::string& why);
  void own_guest(std::uint64_t ownership, MigrationPhase phase);
  void recover_pull();
  void settle_without_qemu(bool committed, std::uint64_t ownership);
  void make_pull();
  void drop_pull();

  // vm_split.cpp
  AgentResult do_split_guest(const controlplane::v1::SplitGuest& command);
  AgentResult do_end_split(const controlplane::v1::EndSplit& command);
  AgentResult call_for_sub(dataplane::v1::ToDataplane request);
  std::expected<void, Error> check_can_split();
  std::expected<void, Error> make_evictable();
  std::expected<void, Error> note_kept_stores(const controlplane::v1::PrepareDestination& command);
  std::expected<void, Error> give_pin();
  [[nodiscard]] std::unexpected<Error> pin_error(const char* what) const;
  [[nodiscard]] std::expected<UniqueFd, Error> open_pin() const;
  std::expected<std::pair<UniqueFd, UniqueFd>, Error> pin_pipe();
  /// Tells the data plane what the record says.
  std::expected<void, Error> tell_split();
  void take_up_split();
  void look_gathered();
  void emit_ended(const std::string& why);

  // vm_pause.cpp
  void pause_or_go_on();
  void pause_for_pages();
  void go_on_with_pages();

  // vm_heat.cpp
  void look_at_accesses();
  AgentResult do_heat(std::uint32_t cells);

  void ask_outcome();
  void make_migration();
  void drop_migration();
  void emit(controlplane::v1::MigrationEvent event);
  void emit_failure(controlplane::v1::MigrationEvent event, const char* what_next);
  GuestServices guest_services();

  VmServices services_;
  const Id128 uuid_;
  HostPaths paths_;

  // Of the queue's thread.
  VmRecord record_;
  std::unique_ptr<QmpClient> qmp_;
  dataplane::v1::AttachGuestResult attached_;
  std::optional<UserIds> user_;
  std::optional<controlplane::v1::Outcome> decided_;  // the store's word, until it is in effect
  std::string told_failure_;                          // the cause last told, until the control plane may have missed it
  std::string interrupted_by_ = "the bridge of this host was restarted";
  bool in_doubt_ = false;     // contact or a process was lost in a migration: only the store knows how it stands
  bool gather_told_ = false;  // to the data plane that runs now
  bool over_ = false;
  bool gone_ = false;
  std::string qemu_version_;
  std::unique_ptr<ProcessWatch> watch_;
  AccessScans accesses_;

  // The migration is made and dropped in the queue, under this lock; event handlers use it under this lock.
  mutable std::mutex migration_mutex_;
  std::unique_ptr<SourceMigration> source_;
  std::unique_ptr<DestinationMigration> destination_;
  std::shared_ptr<Pull> pull_;                                   // from PULLING on; events go to it, then
  std::optional<controlplane::v1::MigrationEvent> handed_over_;  // RESUMED or RETIRED, told again with PULLING

  mutable std::mutex summary_mutex_;
  controlplane::v1::RunningVm summary_;
  Id128 summary_migration_;
  std::string run_state_ = "prelaunch";
  std::optional<dataplane::v1::SplitStatus> split_status_;
  unsigned stalled_beats_ = 0;                   // since it shrank
  std::optional<std::uint64_t> blocking_pages_;  // as this process was told last

  std::atomic<bool> tick_waits_ = false;

  SerialQueue queue_;  // last: its thread ends first
};

}  // namespace godwit::bridge
