#include "qemu-bridge/agent/migration_reports.h"

#include <spdlog/spdlog.h>

namespace godwit::bridge {
MigrationReports::MigrationReports(const GuestServices& services)
    : id_(services.record.migration.value().id.to_bytes()),
      label_("migration " + services.record.migration->id.text() + " of VM " + services.record.definition.name),
      emit_(services.emit) {}

MigrationReports::Event MigrationReports::make(Event::Kind kind) const {
  Event event;
  event.set_migration_id(id_);
  event.set_kind(kind);
  return event;
}

void MigrationReports::emit(Event event) {
  {
    const std::lock_guard lock(mutex_);
    if (settled_) {
      return;
    }
    if (event.kind() != Event::PROGRESS) {
      last_ = event;
    }
  }
  emit_(std::move(event));
}

void MigrationReports::fail(dataplane::v1::Error error, Event event) {
  {
    const std::lock_guard lock(mutex_);
    if (failed_ || settled_) {
      return;
    }
    failed_ = true;
  }
  spdlog::warn("{} fails here: {}", label_, text_of(error));
  *event.mutable_error() = std::move(error);
  emit(std::move(event));
}

void MigrationReports::repeat_last() {
  std::optional<Event> event;
  {
    const std::lock_guard lock(mutex_);
    event = last_;
  }
  if (event) {
    emit_(std::move(*event));
  }
}

void MigrationReports::settle() {
  const std::lock_guard lock(mutex_);
  settled_ = true;
}

bool MigrationReports::settled() const {
  const std::lock_guard lock(mutex_);
  return settled_;
}

bool MigrationReports::last_is(Event::Kind kind) const {
  const std::lock_guard lock(mutex_);
  return last_ && last_->kind() == kind;
}

std::expected<dataplane::v1::FinishMigrationResult, dataplane::v1::Error> finish_migration(
    DataplaneClient& dataplane, const Id128& migration, dataplane::v1::Outcome outcome, std::uint64_t ownership) {
  dataplane::v1::ToDataplane request;
  auto& finish = *request.mutable_finish_migration();
  finish.set_migration_id(migration.to_bytes());
  finish.set_outcome(outcome);
  // The store says COMMITTED only when the destination has all.
  finish.set_destination_complete(outcome == dataplane::v1::OUTCOME_COMMITTED);
  finish.set_ownership(ownership);
  auto reply = dataplane.call(std::move(request), {}, kFinishTime);
  if (!reply) {
    return std::unexpected(reply.error());
  }
  return std::move(*reply->mutable_finish_migration());
}

}  // namespace godwit::bridge
