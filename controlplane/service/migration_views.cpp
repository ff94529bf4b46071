// Migrations, third part: what operators see.
#include <fmt/format.h>

#include <algorithm>

#include "controlplane/service/migrations.h"

namespace godwit::controlplane {
namespace {

constexpr std::uint32_t kListCountMax = 1000;

}  // namespace

api::Migration to_api(const MigrationRecord& record) {
  api::Migration migration;
  migration.set_id(record.id.to_bytes());
  *migration.mutable_plan() = record.plan;
  migration.set_source(record.source);
  migration.set_state(record.state);
  migration.set_reason(record.reason);
  *migration.mutable_stats() = record.stats;
  *migration.mutable_destination_stats() = record.destination_stats;
  migration.set_reused(record.reused);
  migration.set_reuse_reason(record.reuse_reason);
  migration.set_created_unix_us(record.created_unix_us);
  migration.set_ended_unix_us(record.ended_unix_us);
  migration.set_stop_unix_us(record.stop_unix_us);
  migration.set_resume_unix_us(record.resume_unix_us);
  migration.set_vm_name(record.vm_name);
  migration.set_vm_uuid(record.vm_uuid.to_bytes());
  migration.set_tracker(record.tracker);
  migration.set_tracker_reason(record.tracker_reason);
  migration.set_ended(is_terminal(record.state));
  return migration;
}

api::Outcome outcome_of(const MigrationRecord& record) {
  api::Outcome outcome;
  outcome.set_migration_id(record.id.to_bytes());
  outcome.set_state(record.state);
  outcome.set_reason(record.reason);
  outcome.set_ownership(record.ownership_after());
  return outcome;
}

api::Migration Migrations::shown(const Active& m) const {
  api::Migration now = to_api(m.record);
  now.set_note(m.note);
  now.set_ended(false);
  now.set_connected(flows(m));
  return now;
}

std::expected<std::vector<api::Migration>, StoreError> Migrations::list(bool active_only) {
  const auto stored = active_only ? store_.active_migrations() : store_.migrations(kListCountMax);
  if (!stored) {
    return std::unexpected(stored.error());
  }
  std::vector<api::Migration> migrations;
  for (const MigrationRecord& record : *stored) {
    const Active* m = find(record.id);
    migrations.push_back(m != nullptr ? shown(*m) : to_api(record));
  }
  return migrations;
}

std::expected<void, ServiceError> Migrations::watch(const Id128& id, std::shared_ptr<MigrationWatcher> watcher) {
  if (Active* m = find(id)) {
    watcher->update(shown(*m));
    m->watchers.push_back(std::move(watcher));
    return {};
  }
  const auto stored = store_.migration(id);
  if (!stored) {
    return std::unexpected(ServiceError{ServiceError::Code::kStore, stored.error().text});
  }
  if (!*stored) {
    return std::unexpected(ServiceError{ServiceError::Code::kNotFound, fmt::format("no migration {}", id.text())});
  }
  watcher->update(to_api(**stored));
  return {};
}

void Migrations::unwatch(const Id128& id, const MigrationWatcher* watcher) {
  if (Active* m = find(id)) {
    std::erase_if(m->watchers, [&](const auto& each) { return each.get() == watcher; });
  }
}

std::optional<Id128> Migrations::of_vm(const Id128& vm_uuid) const {
  for (const auto& [id, m] : active_) {
    if (m->record.vm_uuid == vm_uuid) {
      return id;
    }
  }
  return std::nullopt;
}

Migrations::MainPart Migrations::main_part(const Id128& vm_uuid) const {
  for (const auto& [id, m] : active_) {
    if (m->record.vm_uuid == vm_uuid && m->record.plan.keeps_stores() && !is_committed(m->record.state)) {
      return m->step == Step::kHeld ? MainPart::kWaits : MainPart::kMoves;
    }
  }
  return MainPart::kStays;
}

const MigrationRecord* Migrations::pulling(const Id128& vm_uuid) const {
  const auto found = std::ranges::find_if(active_, [&](const auto& each) {
    return each.second->record.vm_uuid == vm_uuid && each.second->record.state == api::PULLING;
  });
  return found == active_.end() ? nullptr : &found->second->record;
}

std::vector<api::Migration> Migrations::all_pulling() const {
  std::vector<api::Migration> found;
  for (const auto& [id, m] : active_) {
    if (m->record.state == api::PULLING) {
      found.push_back(shown(*m));
    }
  }
  return found;
}

std::map<api::MigrationState, std::uint64_t> Migrations::active_by_state() const {
  std::map<api::MigrationState, std::uint64_t> count;
  for (const auto& [id, m] : active_) {
    ++count[m->record.state];
  }
  return count;
}

bool Migrations::uses_image(const std::string& host, const Id128& vm_uuid) const {
  return std::any_of(active_.begin(), active_.end(), [&](const auto& each) {
    const MigrationRecord& record = each.second->record;
    return record.vm_uuid == vm_uuid && (record.source == host || record.destination == host);
  });
}

}  // namespace godwit::controlplane
