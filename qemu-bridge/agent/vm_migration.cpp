// Vm's part in migrations; see source_migration.h and destination_migration.h for what happens at each end.
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/check.h"
#include "qemu-bridge/agent/definition.h"
#include "qemu-bridge/agent/ram_files.h"
#include "qemu-bridge/agent/vm.h"

namespace godwit::bridge {

using controlplane::v1::AgentReply;
using controlplane::v1::FromAgent;
using controlplane::v1::MigrationEvent;

// ---- commands
// --------------------------------------------------------------------------------------------------------

void Vm::prepare_source(const controlplane::v1::PrepareSource& command, Reply reply) {
  run_command([this, command] { return do_prepare_source(command); }, std::move(reply));
}

void Vm::prepare_destination(const controlplane::v1::PrepareDestination& command, Reply reply) {
  run_command([this, command] { return do_prepare_destination(command); }, std::move(reply));
}

void Vm::start_transfer(const controlplane::v1::StartTransfer& command, Reply reply) {
  run_command([this, command] { return do_start_transfer(command); }, std::move(reply));
}

void Vm::switch_over(Reply reply) {
  run_command([this] { return do_switch_over(); }, std::move(reply));
}

void Vm::outcome(const controlplane::v1::Outcome& outcome, Reply reply) {
  run_command([this, outcome] { return do_outcome(outcome); }, std::move(reply));
}

AgentResult Vm::do_prepare_source(const controlplane::v1::PrepareSource& command) {
  const auto id = Id128::from_bytes(command.migration_id());
  if (!id || id->is_nil() || !qmp_) {
    return std::unexpected(make_error(Error::BAD_REQUEST, qmp_ ? "PrepareSource: migration_id is not 16 bytes"
                                                               : "PrepareSource: QEMU's monitor is not connected"));
  }
  if (command.ownership() != record_.ownership) {
    return std::unexpected(make_error(Error::STALE_OWNERSHIP, "PrepareSource: ownership " +
                                                                  std::to_string(command.ownership()) + " is not " +
                                                                  std::to_string(record_.ownership)));
  }
  if (record_.paused_for_pages) {
    return std::unexpected(make_error(
        Error::BAD_REQUEST, "PrepareSource: the VM is paused: it waits for pages that no sub host can give now"));
  }
  const bool is_split = record_.split && !record_.split->gather;
  if (command.keeps_stores() ? !is_split : record_.split.has_value()) {
    return std::unexpected(make_error(Error::BAD_REQUEST,
                                      command.keeps_stores() ? "PrepareSource: the VM is not split here, or is gathered"
                                                             : "PrepareSource: the VM is split: gather it first"));
  }
  if (record_.migration && record_.migration->id != *id) {
    return std::unexpected(make_error(
        Error::BAD_REQUEST, "PrepareSource: migration " + record_.migration->id.text() + " of this VM is under way"));
  }
  if (command.mode() != dataplane::v1::PRECOPY) {
    if (auto can = check_can_serve(); !can) {
      return std::unexpected(can.error());
    }
  }
  record_.migration = MigrationRecord{.id = *id,
                                      .role = MigrationRole::kSource,
                                      .phase = MigrationPhase::kPreparing,
                                      .may_pull = command.mode() != dataplane::v1::PRECOPY,
                                      .keeps_stores = command.keeps_stores()};
  const auto undo = [this](const Error& error) {
    drop_migration();
    record_.migration.reset();
    static_cast<void>(save());
    return AgentResult(std::unexpected(error));
  };
  if (auto saved = save(); !saved) {
    return undo(saved.error());
  }
  make_migration();
  auto prepared = source_->prepare(command);
  if (!prepared) {
    return undo(prepared.error());
  }
  AgentReply reply;
  auto& out = *reply.mutable_source_prepared();
  *out.mutable_definition() = to_proto(record_.definition);
  *out.mutable_endpoint() = prepared->endpoint();
  out.set_image_id(record_.image_id.to_bytes());
  out.set_tracker(attached_.tracker());
  out.set_tracker_reason(attached_.tracker_reason());
  out.set_qemu_version(qemu_version_);
  out.set_machine_type(record_.machine_type);
  out.set_bytes_total(bytes_total(record_.definition));
  return reply;
}

/// Within the host's memory budget and what its file systems have; retained images go only for what is short. For all
/// of the VM, or its resident budget if that is not 0, less what is saved.
std::expected<void, dataplane::v1::Error> Vm::make_room(std::uint64_t budget_bytes, std::uint64_t saved_bytes) {
  const RoomQuestion question{record_.definition, paths_, budget_bytes, services_.promised_bytes()};
  const std::uint64_t total_bytes = bytes_total(record_.definition);
  std::uint64_t bytes = budget_bytes > 0 ? std::min(budget_bytes, total_bytes) : total_bytes;
  bytes -= std::min(bytes, saved_bytes);
  const auto hello = services_.dataplane.hello();
  if (hello && hello->memory_budget_bytes() == 0) {
    bytes = bytes_short(question);
  }
  if (bytes > 0) {
    dataplane::v1::ToDataplane request;
    request.mutable_make_room()->set_bytes(bytes);
    request.mutable_make_room()->set_keep_vm_uuid(uuid_.to_bytes());
    if (auto made = services_.dataplane.call(std::move(request)); !made) {
      return std::unexpected(made.error());
    }
  }
  if (auto room = check_room(question); !room) {
    return std::unexpected(make_error(Error::NO_MEMORY, room.error()));
  }
  return {};
}

/// Takes the RAM of the image that is to be reused, or forgets what there is. Returns what it saves of the VM's size.
std::uint64_t Vm::choose_ram(const controlplane::v1::PrepareDestination& command) {
  if (!command.reuse()) {
    drop_images();
    remove_ram_files(record_.definition, paths_);
    return 0;
  }
  for (const auto& image : images_here()) {
    if (image.id().image_id() == command.image_id() && !image.in_use()) {
      use_ram_of(image);
      return std::min(image.bytes_resident(), bytes_total(record_.definition));
    }
  }
  return 0;
}

/// A VM that was attached has its RAM under a name that somebody else gave; it can be reused only in that file.
void Vm::use_ram_of(const dataplane::v1::Image& image) {
  const auto& regions = record_.definition.regions;
  if (static_cast<std::size_t>(image.ram_paths_size()) != regions.size()) {
    return;
  }
  const HostPaths usual = host_paths(services_.config, uuid_);
  for (std::size_t i = 0; i < regions.size(); ++i) {
    const std::string& path = image.ram_paths(static_cast<int>(i));
    struct stat status {};
    const bool there = ::lstat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
                       static_cast<std::uint64_t>(status.st_size) == regions[i].bytes;
    if (there && path != ram_path(usual, uuid_, regions[i])) {
      record_.ram_files[regions[i].name] = path;
    }
  }
  paths_.ram_files = record_.ram_files;
}

std::vector<dataplane::v1::Image> Vm::images_here() {
  dataplane::v1::ToDataplane list;
  list.mutable_list_images();
  std::vector<dataplane::v1::Image> found;
  if (auto images = services_.dataplane.call(std::move(list))) {
    for (auto& image : *images->mutable_list_images()->mutable_images()) {
      if (image.id().vm_uuid() == uuid_.to_bytes()) {
        found.push_back(std::move(image));
      }
    }
  }
  return found;
}

/// Images of this VM that will not be used: its RAM files are about to be made anew.
void Vm::drop_images() {
  for (const auto& image : images_here()) {
    dataplane::v1::ToDataplane drop;
    *drop.mutable_drop_image()->mutable_id() = image.id();
    static_cast<void>(services_.dataplane.call(std::move(drop)));
  }
}

AgentResult Vm::do_prepare_destination(const controlplane::v1::PrepareDestination& command) {
  const auto undo = [this, &command](const Error& error) {
    bool unused = !command.reuse();
    if (destination_) {
      static_cast<void>(destination_->abort(record_.ownership));
      unused = unused || destination_->ram_files_unused();
    }
    drop_migration();
    end_qemu();
    detach_guest();
    if (unused) {
      remove_files();
    }
    over_ = true;
    return AgentResult(std::unexpected(error));
  };
  if (command.bytes_total() != bytes_total(record_.definition)) {
    return undo(make_error(Error::BAD_REQUEST, "the source's RAM is " + std::to_string(command.bytes_total()) +
                                                   " bytes, the definition's " +
                                                   std::to_string(bytes_total(record_.definition))));
  }
  const bool may_pull = command.mode() != dataplane::v1::PRECOPY;
  auto can = may_pull ? check_can_page() : std::expected<void, Error>{};
  if (can) {
    can = note_kept_stores(command);
  }
  if (!can) {
    over_ = true;
    return std::unexpected(can.error());
  }
  record_.migration->may_pull = may_pull;
  record_.migration->epoch_base = command.epoch_base();
  if (auto saved = save(); !saved) {
    return undo(saved.error());
  }
  const bool part = record_.split && !record_.split->gather;
  if (auto room = make_room(part ? record_.split->budget_bytes : 0, choose_ram(command)); !room) {
    return undo(room.error());
  }
  const std::string machine = machine_of_type(record_.definition.machine, command.source_machine_type());
  record_.definition.machine = machine;
  if (auto launched = launch_qemu(StartKind::kIncoming, machine); !launched) {
    return undo(launched.error());
  }
  if (auto facts = inspect(); !facts) {
    return undo(facts.error());
  }
  watch_process();
  if (auto attached =
          attach_memory(dataplane::v1::AttachGuest::ARRIVING, {.on_demand = may_pull, .evictable = record_.evictable});
      !attached) {
    return undo(attached.error());
  }
  if (auto given = record_.split ? give_pin() : std::expected<void, Error>{}; !given) {
    return undo(given.error());
  }
  make_migration();
  auto prepared = destination_->prepare(command);
  if (!prepared) {
    return undo(prepared.error());
  }
  AgentReply reply;
  auto& out = *reply.mutable_destination_prepared();
  *out.mutable_endpoint() = prepared->endpoint();
  out.set_image_accepted(prepared->image_accepted());
  out.set_image_reason(prepared->image_reason());
  out.set_image_pages(prepared->image_pages());
  return reply;
}

AgentResult Vm::do_start_transfer(const controlplane::v1::StartTransfer& command) {
  std::expected<void, Error> started = std::unexpected(make_error(Error::NO_SUCH_MIGRATION, "no migration here"));
  if (source_) {
    started = source_->start(command);
  } else if (destination_) {
    started = destination_->start(command);
  }
  return started ? AgentResult(AgentReply()) : std::unexpected(started.error());
}

AgentResult Vm::do_switch_over() {
  if (!source_) {
    return std::unexpected(make_error(Error::NO_SUCH_MIGRATION, "Switch: this host is not the source of a migration"));
  }
  const auto switched = source_->switch_over();
  return switched ? AgentResult(AgentReply()) : std::unexpected(switched.error());
}

// ---- events
// ----------------------------------------------------------------------------------------------------------

GuestServices Vm::guest_services() {
  return {*qmp_, services_.dataplane, record_, [this] { return save(); },
          [this](MigrationEvent event) { emit(std::move(event)); }};
}

void Vm::make_migration() {
  if (!record_.migration || !qmp_) {
    return;
  }
  std::unique_ptr<SourceMigration> source;
  std::unique_ptr<DestinationMigration> destination;
  if (record_.migration->role == MigrationRole::kSource) {
    source = std::make_unique<SourceMigration>(guest_services());
  } else {
    destination = std::make_unique<DestinationMigration>(guest_services());
  }
  const std::lock_guard lock(migration_mutex_);
  source_.swap(source);
  destination_.swap(destination);
}

void Vm::drop_migration() {
  std::unique_ptr<SourceMigration> source;
  std::unique_ptr<DestinationMigration> destination;
  const auto take = [&] {
    // Destroyed outside of the lock: their threads may wait for the monitor, whose reader may wait for the lock.
    const std::lock_guard lock(migration_mutex_);
    source = std::move(source_);
    destination = std::move(destination_);
  };
  take();
}

void Vm::emit(MigrationEvent event) {
  const auto kind = event.kind();
  const bool final_word = kind == MigrationEvent::RESUMED || kind == MigrationEvent::RETIRED ||
                          kind == MigrationEvent::BACK || kind == MigrationEvent::ENDED;
  FromAgent message;
  *message.mutable_event() = std::move(event);
  // The others are repeated by their migration after the next registration.
  services_.send(std::move(message),
                 final_word ? ControlSession::Delivery::kKept : ControlSession::Delivery::kThisStream);
}

/// Once for each cause, however often it is met.
void Vm::emit_failure(MigrationEvent event, const char* what_next) {
  std::string cause = event.migration_id() + text_of(event.error());
  if (cause == told_failure_) {
    return;
  }
  told_failure_ = std::move(cause);
  spdlog::error("VM {}: {}; {}", record_.definition.name, text_of(event.error()), what_next);
  emit(std::move(event));
}

void Vm::on_dataplane_event(const dataplane::v1::Event& event) {
  const std::lock_guard lock(migration_mutex_);
  if (pull_) {
    pull_->on_dataplane_event(event);
  } else if (source_) {
    source_->on_dataplane_event(event);
  } else if (destination_) {
    destination_->on_dataplane_event(event);
  }
}

void Vm::on_dataplane_down(const std::string& reason) {
  queue_.post([this, reason] {
    in_doubt_ = record_.migration.has_value() && !pull_;
    gather_told_ = false;
    fail_migration("the data plane of this host went away (" + reason + ")");
  });
}

std::optional<dataplane::v1::GuestStatus> Vm::find_attached() {
  dataplane::v1::ToDataplane request;
  request.mutable_get_status();
  if (auto reply = services_.dataplane.call(std::move(request))) {
    for (const auto& guest : reply->status().guests()) {
      if (guest.vm_uuid() == uuid_.to_bytes() && guest.qemu_pid() == record_.process.pid) {
        return guest;
      }
    }
  }
  return std::nullopt;
}

void Vm::fence(std::uint64_t ownership) {
  queue_.post([this, ownership] {
    if (over_ || !qmp_ || record_.migration || ownership <= record_.ownership) {
      return;
    }
    spdlog::error("VM {}: the store gives it to another host (ownership {} > {}): stopping it here",
                  record_.definition.name, ownership, record_.ownership);
    if (auto stopped = bridge::stop(*qmp_); !stopped) {
      end_process(record_.process, std::chrono::milliseconds(0));
    }
  });
}

void Vm::fail_migration(const std::string& reason) {
  if (pull_) {
    pull_->lost(reason);
  } else if (source_) {
    source_->fail(make_error(Error::INTERNAL, reason));
  } else if (destination_) {
    destination_->fail(make_error(Error::INTERNAL, reason));
  } else if (record_.migration) {
    // Lost together with the monitor: whoever waits for it must hear.
    MigrationEvent event;
    event.set_migration_id(record_.migration->id.to_bytes());
    event.set_kind(MigrationEvent::FAILED);
    *event.mutable_error() = make_error(Error::INTERNAL, reason);
    emit_failure(std::move(event), "the outcome is asked for");
  }
}

void Vm::on_registered() {
  queue_.post([this] {
    if (source_) {
      source_->repeat_last_event();
    } else if (destination_) {
      destination_->repeat_last_event();
    }
    told_failure_.clear();
    in_doubt_ = record_.migration.has_value();
    ask_outcome();
  });
}

void Vm::tick() {
  if (tick_waits_.exchange(true)) {
    return;  // the queue is busy: with a monitor that does not answer it may be so for longer than a second
  }
  queue_.post([this] {
    tick_waits_ = false;
    do_tick();
    if (over_) {
      gone();
    }
  });
}

void Vm::do_tick() {
  if (over_) {
    return;
  }
  if (qmp_ && qmp_->closed() && is_alive(record_.process)) {
    spdlog::warn("VM {}: the monitor of QEMU {} closed; connecting again", record_.definition.name,
                 record_.process.pid);
    drop_migration();
    qmp_.reset();
    interrupted_by_ = "the connection to QEMU's monitor was lost";
  }
  if (!qmp_ && record_.process.pid > 0) {
    do_recover();
  } else if (decided_) {
    static_cast<void>(settle());
  } else {
    ask_outcome();
    look_gathered();
    pause_or_go_on();
  }
  look_at_accesses();
}

void Vm::ask_outcome() {
  if (!record_.migration || over_ || !(in_doubt_ || record_.migration->phase == MigrationPhase::kSwitching)) {
    return;
  }
  FromAgent message;
  message.mutable_ask_outcome()->set_migration_id(record_.migration->id.to_bytes());
  services_.send(std::move(message), ControlSession::Delivery::kThisStream);
}

}  // namespace godwit::bridge
