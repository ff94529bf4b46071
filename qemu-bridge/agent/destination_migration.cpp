#include "qemu-bridge/agent/destination_migration.h"

#include <spdlog/spdlog.h>

#include <cstring>
#include <future>

#include "qemu-bridge/agent/definition.h"
#include "qemu-bridge/agent/qemu_inspection.h"
#include "qemu-bridge/device-state/stream_socket.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::MigrationEvent;
using dataplane::v1::Error;

constexpr const char* kStreamFd = "godwit-device-state";
constexpr std::chrono::milliseconds kResumeTime{5000};
/// For `cont` and what tells whether it had effect: then others have their turn, and it is looked at again.
constexpr std::chrono::milliseconds kContinueTime{2000};

Error of(const QmpError& error) { return make_error(Error::INTERNAL, error.text); }

}  // namespace

DestinationMigration::DestinationMigration(GuestServices services)
    : services_(std::move(services)), id_(services_.record.migration.value().id), reports_(services_) {}

DestinationMigration::~DestinationMigration() { close_stream(); }

void DestinationMigration::close_stream() {
  reports_.settle();
  const std::lock_guard lock(stream_mutex_);
  stream_.reset();
}

MigrationEvent DestinationMigration::make_event(MigrationEvent::Kind kind) const {
  MigrationEvent event = reports_.make(kind);
  const std::lock_guard lock(mutex_);
  event.set_resume_unix_us(resume_unix_us_);
  event.set_pages_missing(pages_missing_);
  return event;
}

std::expected<dataplane::v1::PrepareMigrationResult, Error> DestinationMigration::prepare(
    const controlplane::v1::PrepareDestination& command) {
  dataplane::v1::ToDataplane request;
  auto& prepare = *request.mutable_prepare_migration();
  prepare.set_migration_id(id_.to_bytes());
  prepare.set_vm_uuid(services_.record.definition.uuid.to_bytes());
  prepare.set_ownership(command.ownership());
  prepare.set_role(dataplane::v1::ROLE_DESTINATION);
  prepare.set_epoch_base(command.epoch_base());
  prepare.set_epoch_count(command.epoch_count());
  prepare.set_bytes_total(bytes_total(services_.record.definition));
  prepare.set_encryption(command.encryption());
  prepare.set_mode(command.mode());
  prepare.set_keeps_stores(command.has_split());
  // To be whole there it needs room for all of it, and the budget is none.
  prepare.set_budget_bytes(command.split().gather() ? prepare.bytes_total() : command.split().budget_bytes());
  if (command.reuse()) {
    prepare.set_reuse_image_id(command.image_id());
  }
  auto reply = services_.dataplane.call(std::move(request));
  if (!reply) {
    return std::unexpected(reply.error());
  }
  if (auto set = set_migration_capabilities(services_.qmp); !set) {
    return std::unexpected(of(set.error()));
  }
  auto sockets = make_stream_sockets();
  if (!sockets) {
    return std::unexpected(
        make_error(Error::KERNEL, std::string("socketpair for the device state: ") + std::strerror(sockets.error())));
  }
  if (auto passed = getfd(services_.qmp, kStreamFd, sockets->qemu.get()); !passed) {
    return std::unexpected(of(passed.error()));
  }
  if (auto incoming = migrate_incoming(services_.qmp, std::string("fd:") + kStreamFd); !incoming) {
    return std::unexpected(of(incoming.error()));
  }
  const std::lock_guard lock(stream_mutex_);
  stream_ = std::make_unique<DestinationStream>(
      std::move(sockets->ours), [this](std::string text) { fail(make_error(Error::PEER, std::move(text))); });
  return reply->prepare_migration();
}

std::expected<void, Error> DestinationMigration::start(const controlplane::v1::StartTransfer& command) {
  if (services_.record.migration->phase != MigrationPhase::kPreparing) {
    return std::unexpected(make_error(Error::BAD_REQUEST, "StartTransfer: this migration is already past that"));
  }
  services_.record.migration->phase = MigrationPhase::kTransferring;
  if (auto saved = services_.save(); !saved) {
    return saved;
  }
  dataplane::v1::ToDataplane request;
  auto& start = *request.mutable_start_migration();
  start.set_migration_id(id_.to_bytes());
  *start.mutable_peer() = command.peer();
  start.set_secret(command.secret());
  auto reply = services_.dataplane.call(std::move(request));
  return reply ? std::expected<void, Error>{} : std::unexpected(reply.error());
}

void DestinationMigration::on_dataplane_event(const dataplane::v1::Event& event) {
  if (event.has_migration_failed()) {
    fail(event.migration_failed().error());
    return;
  }
  if (event.has_connection_lost()) {
    fail(make_error(Error::PEER, event.connection_lost().reason()));  // nothing of it is committed yet
    return;
  }
  if (!event.has_device_state() && !event.has_memory_guarded() && !event.has_memory_ready()) {
    return;
  }
  const std::lock_guard stream_lock(stream_mutex_);
  if (!stream_) {
    return;  // a migration from before a restart: the store's word ends it
  }
  if (event.has_device_state()) {
    const std::string& data = event.device_state().data();
    if (event.device_state().end()) {
      spdlog::debug("migration {}: device state whole", id_.text());
    }
    stream_->arrive(std::as_bytes(std::span(data.data(), data.size())), event.device_state().end());
    return;
  }
  if (event.has_memory_guarded()) {
    stream_->release_all_but_end();
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    memory_ready_ = true;
    pages_missing_ = event.memory_ready().pages_missing();
  }
  spdlog::debug("migration {}: memory in place", id_.text());
  stream_->release();
}

void DestinationMigration::on_qmp_event(const QmpEvent& event) {
  if (event.name == "RESUME") {
    const std::lock_guard lock(mutex_);
    resume_unix_us_ = event.unix_us;
    changed_.notify_all();
    return;
  }
  if (event.name != "MIGRATION") {
    return;
  }
  const std::string status = json_string(event.data, "status").value_or("");
  bool ready = false;
  {
    const std::lock_guard lock(mutex_);
    ready = memory_ready_;
  }
  if (status == "completed" && ready) {
    reports_.emit(make_event(MigrationEvent::LOADED));
  } else if (status == "completed") {
    fail(make_error(Error::PEER, "the device state was complete before the memory was"));
  } else if (status == "failed") {
    fail(make_error(Error::INTERNAL, "QEMU could not load the device state (its log tells why)"));
  }
}

void DestinationMigration::fail(Error error) { reports_.fail(std::move(error), make_event(MigrationEvent::FAILED)); }

/// Whether it was continued before, by us without an answer or by a bridge before us; if not, it can be. Error: its
/// device state is not loaded.
std::expected<bool, std::string> DestinationMigration::runs_already() {
  if (const std::lock_guard lock(mutex_); resume_unix_us_ != 0) {
    return true;
  }
  auto status = query_status(services_.qmp, kContinueTime);
  if (!status) {
    return std::unexpected(status.error().text);
  }
  if (*status == "running") {
    return true;
  }
  auto info = query_migrate(services_.qmp);
  if (!info || info->status != "completed") {
    return std::unexpected("its device state is not loaded (" + (info ? info->status : info.error().text) + ")");
  }
  return false;
}

/// RESUMED, or FAILED with the reason.
MigrationEvent DestinationMigration::continue_guest() {
  spdlog::debug("migration {}: committed", id_.text());
  reports_.settle();
  // Having seen it load ourselves saves two round trips of the downtime.
  const bool seen = reports_.last_is(MigrationEvent::LOADED) && !asked_to_continue_;
  auto runs = seen ? std::expected<bool, std::string>(false) : runs_already();
  const bool before = runs.value_or(false);
  if (runs && !before) {
    asked_to_continue_ = true;
    if (auto continued = cont(services_.qmp, kContinueTime); !continued) {
      runs = std::unexpected(continued.error().text);
    }
  }
  if (!runs) {
    auto event = make_event(MigrationEvent::FAILED);
    *event.mutable_error() = make_error(Error::INTERNAL, "the guest could not be continued here: " + runs.error());
    return event;
  }
  resumed_ = true;
  if (!before) {  // else whoever continued it was told when
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kResumeTime, [&] { return resume_unix_us_ != 0; });
  }
  return make_event(MigrationEvent::RESUMED);
}

MigrationEvent DestinationMigration::commit(std::uint64_t ownership, Pull& pull,
                                            const std::function<void()>& meanwhile) {
  auto continued = std::async(std::launch::async, [this] { return continue_guest(); });
  const auto committed = pull.commit(ownership);
  if (committed) {
    services_.record.epoch = std::max(services_.record.epoch, committed->epoch_next());
  }
  meanwhile();
  auto event = continued.get();
  if (resumed_ && committed) {
    *event.mutable_stats() = committed->stats();
  } else if (resumed_) {
    event.set_text("the data plane is to take the migration up again: " + committed.error().text());
  }
  return event;
}

MigrationEvent DestinationMigration::commit(std::uint64_t ownership, const std::function<void()>& meanwhile) {
  auto continued = std::async(std::launch::async, [this] { return continue_guest(); });
  const auto finished = finish_migration(services_.dataplane, id_, dataplane::v1::OUTCOME_COMMITTED, ownership);
  if (finished) {
    services_.record.epoch = std::max(services_.record.epoch, finished->epoch_next());
  }
  meanwhile();
  auto event = continued.get();
  if (resumed_ && finished) {
    *event.mutable_stats() = finished->stats();
  } else if (resumed_) {
    event.set_text("the data plane does not know what has arrived, so the next move will be a full one: " +
                   finished.error().text());
  }
  return event;
}

MigrationEvent DestinationMigration::abort(std::uint64_t ownership) {
  close_stream();
  auto event = make_event(MigrationEvent::RETIRED);
  const auto finished = finish_migration(services_.dataplane, id_, dataplane::v1::OUTCOME_ABORTED, ownership);
  if (finished) {
    *event.mutable_stats() = finished->stats();
    ram_files_unused_ = !finished->image_retained();
    event.set_text(ram_files_unused_ ? "nothing kept: " + finished->image_reason() : "partial image kept");
  } else {
    event.set_text("data plane: " + text_of(finished.error()));
  }
  return event;
}

}  // namespace godwit::bridge
