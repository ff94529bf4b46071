#include "qemu-bridge/agent/source_migration.h"

#include <spdlog/spdlog.h>

#include <cstring>

#include "base/check.h"
#include "qemu-bridge/agent/definition.h"
#include "qemu-bridge/agent/qemu_inspection.h"
#include "qemu-bridge/device-state/stream_socket.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::MigrationEvent;
using dataplane::v1::Error;

constexpr const char* kStreamFd = "godwit-device-state";
// For the RAM that QEMU itself sends (video RAM): small, so that QEMU stops the guest only when next to none is left.
constexpr std::uint64_t kQemuDowntimeMs = 50;
constexpr std::chrono::milliseconds kStatusTime{2000};
constexpr std::chrono::milliseconds kCancelTime{10'000};
constexpr std::chrono::milliseconds kLookAgain{20};

bool under_way(const std::string& status) {
  return status == "setup" || status == "active" || status == "device" || status == "pre-switchover" ||
         status == "cancelling" || status == "wait-unplug";
}

Error of(const QmpError& error) { return make_error(Error::INTERNAL, error.text); }

Retirement finish_committed(DataplaneClient& dataplane, const Id128& migration, std::uint64_t ownership,
                            MigrationEvent event) {
  Retirement retirement{std::move(event), false};
  const auto finished = finish_migration(dataplane, migration, dataplane::v1::OUTCOME_COMMITTED, ownership);
  if (finished) {
    *retirement.event.mutable_stats() = finished->stats();
    const bool retained = finished->image_retained();
    retirement.ram_files_unused = !retained;
    retirement.event.set_text(retained ? "image retained" : "image not retained: " + finished->image_reason());
  } else {
    retirement.event.set_text("image not retained: " + (finished.error().code() == Error::NO_SUCH_MIGRATION
                                                            ? "the data plane of this host was restarted meanwhile"
                                                            : finished.error().text()));
  }
  return retirement;
}

}  // namespace

Retirement retire_without_monitor(const VmRecord& record, DataplaneClient& dataplane, std::uint64_t ownership) {
  spdlog::warn("VM {}: committed to another host, and the monitor of QEMU {} cannot be reached: ending it",
               record.definition.name, record.process.pid);
  end_process(record.process, std::chrono::milliseconds(0));
  const Id128& migration = record.migration.value().id;
  MigrationEvent event;
  event.set_migration_id(migration.to_bytes());
  event.set_kind(MigrationEvent::RETIRED);
  return finish_committed(dataplane, migration, ownership, std::move(event));
}

// ---- DeviceStateSender
// -----------------------------------------------------------------------------------------------

DeviceStateSender::DeviceStateSender(DataplaneClient& dataplane, const Id128& migration,
                                     std::function<void(Error)> on_failed)
    : dataplane_(dataplane), migration_(migration.to_bytes()), on_failed_(std::move(on_failed)) {}

bool DeviceStateSender::send(std::string chunk) {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || unanswered_ < kUnansweredMax; });
    if (closed_) {
      return false;
    }
    ++unanswered_;
  }
  dataplane::v1::ToDataplane request;
  request.mutable_device_state()->set_migration_id(migration_);
  request.mutable_device_state()->set_data(std::move(chunk));
  dataplane_.post(std::move(request), [self = shared_from_this()](auto reply) { self->answered(reply); });
  return true;
}

void DeviceStateSender::answered(const std::expected<dataplane::v1::Reply, Error>& reply) {
  bool tell = false;
  {
    const std::lock_guard lock(mutex_);
    --unanswered_;
    if (!reply) {
      tell = !closed_;
      closed_ = true;
    }
    changed_.notify_all();
  }
  if (tell) {
    on_failed_(reply.error());
  }
}

void DeviceStateSender::end() {
  dataplane::v1::ToDataplane request;
  request.mutable_device_state_end()->set_migration_id(migration_);
  {
    const std::lock_guard lock(mutex_);
    if (closed_) {
      return;
    }
    ++unanswered_;
  }
  dataplane_.post(std::move(request), [self = shared_from_this()](auto reply) { self->answered(reply); });
}

void DeviceStateSender::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

// ---- SourceMigration
// -------------------------------------------------------------------------------------------------

SourceMigration::SourceMigration(GuestServices services)
    : services_(std::move(services)),
      id_(services_.record.migration.value().id),
      reports_(services_),
      taken_over_in_switch_(services_.record.migration->switch_begun) {
  sender_ = std::make_shared<DeviceStateSender>(services_.dataplane, id_, [](const Error& error) {
    spdlog::warn("device state: {}", text_of(error));  // MigrationFailed or the end of the connection says it too
  });
}

SourceMigration::~SourceMigration() { close_stream(); }

MigrationEvent SourceMigration::make_event(MigrationEvent::Kind kind) const {
  MigrationEvent event = reports_.make(kind);
  const std::lock_guard lock(mutex_);
  event.set_stop_unix_us(stop_unix_us_);
  return event;
}

std::expected<dataplane::v1::PrepareMigrationResult, Error> SourceMigration::prepare(
    const controlplane::v1::PrepareSource& command) {
  const AttachedAs attached{.has_balloon = services_.record.has_balloon,
                            .by_hashes = services_.record.tracker == dataplane::v1::TRACKER_HASHES};
  if (auto movable = check_still_movable(services_.qmp, attached); !movable) {
    return std::unexpected(make_error(Error::BAD_REQUEST, movable.error().text));
  }
  if (auto set = set_migration_capabilities(services_.qmp); !set) {
    return std::unexpected(of(set.error()));
  }
  if (auto set = migrate_set_parameters(services_.qmp, kQemuDowntimeMs); !set) {
    return std::unexpected(of(set.error()));
  }
  dataplane::v1::ToDataplane request;
  auto& prepare = *request.mutable_prepare_migration();
  prepare.set_migration_id(id_.to_bytes());
  prepare.set_vm_uuid(command.vm_uuid());
  prepare.set_ownership(command.ownership());
  prepare.set_role(dataplane::v1::ROLE_SOURCE);
  prepare.set_epoch_base(command.epoch_base());
  prepare.set_epoch_count(command.epoch_count());
  prepare.set_bytes_total(bytes_total(services_.record.definition));
  prepare.set_encryption(command.encryption());
  prepare.set_mode(command.mode());
  prepare.set_keeps_stores(command.keeps_stores());
  auto reply = services_.dataplane.call(std::move(request));
  if (!reply) {
    return std::unexpected(reply.error());
  }
  return reply->prepare_migration();
}

std::expected<void, Error> SourceMigration::start(const controlplane::v1::StartTransfer& command) {
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
  *start.mutable_policy() = command.policy();
  auto reply = services_.dataplane.call(std::move(request));
  return reply ? std::expected<void, Error>{} : std::unexpected(reply.error());
}

std::expected<void, Error> SourceMigration::switch_over() {
  if (taken_over_in_switch_) {
    return {};  // obeyed, as far as it went, before the bridge ended
  }
  if (!switched_) {
    switched_ = begin_switch();
    if (!*switched_) {
      fail(switched_->error());
    }
  }
  return *switched_;
}

/// From here on a guest that stands still does so for us. One that stood still before must not be continued by an
/// abort.
std::expected<void, Error> SourceMigration::note_switch() {
  const auto status = query_status(services_.qmp);
  if (!status) {
    return std::unexpected(of(status.error()));
  }
  if (*status != "running") {
    return std::unexpected(make_error(Error::BAD_REQUEST, "Switch: the guest is not running but '" + *status +
                                                              "': only a running guest is migrated; resume it (QMP "
                                                              "cont) first"));
  }
  spdlog::debug("migration {}: switching over", id_.text());
  services_.record.migration->phase = MigrationPhase::kSwitching;
  services_.record.migration->switch_begun = true;
  return services_.save();
}

std::expected<void, Error> SourceMigration::begin_switch() {
  if (services_.record.migration->phase != MigrationPhase::kTransferring) {
    return std::unexpected(make_error(Error::BAD_REQUEST, "Switch: this migration is not transferring (" +
                                                              std::string(name_of(services_.record.migration->phase)) +
                                                              ")"));
  }
  if (auto noted = note_switch(); !noted) {
    return noted;
  }
  auto sockets = make_stream_sockets();
  if (!sockets) {
    return std::unexpected(
        make_error(Error::KERNEL, std::string("socketpair for the device state: ") + std::strerror(sockets.error())));
  }
  if (auto passed = getfd(services_.qmp, kStreamFd, sockets->qemu.get()); !passed) {
    return std::unexpected(of(passed.error()));
  }
  sockets->qemu.reset();  // the end of the stream is when QEMU closes its copy
  {
    const std::lock_guard lock(mutex_);
    switching_ = true;
    stream_ = std::make_unique<SourceStream>(
        std::move(sockets->ours),
        SourceStream::Handlers{
            .forward = [sender = sender_](std::string chunk) { return sender->send(std::move(chunk)); },
            .guest_runs =
                [this] {
                  auto reply = services_.qmp.execute("query-status", Json::object(), kStatusTime);
                  return reply && json_string(*reply, "status") == "running";
                },
            .on_end = [this](const auto& result) { stream_ended(result); }});
  }
  if (auto started = migrate(services_.qmp, std::string("fd:") + kStreamFd); !started) {
    const std::lock_guard lock(mutex_);
    // Only a refusal says that nothing began: without an answer the guest may stop any moment.
    switching_ = started.error().code != QmpErrorCode::kCommand;
    return std::unexpected(of(started.error()));
  }
  return {};
}

void SourceMigration::on_qmp_event(const QmpEvent& event) {
  if (event.name == "STOP") {
    guest_stopped(event.unix_us);
    return;
  }
  if (event.name != "MIGRATION") {
    return;
  }
  const std::string status = json_string(event.data, "status").value_or("");
  bool failed = false;
  {
    const std::lock_guard lock(mutex_);
    if (!switching_) {
      return;
    }
    qemu_completed_ = qemu_completed_ || status == "completed";
    failed = status == "failed" || status == "cancelled";
    changed_.notify_all();
  }
  if (failed) {
    fail(make_error(Error::INTERNAL, "QEMU could not save its device state (migration " + status + ")"));
  }
  end_stream_if_complete();
}

void SourceMigration::guest_stopped(std::int64_t unix_us) {
  {
    const std::lock_guard lock(mutex_);
    if (!switching_ || stopped_) {
      return;
    }
    stopped_ = true;
    stop_unix_us_ = unix_us;
    if (stream_) {
      stream_->guest_stopped();
    }
  }
  dataplane::v1::ToDataplane request;
  request.mutable_guest_stopped()->set_migration_id(id_.to_bytes());
  services_.dataplane.post(std::move(request), [](const auto& reply) {
    if (!reply) {
      spdlog::warn("GuestStopped: {}", text_of(reply.error()));
    }
  });
}

void SourceMigration::stream_ended(const std::expected<std::uint64_t, SourceStream::Error>& result) {
  if (!result) {
    fail(make_error(Error::INTERNAL, result.error() == SourceStream::Error::kRead
                                         ? "QEMU's device state cannot be read"
                                         : "the data plane does not take the device state"));
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    stream_ended_ = true;
  }
  end_stream_if_complete();
}

void SourceMigration::end_stream_if_complete() {
  {
    const std::lock_guard lock(mutex_);
    // A stream that QEMU gave up also ends; only "completed" says that it is whole, and that QEMU will not resume.
    if (!stream_ended_ || !qemu_completed_ || !stopped_ || end_sent_ || reports_.settled()) {
      return;
    }
    end_sent_ = true;
  }
  spdlog::debug("migration {}: device state whole", id_.text());
  sender_->end();
  reports_.emit(make_event(MigrationEvent::PROGRESS));  // when it stopped; not before what the destination waits for
}

void SourceMigration::on_dataplane_event(const dataplane::v1::Event& event) {
  if (event.has_progress()) {
    auto out = make_event(MigrationEvent::PROGRESS);
    *out.mutable_stats() = event.progress().stats();
    reports_.emit(std::move(out));
  } else if (event.has_ready_to_switch()) {
    auto out = make_event(MigrationEvent::READY_TO_SWITCH);
    out.set_estimated_downtime_us(event.ready_to_switch().estimated_downtime_us());
    out.set_pages_missing(event.ready_to_switch().pages_missing());
    reports_.emit(std::move(out));
  } else if (event.has_source_done()) {
    auto out = make_event(MigrationEvent::PROGRESS);
    *out.mutable_stats() = event.source_done().stats();
    reports_.emit(std::move(out));
  } else if (event.has_connection_lost()) {
    fail(make_error(Error::PEER, event.connection_lost().reason()));  // nothing of it is committed yet
  } else if (event.has_migration_failed()) {
    fail(event.migration_failed().error());
  }
}

void SourceMigration::fail(Error error) { reports_.fail(std::move(error), make_event(MigrationEvent::FAILED)); }

void SourceMigration::close_stream() {
  sender_->close();
  std::unique_ptr<SourceStream> stream;
  {
    // Destroyed outside: its threads may wait for QMP, whose reader may wait for this lock.
    const std::lock_guard lock(mutex_);
    stream = std::move(stream_);
  }
}

std::expected<void, Error> SourceMigration::switch_to_postcopy() {
  dataplane::v1::ToDataplane request;
  request.mutable_switch_to_postcopy()->set_migration_id(id_.to_bytes());
  auto reply = services_.dataplane.call(std::move(request));
  return reply ? std::expected<void, Error>{} : std::unexpected(reply.error());
}

MigrationEvent SourceMigration::hand_over() {
  reports_.settle();
  if (auto status = query_status(services_.qmp); status && *status == "running") {
    spdlog::error("VM {} runs although its migration {} is committed: stopping it", services_.record.definition.name,
                  id_.text());
    if (auto stopped = stop(services_.qmp); !stopped) {
      end_process(services_.record.process, std::chrono::milliseconds(0));
    }
  }
  close_stream();
  return make_event(MigrationEvent::RETIRED);
}

Retirement SourceMigration::commit(std::uint64_t ownership) {
  Retirement retirement = finish_committed(services_.dataplane, id_, ownership, hand_over());
  // Killed, not asked to quit: QEMU's own clean-up may write to the RAM file that we keep (discard-data=on gives all of
  // it back). Its devices were flushed and handed over when its migration was completed.
  end_process(services_.record.process, std::chrono::milliseconds(0));
  return retirement;
}

MigrationEvent SourceMigration::abort(std::uint64_t ownership) {
  reports_.settle();
  bool switch_begun = false;
  {
    const std::lock_guard lock(mutex_);
    switch_begun = switching_ || taken_over_in_switch_;
  }
  sender_->close();
  auto cancelled = cancel_in_qemu();
  close_stream();
  auto continued = cancelled ? continue_guest(switch_begun) : cancelled;
  auto event = make_event(continued ? MigrationEvent::BACK : MigrationEvent::FAILED);
  if (!continued) {
    *event.mutable_error() = make_error(Error::INTERNAL, "the guest could not be continued here: " + continued.error());
  }
  const auto finished = finish_migration(services_.dataplane, id_, dataplane::v1::OUTCOME_ABORTED, ownership);
  if (finished) {
    *event.mutable_stats() = finished->stats();
    services_.record.epoch = std::max(services_.record.epoch, finished->epoch_next());
  } else if (finished.error().code() != Error::NO_SUCH_MIGRATION) {
    event.set_text("data plane: " + text_of(finished.error()));
  }
  return event;
}

std::expected<void, std::string> SourceMigration::cancel_in_qemu() {
  const auto until = std::chrono::steady_clock::now() + kCancelTime;
  bool asked = false;
  while (true) {
    auto info = query_migrate(services_.qmp);
    if (!info) {
      return std::unexpected(info.error().text);
    }
    if (!under_way(info->status)) {
      return {};
    }
    if (!asked) {
      asked = true;
      if (auto cancelled = migrate_cancel(services_.qmp); !cancelled) {
        return std::unexpected(cancelled.error().text);
      }
    }
    std::unique_lock lock(mutex_);
    if (std::chrono::steady_clock::now() > until) {
      return std::unexpected("QEMU's migration stays '" + info->status + "' although cancelled");
    }
    changed_.wait_for(lock, kLookAgain);  // a MIGRATION event wakes it
  }
}

std::expected<void, std::string> SourceMigration::continue_guest(bool switch_begun) {
  const auto until = std::chrono::steady_clock::now() + kCancelTime;
  while (true) {
    auto status = query_status(services_.qmp);
    if (!status) {
      return std::unexpected(status.error().text);
    }
    if (*status == "running" || !switch_begun) {
      return {};
    }
    std::string refused = "its run state is '" + *status + "'";
    if (*status == "postmigrate" || *status == "paused") {
      auto continued = cont(services_.qmp);
      if (continued) {
        return {};
      }
      refused = continued.error().text;
    } else if (*status != "finish-migrate") {
      spdlog::warn("VM {}: not continued, {}", services_.record.definition.name, refused);
      return {};  // the guest shut down or crashed by itself: there is nothing to continue
    }
    std::unique_lock lock(mutex_);
    if (std::chrono::steady_clock::now() > until) {
      return std::unexpected(refused);
    }
    changed_.wait_for(lock, kLookAgain);
  }
}

}  // namespace godwit::bridge
