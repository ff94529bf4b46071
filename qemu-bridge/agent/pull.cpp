#include "qemu-bridge/agent/pull.h"

#include <spdlog/spdlog.h>

#include "base/log.h"

namespace godwit::bridge {

using controlplane::v1::MigrationEvent;
using dataplane::v1::Error;

Pull::Pull(DataplaneClient& dataplane, const VmRecord& record, std::function<void(MigrationEvent)> emit,
           std::function<void()> on_change)
    : dataplane_(dataplane),
      record_(record),
      id_(record.migration.value().id),
      emit_(std::move(emit)),
      on_change_(std::move(on_change)) {
  status_.set_migration_id(id_.to_bytes());
  status_.set_vm_uuid(record.definition.uuid.to_bytes());
  status_.set_role(record.migration->role == MigrationRole::kSource ? dataplane::v1::ROLE_SOURCE
                                                                    : dataplane::v1::ROLE_DESTINATION);
  status_.set_ownership(record.migration->ownership_after);
}

std::expected<dataplane::v1::CommitMigrationResult, Error> Pull::commit(std::uint64_t ownership) {
  {
    // Before the request: its ConnectionLost may come at once.
    const std::lock_guard lock(mutex_);
    lost_meanwhile_ = false;
    status_.set_ownership(ownership);
  }
  dataplane::v1::ToDataplane request;
  request.mutable_commit_migration()->set_migration_id(id_.to_bytes());
  request.mutable_commit_migration()->set_ownership(ownership);
  auto reply = dataplane_.call(std::move(request), {}, kFinishTime);
  if (!reply) {
    lost(reply.error().code() == Error::NO_SUCH_MIGRATION ? "the data plane of this host was restarted"
                                                          : reply.error().text());
    return std::unexpected(reply.error());
  }
  {
    const std::lock_guard lock(mutex_);
    heard_ = secured_ = true;
    status_.set_connected(!lost_meanwhile_);
    if (reply->commit_migration().stats().has_paging()) {
      *status_.mutable_stats() = reply->commit_migration().stats().paging();
    }
  }
  on_change_();
  return std::move(*reply->mutable_commit_migration());
}

bool Pull::secured() const {
  const std::lock_guard lock(mutex_);
  return secured_;
}

std::expected<dataplane::v1::PrepareResumeResult, Error> Pull::prepare_resume(dataplane::v1::Encryption encryption) {
  dataplane::v1::ToDataplane request;
  auto& prepare = *request.mutable_prepare_resume();
  prepare.set_migration_id(id_.to_bytes());
  prepare.set_vm_uuid(record_.definition.uuid.to_bytes());
  prepare.set_image_id(record_.image_id.to_bytes());
  prepare.set_encryption(encryption);
  {
    const std::lock_guard lock(mutex_);
    prepare.set_ownership(status_.ownership());
    prepare.set_role(status_.role());
  }
  auto reply = dataplane_.call(std::move(request), {}, kFinishTime);
  if (!reply) {
    lost(reply.error().text());
    return std::unexpected(reply.error());
  }
  {
    const std::lock_guard lock(mutex_);
    secured_ = true;
    if (status_.role() == dataplane::v1::ROLE_DESTINATION) {
      status_.mutable_stats()->set_pages_missing(reply->prepare_resume().pages_missing());
    }
  }
  lost("the flow is being begun again");
  return std::move(*reply->mutable_prepare_resume());
}

std::expected<void, Error> Pull::resume(const controlplane::v1::ResumeTransfer& command) {
  {
    const std::lock_guard lock(mutex_);
    status_.set_connected(true);
    status_.clear_reason();
  }
  dataplane::v1::ToDataplane request;
  auto& resume = *request.mutable_resume_migration();
  resume.set_migration_id(id_.to_bytes());
  *resume.mutable_peer() = command.peer();
  resume.set_secret(command.secret());
  *resume.mutable_policy() = command.policy();
  if (auto reply = dataplane_.call(std::move(request)); !reply) {
    lost(reply.error().text());
    return std::unexpected(reply.error());
  }
  on_change_();
  return {};
}

std::expected<dataplane::v1::FinishMigrationResult, Error> Pull::finish(dataplane::v1::Outcome outcome) {
  std::uint64_t ownership = 0;
  {
    const std::lock_guard lock(mutex_);
    ownership = status_.ownership();
  }
  return finish_migration(dataplane_, id_, outcome, ownership);
}

bool Pull::look() {
  dataplane::v1::ToDataplane request;
  request.mutable_get_status();
  const auto reply = dataplane_.call(std::move(request));
  if (!reply) {
    lost(reply.error().text());
    return false;
  }
  for (const auto& paging : reply->status().paging()) {
    if (paging.migration_id() == id_.to_bytes()) {
      {
        const std::lock_guard lock(mutex_);
        heard_ = secured_ = true;
        const auto ownership = status_.ownership();
        status_ = paging;
        status_.set_ownership(std::max(ownership, paging.ownership()));
      }
      on_change_();
      return true;
    }
  }
  lost("the data plane of this host was restarted");
  return false;
}

void Pull::lost(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (status_.complete()) {
      return;  // there is nothing left to flow
    }
    heard_ = lost_meanwhile_ = true;
    status_.set_connected(false);
    status_.set_reason(printable(reason));
  }
  on_change_();
}

void Pull::on_dataplane_event(const dataplane::v1::Event& event) {
  if (event.has_progress()) {
    report(event.progress().stats());
  } else if (event.has_connection_lost()) {
    spdlog::warn("migration {} of VM {}: no pages flow: {}", id_.text(), record_.definition.name,
                 printable(event.connection_lost().reason()));
    lost(event.connection_lost().reason());
  } else if (event.has_complete()) {
    const auto& complete = event.complete();
    {
      const std::lock_guard lock(mutex_);
      status_.set_complete(true);
      status_.set_connected(true);
      status_.set_reason(complete.has_error() ? printable(complete.error().text()) : "");
    }
    report(complete.stats());
    on_change_();
  }
}

void Pull::report(const dataplane::v1::MigrationStats& stats) {
  MigrationEvent event;
  event.set_migration_id(id_.to_bytes());
  event.set_kind(MigrationEvent::PROGRESS);
  *event.mutable_stats() = stats;
  if (stats.has_paging()) {
    const std::lock_guard lock(mutex_);
    *status_.mutable_stats() = stats.paging();
  }
  emit_(std::move(event));
}

std::optional<dataplane::v1::PagingStatus> Pull::status() const {
  const std::lock_guard lock(mutex_);
  return heard_ ? std::optional(status_) : std::nullopt;
}

}  // namespace godwit::bridge
