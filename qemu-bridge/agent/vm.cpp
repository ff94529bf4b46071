#include "qemu-bridge/agent/vm.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "qemu-bridge/agent/definition.h"
#include "qemu-bridge/agent/ram_files.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::AgentReply;
using controlplane::v1::MigrationEvent;
using controlplane::v1::RunningVm;

constexpr std::chrono::milliseconds kStartTime{20'000};
constexpr std::chrono::milliseconds kAdoptTime{3'000};
constexpr std::chrono::milliseconds kConnectAgain{20};
constexpr std::chrono::milliseconds kDataplaneTime{3'000};  // it may be starting like us
constexpr std::chrono::milliseconds kExitTime{10'000};

dataplane::v1::Error just_ended() {
  return make_error(dataplane::v1::Error::NO_SUCH_VM, "this VM has just ended here");
}

/// Given even if the queue ends with its VM before the command's turn comes: whoever asked waits for it.
class Answer {
 public:
  explicit Answer(Reply reply) : reply_(std::move(reply)) {}
  ~Answer() {
    if (reply_) {
      reply_(std::unexpected(just_ended()));
    }
  }
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;
  void give(AgentResult result) { std::exchange(reply_, nullptr)(std::move(result)); }

 private:
  Reply reply_;
};

/// The run state after an event; "" when the event does not change it.
std::string run_state_after(const std::string& event) {
  if (event == "STOP") {
    return "paused";
  }
  return event == "RESUME" ? "running" : event == "SHUTDOWN" ? "shutdown" : "";
}

/// While the data plane tells nothing; and what of was gathered.
void fill(dataplane::v1::SplitStatus& status, const SplitRecord& record) {
  status.set_problem(record.gathered ? "" : "the data plane of this host is down, or does not keep to the budget yet");
  for (const auto& sub : record.subs) {
    status.add_subs()->set_store_id(sub.store_id.to_bytes());
  }
}

}  // namespace

Vm::Vm(VmServices services, VmRecord record)
    : services_(std::move(services)),
      uuid_(record.definition.uuid),
      paths_(host_paths(services_.config, uuid_)),
      record_(std::move(record)),
      accesses_(services_.config.heat) {
  paths_.ram_files = record_.ram_files;
  publish();
}

Vm::~Vm() {
  queue_.stop();
  drop_migration();
  drop_pull();
  watch_.reset();
  qmp_.reset();
}

RunningVm Vm::running() const {
  std::shared_ptr<Pull> pull;
  {
    const std::lock_guard lock(migration_mutex_);
    pull = pull_;
  }
  const std::lock_guard lock(summary_mutex_);
  RunningVm out = summary_;
  out.set_run_state(run_state_);
  if (out.has_split() && !out.gathered() && split_status_) {
    *out.mutable_split() = *split_status_;
  }
  if (const auto status = pull ? pull->status() : std::nullopt) {
    *out.mutable_paging() = *status;
  }
  return out;
}

Id128 Vm::migration_id() const {
  const std::lock_guard lock(summary_mutex_);
  return summary_migration_;
}

void Vm::publish() {
  RunningVm out;
  out.set_uuid(uuid_.to_bytes());
  out.set_name(record_.definition.name);
  out.set_image_id(record_.image_id.to_bytes());
  out.set_ownership(record_.ownership);
  *out.mutable_definition() = to_proto(record_.definition);
  out.set_tracker(attached_.tracker());
  out.set_pid(record_.process.pid);
  if (record_.migration) {
    out.set_migration_id(record_.migration->id.to_bytes());
    out.set_role(record_.migration->role == MigrationRole::kSource ? dataplane::v1::ROLE_SOURCE
                                                                   : dataplane::v1::ROLE_DESTINATION);
  }
  const bool split_here = record_.split && !arrives();
  out.set_gathered(split_here && record_.split->gathered);
  if (split_here) {
    fill(*out.mutable_split(), *record_.split);
  }
  {
    const std::lock_guard lock(summary_mutex_);
    summary_ = std::move(out);
    summary_migration_ = record_.migration ? record_.migration->id : Id128{};
  }
  services_.on_change();
}

std::expected<void, dataplane::v1::Error> Vm::save() {
  publish();
  if (auto saved = services_.journal.save(record_); !saved) {
    spdlog::error("VM {}: journal: {}", record_.definition.name, saved.error().text());
    return std::unexpected(make_error(Error::KERNEL, "journal: " + saved.error().text()));
  }
  return {};
}

void Vm::run_command(std::function<AgentResult()> command, Reply reply) {
  auto answer = std::make_shared<Answer>(std::move(reply));
  queue_.post([this, command = std::move(command), answer = std::move(answer)] {
    auto result = over_ ? std::unexpected(just_ended()) : command();
    if (over_) {
      gone();
    }
    answer->give(std::move(result));
  });
}

void Vm::start(Reply reply) {
  run_command([this] { return do_start(); }, std::move(reply));
}

void Vm::attach(Reply reply) {
  run_command([this] { return do_attach(); }, std::move(reply));
}

void Vm::stop(std::uint64_t ownership, Reply reply) {
  run_command([this, ownership] { return do_stop(ownership); }, std::move(reply));
}

// ---- start, attach, stop
// ---------------------------------------------------------------------------------------------

std::expected<void, dataplane::v1::Error> Vm::launch_qemu(StartKind kind, const std::string& machine) {
  const auto bad = [](const std::string& text) { return std::unexpected(make_error(Error::BAD_REQUEST, text)); };
  Launch launch;
  if (!record_.definition.user.empty()) {
    auto user = find_user(record_.definition.user);
    if (!user) {
      return bad(user.error());
    }
    user_ = launch.user = *user;
    launch.user_name = record_.definition.user;
  }
  if (auto made = make_run_dir(paths_, user_); !made) {
    return bad(made.error());
  }
  const auto old_files = kind == StartKind::kIncoming ? OldFiles::kKeep : OldFiles::kReplace;
  if (auto made = make_ram_files(record_.definition, paths_, user_, old_files); !made) {
    return bad(made.error());
  }
  record_.definition.accel = decide_accel(record_.definition.accel);
  record_.ours = true;
  record_.qmp_path = paths_.qmp_socket();
  record_.machine_type = machine;
  launch.argv = qemu_arguments(record_.definition, paths_, machine, record_.definition.accel, kind);
  launch.log_file = paths_.log_file();
  if (auto saved = save(); !saved) {
    return saved;
  }
  auto process = bridge::launch(launch);
  if (!process) {
    return std::unexpected(make_error(Error::KERNEL, process.error()));
  }
  record_.process = *process;
  if (auto saved = save(); !saved) {
    return saved;
  }
  return connect_monitor(kStartTime);
}

std::expected<void, dataplane::v1::Error> Vm::connect_monitor(std::chrono::milliseconds time) {
  const auto until = std::chrono::steady_clock::now() + time;
  while (true) {
    auto client = QmpClient::connect(
        record_.qmp_path,
        {.on_event = [this](const QmpEvent& event) { on_qmp_event(event); }, .on_closed = [](const QmpError&) {}});
    if (client) {
      qmp_ = std::move(*client);
      break;
    }
    const bool started = record_.process.pid > 0;
    if (started && !is_alive(record_.process)) {
      return std::unexpected(make_error(Error::BAD_REQUEST, "QEMU ended: " + log_tail(paths_.log_file())));
    }
    // A QEMU just started has not made its socket yet: nothing tells when, so look again.
    if (!started || client.error().code != QmpErrorCode::kConnect || std::chrono::steady_clock::now() > until) {
      return std::unexpected(make_error(Error::BAD_REQUEST, client.error().text));
    }
    std::this_thread::sleep_for(kConnectAgain);
  }
  // The monitor's socket was made by QEMU itself, unless a manager passed it one: then the pid is the manager's.
  const auto peer = identify(qmp_->peer_pid());
  if (record_.process.pid > 0 ? peer != record_.process : !peer) {
    return std::unexpected(make_error(Error::BAD_REQUEST, "the QMP socket " + record_.qmp_path + " is served by pid " +
                                                              std::to_string(qmp_->peer_pid()) +
                                                              ", which is not the QEMU expected"));
  }
  record_.process = *peer;
  return {};
}

std::expected<void, dataplane::v1::Error> Vm::require_visible_writes(const QemuFacts& facts) {
  std::string why;
  if (!facts.direct_io_node.empty()) {
    why = direct_io_advice(facts.direct_io_node);
  } else if (facts.has_balloon && std::ranges::any_of(record_.definition.regions, [](const auto& region) {
               return region.backing == config::Backing::kHugetlbfs;
             })) {
    why =
        "what a balloon gives back of hugetlbfs RAM is not announced: leave the balloon out, use tmpfs RAM, or attach "
        "the VM with tracker hashes";
  }
  if (why.empty() || record_.tracker == dataplane::v1::TRACKER_HASHES) {
    return {};
  }
  if (record_.tracker != dataplane::v1::TRACKER_AUTO) {
    return std::unexpected(make_error(Error::BAD_REQUEST, why));
  }
  spdlog::warn("VM {}: {}; tracker hashes is taken", record_.definition.name, why);
  record_.tracker = dataplane::v1::TRACKER_HASHES;
  return {};
}

std::expected<QemuFacts, dataplane::v1::Error> Vm::inspect() {
  auto facts = inspect_qemu(*qmp_);
  if (!facts) {
    return std::unexpected(make_error(Error::BAD_REQUEST, facts.error().text));
  }
  auto machines = query_machines(*qmp_);
  if (!machines) {
    return std::unexpected(make_error(Error::BAD_REQUEST, machines.error().text));
  }
  if (auto same = compare_with_definition(*facts, record_.definition, *machines); !same) {
    return std::unexpected(make_error(Error::BAD_REQUEST, same.error().text));
  }
  if (auto seen = require_visible_writes(*facts); !seen) {
    return std::unexpected(seen.error());
  }
  record_.backends = in_order_of(record_.definition, *facts);
  record_.machine_type = facts->machine_type;
  record_.has_balloon = facts->has_balloon;
  record_.definition.accel = facts->kvm ? config::Accel::kKvm : config::Accel::kTcg;
  qemu_version_ = facts->version.text;
  {
    const std::lock_guard lock(summary_mutex_);
    run_state_ = facts->run_state;
  }
  return std::move(*facts);
}

std::expected<Attachment, dataplane::v1::Error> Vm::attach_memory(AttachKind kind, Paging paging) {
  auto attachment = attach_guest(services_.dataplane, record_, record_.backends, kind, paging);
  // Also on failure: a descriptor may have been left in QEMU.
  if (auto saved = save(); !saved) {
    return std::unexpected(saved.error());
  }
  if (attachment) {
    attached_ = attachment->result;
    publish();
  }
  return attachment;
}

AgentResult Vm::do_start() {
  const auto undo = [this](const Error& error) {
    end_qemu();
    remove_files();
    over_ = true;
    return AgentResult(std::unexpected(error));
  };
  drop_images();
  if (auto room = make_room(record_.definition.resident_budget_bytes, 0); !room) {
    return undo(room.error());
  }
  if (auto launched = launch_qemu(StartKind::kBoot, record_.definition.machine); !launched) {
    return undo(launched.error());
  }
  return do_attach();
}

AgentResult Vm::do_attach() {
  const auto undo = [this](const Error& error) {
    if (record_.ours) {
      end_qemu();
      remove_files();
    }
    if (find_attached()) {
      detach_guest();  // its answer was late, is still to come, or could not be noted
    }
    if (!record_.ours) {
      take_back_userfaultfd(record_);
    }
    over_ = true;
    return AgentResult(std::unexpected(error));
  };
  if (!qmp_) {
    if (auto connected = connect_monitor(kAdoptTime); !connected) {
      return undo(connected.error());
    }
  }
  if (auto facts = inspect(); !facts) {
    return undo(facts.error());
  }
  record_.evictable = record_.definition.resident_budget_bytes > 0;
  auto attachment = attach_memory(dataplane::v1::AttachGuest::FRESH, {.evictable = record_.evictable});
  if (!attachment) {
    return undo(attachment.error());
  }
  watch_process();
  AgentReply reply;
  auto& started = *reply.mutable_vm_started();
  started.set_uuid(uuid_.to_bytes());
  started.set_name(record_.definition.name);
  started.set_image_id(record_.image_id.to_bytes());
  *started.mutable_definition() = to_proto(record_.definition);
  started.set_tracker(attached_.tracker());
  started.set_tracker_reason(attached_.tracker_reason());
  started.set_pid(record_.process.pid);
  spdlog::info("VM {} ({}) runs here as QEMU {}, tracker {}", record_.definition.name, uuid_.text(),
               record_.process.pid, dataplane::v1::Tracker_Name(attached_.tracker()));
  return reply;
}

AgentResult Vm::do_stop(std::uint64_t ownership) {
  if (ownership != record_.ownership) {
    return std::unexpected(make_error(Error::STALE_OWNERSHIP, "StopVm: ownership " + std::to_string(ownership) +
                                                                  " is not " + std::to_string(record_.ownership)));
  }
  if (record_.migration && (!pull_ || is_source())) {
    return std::unexpected(make_error(Error::BAD_REQUEST, "StopVm: a migration of this VM is under way: cancel it"));
  }
  end_qemu();
  if (pull_) {
    static_cast<void>(pull_->finish(dataplane::v1::OUTCOME_ABANDONED));
    drop_pull();
  }
  detach_guest();
  remove_files();
  over_ = true;
  return AgentReply();
}

// ---- QEMU's life
// -----------------------------------------------------------------------------------------------------

void Vm::on_qmp_event(const QmpEvent& event) {
  spdlog::debug("VM {}: QEMU says {} {}", uuid_.text(), event.name, printable(dump_json(event.data)));
  if (const std::string state = run_state_after(event.name); !state.empty()) {
    {
      const std::lock_guard lock(summary_mutex_);
      run_state_ = state;
    }
    services_.on_change();
  }
  const std::lock_guard lock(migration_mutex_);
  if (source_) {
    source_->on_qmp_event(event);
  } else if (destination_) {
    destination_->on_qmp_event(event);
  }
}

void Vm::watch_process() {
  watch_ = std::make_unique<ProcessWatch>(record_.process, [this] {
    queue_.post([this] {
      if (!over_) {
        on_exit();
        if (over_) {
          gone();
        }
      }
    });
  });
}

/// QEMU is gone without our doing.
void Vm::on_exit() {
  const std::string tail = log_tail(paths_.log_file());
  spdlog::error("VM {}: its QEMU (pid {}) has exited{}{}", record_.definition.name, record_.process.pid,
                tail.empty() || !record_.ours ? "" : "; its log ends: ", record_.ours ? tail : "");
  const std::string why = "QEMU of this VM has exited" + (tail.empty() || !record_.ours ? "" : ": " + tail);
  if (outlive_qemu(why)) {
    return;
  }
  fail_migration(why);
  emit_ended(why);
  bool image_retained = false;
  if (pull_) {
    static_cast<void>(pull_->finish(dataplane::v1::OUTCOME_ABANDONED));
    drop_pull();
    MigrationEvent event;
    event.set_migration_id(record_.migration->id.to_bytes());
    event.set_kind(MigrationEvent::ENDED);
    event.set_text(why);
    emit(std::move(event));
  } else if (record_.migration) {
    const auto finished =
        finish_migration(services_.dataplane, record_.migration->id, dataplane::v1::OUTCOME_ABORTED, record_.ownership);
    image_retained = finished && finished->image_retained();
  }
  detach_guest();
  if (!image_retained) {
    remove_files();
  }
  drop_migration();
  over_ = true;
}

void Vm::end_qemu() {
  watch_.reset();
  const bool answers = qmp_ && !record_.paused_for_pages;
  if (answers) {
    static_cast<void>(quit(*qmp_));  // its exit tells
  }
  if (record_.process.pid > 0 && !wait_for_exit(record_.process, answers ? kExitTime : std::chrono::milliseconds(0))) {
    end_process(record_.process, std::chrono::milliseconds(0));
  }
}

void Vm::detach_guest() {
  dataplane::v1::ToDataplane request;
  request.mutable_detach_guest()->set_vm_uuid(uuid_.to_bytes());
  request.mutable_detach_guest()->set_ownership(record_.ownership);
  static_cast<void>(services_.dataplane.call(std::move(request)));  // it may have seen QEMU's end before us
}

/// Only what we made: RAM files that a retained image needs are not passed here.
void Vm::remove_files() {
  if (record_.ours) {
    remove_ram_files(record_.definition, paths_);
  }
}

void Vm::remove_pin() {
  std::error_code error;
  std::filesystem::remove(paths_.pin_pipe(), error);
}

/// Before anyone is told: whoever hears of it may send the VM back at once.
void Vm::gone() {
  if (std::exchange(gone_, true)) {
    return;
  }
  remove_pin();
  if (auto removed = services_.journal.remove(uuid_); !removed) {
    spdlog::error("VM {}: journal: {}", record_.definition.name, removed.error().text());
  }
  services_.on_gone(uuid_);
}

// ---- recovery
// --------------------------------------------------------------------------------------------------------

void Vm::recover() {
  queue_.post([this] {
    do_recover();
    if (over_) {
      gone();
    }
  });
}

void Vm::do_recover() {
  const std::string& name = record_.definition.name;
  if (record_.process.pid < 0 && record_.ours) {
    // The bridge ended between the start of QEMU and the note of its pid.
    record_.process = find_process(qmp_argument(paths_)).value_or(ProcessId{});
  }
  const bool lost = record_.process.pid > 0 && !is_alive(record_.process);
  if (lost || record_.migration) {
    services_.dataplane.wait_until_up(kDataplaneTime);  // it holds what is to be settled
  }
  if (serves_or_pulls()) {
    recover_pull();
    if (is_source() && record_.process.pid < 0) {
      return;  // its memory serves without it
    }
  }
  auto connected =
      lost ? std::unexpected(make_error(Error::NO_SUCH_VM, "its QEMU is gone")) : connect_monitor(kAdoptTime);
  if (!connected) {
    take_decision_from_journal();
    if (retires()) {
      static_cast<void>(settle());
      return;
    }
    if (record_.process.pid > 0 && is_alive(record_.process)) {
      // Somebody else holds its monitor, or it hangs: it is not ended, as its guest may run. Tried again each second.
      spdlog::error("VM {}: QEMU {} cannot be taken over: {}", name, record_.process.pid, connected.error().text());
      reattach();
      return;
    }
    spdlog::warn("VM {}: {} (while the bridge was away)", name, connected.error().text());
    on_exit();
    return;
  }
  make_migration();
  auto facts = inspect();
  if (!facts && !record_.migration) {
    spdlog::error("VM {}: {}", name, facts.error().text());
  }
  watch_process();
  static_cast<void>(save());
  spdlog::info("VM {}: QEMU {} taken over", name, record_.process.pid);
  if (record_.migration && !pull_) {
    take_decision_from_journal();
    if (decided_) {
      static_cast<void>(settle());
      return;
    }
    in_doubt_ = true;
    fail_migration(interrupted_by_);
    ask_outcome();
  }
  reattach();
  if (pull_ && is_source()) {
    static_cast<void>(serve(record_.migration->ownership_after));
  } else if (pull_ && decided_) {
    static_cast<void>(settle());
  }
}

void Vm::on_dataplane_up(const dataplane::v1::HelloResult& /*hello*/) {
  queue_.post([this] {
    reattach();
    if (pull_) {
      static_cast<void>(pull_->look());
    }
  });
}

}  // namespace godwit::bridge
