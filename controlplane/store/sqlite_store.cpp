#include "controlplane/store/sqlite_store.h"

#include <fmt/format.h>

#include <mutex>

#include "controlplane/store/sqlite_records.h"
#include "controlplane/store/sqlite_schema.h"
#include "controlplane/store/sqlite_splits.h"
#include "controlplane/store/sqlite_statement.h"

namespace godwit::controlplane {
namespace {

using Code = StoreError::Code;
template <typename T>
using Result = Store::Result<T>;

constexpr int kBusyTimeoutMs = 10'000;

std::unexpected<StoreError> failed(Code code, std::string text) {
  return std::unexpected(StoreError{code, std::move(text)});
}

class SqliteStore final : public Store {
 public:
  SqliteStore(Database database, std::string file) : database_(std::move(database)), file_(std::move(file)) {}

  Result<void> prepare();

  Result<std::vector<VmRecord>> vms() override;
  Result<std::optional<VmRecord>> vm(const Id128& uuid) override;
  Result<std::optional<VmRecord>> find_vm(const std::string& name_or_uuid) override;
  Result<VmRecord> claim_vm(const VmClaim& claim) override;
  Result<bool> release_vm(const Id128& uuid, std::uint64_t ownership) override;
  Result<bool> redefine_vm(const api::VmDefinition& definition, std::uint64_t ownership) override;
  Result<MigrationRecord> begin_migration(const NewMigration& migration) override;
  Result<bool> transition(const MigrationRecord& record, api::MigrationState expected,
                          api::MigrationState next) override;
  Result<void> save_details(const MigrationRecord& record) override;
  Result<std::optional<MigrationRecord>> migration(const Id128& id) override;
  Result<std::vector<MigrationRecord>> migrations(std::uint32_t count_max) override;
  Result<std::vector<MigrationRecord>> active_migrations() override;
  Result<std::vector<MigrationRecord>> unsettled_migrations(const std::string& host) override;
  Result<std::vector<SplitRecord>> splits() override;
  Result<std::vector<PageStoreRecord>> page_stores() override;
  Result<void> save_split(const SplitRecord& split, std::span<const PageStoreRecord> added) override;
  Result<void> end_split(const Id128& vm_uuid) override;
  Result<void> set_page_store_state(const Id128& id, api::PageStoreState state) override;
  Result<void> forget_page_store(const Id128& id) override;
  Result<std::vector<StandingOrder>> standing_orders() override;
  Result<void> save_standing_order(const StandingOrder& order) override;
  Result<void> forget_standing_order(const Id128& vm_uuid) override;
  Result<void> save_host(const HostRecord& host) override;
  Result<std::vector<HostRecord>> hosts() override;

 private:
  std::unexpected<StoreError> database_failed(std::string_view doing) const {
    return failed(Code::kDatabase, fmt::format("cannot {} in {}: {}", doing, file_, sqlite3_errmsg(database_.get())));
  }
  /// Runs a statement that returns no rows.
  [[nodiscard]] bool done(Use& use) const { return use.step() == SQLITE_DONE; }
  [[nodiscard]] bool done(const Statement& statement) const {
    Use use(statement);
    return done(use);
  }
  [[nodiscard]] bool one_row_changed() const { return sqlite3_changes(database_.get()) == 1; }

  /// Runs `body` in an immediate transaction; rolls back when it returns an error.
  template <typename T, typename Body>
  Result<T> transaction(std::string_view doing, Body&& body);

  template <typename Record>
  Result<std::vector<Record>> rows(Use& use, Record (*read)(Use&), std::string_view doing) {
    std::vector<Record> records;
    int result = 0;
    while ((result = use.step()) == SQLITE_ROW) {
      records.push_back(read(use));
    }
    if (result != SQLITE_DONE) {
      return database_failed(doing);
    }
    return records;
  }
  template <typename Record>
  Result<std::optional<Record>> row(Use& use, Record (*read)(Use&), std::string_view doing) {
    const int result = use.step();
    if (result == SQLITE_ROW) {
      return read(use);
    }
    if (result != SQLITE_DONE) {
      return database_failed(doing);
    }
    return std::optional<Record>();
  }

  Result<std::optional<VmRecord>> read_vm(const Id128& uuid);
  enum class But : std::uint8_t { kNone, kKeepsStores };
  /// `but`: a migration that keeps stores, and is PREPARING or PULLING, is no obstacle.
  Result<void> not_migrating(const Id128& uuid, const std::string& name, But but = But::kNone);
  Result<VmRecord> claim_locked(const VmClaim& claim, const Id128& uuid);
  Result<MigrationRecord> begin_locked(const NewMigration& migration);
  Result<void> split_fits(const MigrationRecord& record);
  Result<bool> transition_locked(const MigrationRecord& record, api::MigrationState expected, api::MigrationState next);
  [[nodiscard]] bool write_details(const MigrationRecord& record);

  std::mutex mutex_;
  Database database_;
  std::string file_;
  Statement begin_, commit_, rollback_;
  Statement vms_, vm_by_uuid_, vm_by_name_, insert_vm_, claim_vm_, release_vm_, redefine_vm_, reserve_epochs_, move_vm_;
  Statement insert_migration_, set_state_, set_details_, migration_, migrations_, active_, active_of_vm_, unsettled_;
  Statement save_host_, hosts_;
  SqliteSplits splits_;
};

Result<void> SqliteStore::prepare() {
  const struct {
    Statement& statement;
    const char* sql;
  } statements[] = {
      {begin_, "BEGIN IMMEDIATE"},
      {commit_, "COMMIT"},
      {rollback_, "ROLLBACK"},
      {vms_, "SELECT " VM_COLUMNS " FROM vms ORDER BY name"},
      {vm_by_uuid_, "SELECT " VM_COLUMNS " FROM vms WHERE uuid = ?"},
      {vm_by_name_, "SELECT " VM_COLUMNS " FROM vms WHERE name = ?"},
      {insert_vm_, "INSERT INTO vms (" VM_COLUMNS ") VALUES (?, ?, ?, ?, 1, ?, 1, ?)"},
      {claim_vm_,
       "UPDATE vms SET name = ?, definition = ?, host = ?, image_id = ?, tracker = ?, ownership = ownership + 1, "
       "epoch_next = epoch_next + 1 WHERE uuid = ? AND ownership = ?"},
      {release_vm_, "UPDATE vms SET host = '' WHERE uuid = ? AND ownership = ?"},
      {redefine_vm_, "UPDATE vms SET definition = ? WHERE uuid = ? AND ownership = ?"},
      {reserve_epochs_, "UPDATE vms SET epoch_next = ? WHERE uuid = ?"},
      {move_vm_, "UPDATE vms SET host = ?, ownership = ownership + 1 WHERE uuid = ? AND host = ? AND ownership = ?"},
      {insert_migration_,
       "INSERT INTO migrations (id, vm_uuid, vm_name, plan, source, destination, state, ownership_before, image_id, "
       "epoch_base, epoch_count, created_unix_us) VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)"},
      {set_state_, "UPDATE migrations SET state = ? WHERE id = ? AND state = ?"},
      {set_details_,
       "UPDATE migrations SET reason = ?, reused = ?, reuse_reason = ?, ended_unix_us = ?, stop_unix_us = ?, "
       "resume_unix_us = ?, stats = ?, destination_stats = ?, tracker = ?, tracker_reason = ?, source_settled = ?, "
       "destination_settled = ? WHERE id = ?"},
      {migration_, "SELECT " MIGRATION_COLUMNS " FROM migrations WHERE id = ?"},
      {migrations_, "SELECT " MIGRATION_COLUMNS " FROM migrations ORDER BY created_unix_us DESC, rowid DESC LIMIT ?"},
      {active_, "SELECT " MIGRATION_COLUMNS " FROM migrations WHERE " ACTIVE_MIGRATION},
      {active_of_vm_, "SELECT " MIGRATION_COLUMNS " FROM migrations WHERE " ACTIVE_MIGRATION " AND vm_uuid = ?"},
      {unsettled_, "SELECT " MIGRATION_COLUMNS " FROM migrations WHERE state >= 4 AND (source_settled = 0 OR "
                   "destination_settled = 0) AND ((source = ?1 AND source_settled = 0) OR (destination = ?1 AND "
                   "destination_settled = 0))"},
      {save_host_, "INSERT OR REPLACE INTO hosts (name, last, last_seen_unix_us) VALUES (?, ?, ?)"},
      {hosts_, "SELECT name, last, last_seen_unix_us FROM hosts ORDER BY name"},
  };
  for (const auto& [statement, sql] : statements) {
    sqlite3_stmt* prepared = nullptr;
    if (sqlite3_prepare_v3(database_.get(), sql, -1, SQLITE_PREPARE_PERSISTENT, &prepared, nullptr) != SQLITE_OK) {
      return database_failed("prepare statements");
    }
    statement.reset(prepared);
  }
  if (!splits_.prepare(database_.get())) {
    return database_failed("prepare statements");
  }
  return {};
}

template <typename T, typename Body>
Result<T> SqliteStore::transaction(std::string_view doing, Body&& body) {
  const std::lock_guard lock(mutex_);
  if (!done(begin_)) {
    return database_failed(doing);
  }
  Result<T> result = body();
  if (result && done(commit_)) {
    return result;
  }
  if (result) {
    result = database_failed(doing);
  }
  if (sqlite3_get_autocommit(database_.get()) == 0) {
    (void)done(rollback_);
  }
  return result;
}

Result<std::vector<VmRecord>> SqliteStore::vms() {
  const std::lock_guard lock(mutex_);
  Use use(vms_);
  return rows(use, vm_of, "list VMs");
}

Result<std::optional<VmRecord>> SqliteStore::read_vm(const Id128& uuid) {
  Use use(vm_by_uuid_);
  use.id(uuid);
  return row(use, vm_of, "read a VM");
}

Result<std::optional<VmRecord>> SqliteStore::vm(const Id128& uuid) {
  const std::lock_guard lock(mutex_);
  return read_vm(uuid);
}

Result<std::optional<VmRecord>> SqliteStore::find_vm(const std::string& name_or_uuid) {
  const std::lock_guard lock(mutex_);
  {
    Use use(vm_by_name_);
    use.text(name_or_uuid);
    auto found = row(use, vm_of, "read a VM");
    if (!found || *found) {
      return found;
    }
  }
  const auto uuid = Id128::parse(name_or_uuid);
  return uuid ? read_vm(*uuid) : std::optional<VmRecord>();
}

Result<void> SqliteStore::not_migrating(const Id128& uuid, const std::string& name, But but) {
  Use use(active_of_vm_);
  use.id(uuid);
  const auto active = row(use, migration_of, "read migrations");
  const auto may_be = [but](const MigrationRecord& migration) {
    return but == But::kKeepsStores && migration.plan.keeps_stores() &&
           (migration.state == api::PREPARING || migration.state == api::PULLING);
  };
  if (active && *active && !may_be(**active)) {
    return failed(Code::kMigrationActive, fmt::format("VM \"{}\" is in migration {}", name, (*active)->id.text()));
  }
  return active ? Result<void>() : std::unexpected(active.error());
}

Result<VmRecord> SqliteStore::claim_vm(const VmClaim& claim) {
  const auto uuid = Id128::from_bytes(claim.definition.uuid());
  GW_ASSERT(uuid.has_value() && !claim.host.empty());
  return transaction<VmRecord>("give a VM to a host", [&] { return claim_locked(claim, *uuid); });
}

Result<VmRecord> SqliteStore::claim_locked(const VmClaim& claim, const Id128& uuid) {
  const std::string& name = claim.definition.name();
  {
    Use use(vm_by_name_);
    use.text(name);
    const auto same_name = row(use, vm_of, "read a VM");
    if (!same_name) {
      return std::unexpected(same_name.error());
    }
    if (*same_name && (*same_name)->uuid != uuid) {
      return failed(Code::kNameTaken,
                    fmt::format("VM \"{}\" exists with uuid {}; choose another name", name, (*same_name)->uuid.text()));
    }
  }
  if (auto stays = not_migrating(uuid, name); !stays) {
    return std::unexpected(stays.error());
  }
  const auto known = read_vm(uuid);
  if (!known) {
    return std::unexpected(known.error());
  }
  if ((known->has_value() ? (*known)->ownership : 0) != claim.ownership_seen) {
    return failed(Code::kOwnershipMoved, fmt::format("VM \"{}\" has changed hands meanwhile; look again", name));
  }
  if (!*known) {
    Use use(insert_vm_);
    use.id(uuid).text(name).blob(claim.definition.SerializeAsString()).text(claim.host).id(claim.image_id);
    if (!done(use.number(claim.tracker))) {
      return database_failed("store a VM");
    }
  } else {
    if ((*known)->epoch_next >= kEpochMax - 1) {
      return failed(Code::kEpochsExhausted, fmt::format("VM \"{}\" has used up its epochs: give it a new uuid", name));
    }
    Use use(claim_vm_);
    use.text(name).blob(claim.definition.SerializeAsString()).text(claim.host).id(claim.image_id).number(claim.tracker);
    if (!done(use.id(uuid).number(claim.ownership_seen)) || !one_row_changed() || !splits_.forget_order(uuid)) {
      return database_failed("store a VM");
    }
  }
  auto claimed = read_vm(uuid);
  if (!claimed) {
    return std::unexpected(claimed.error());
  }
  GW_ASSERT(claimed->has_value());
  return **claimed;
}

Result<bool> SqliteStore::release_vm(const Id128& uuid, std::uint64_t ownership) {
  const std::lock_guard lock(mutex_);
  Use use(release_vm_);
  if (!done(use.id(uuid).number(ownership))) {
    return database_failed("release a VM");
  }
  return one_row_changed();
}

Result<bool> SqliteStore::redefine_vm(const api::VmDefinition& definition, std::uint64_t ownership) {
  const std::lock_guard lock(mutex_);
  Use use(redefine_vm_);
  if (!done(use.blob(definition.SerializeAsString()).blob(definition.uuid()).number(ownership))) {
    return database_failed("store a VM's definition");
  }
  return one_row_changed();
}

Result<MigrationRecord> SqliteStore::begin_migration(const NewMigration& migration) {
  return transaction<MigrationRecord>("begin a migration", [&] { return begin_locked(migration); });
}

Result<MigrationRecord> SqliteStore::begin_locked(const NewMigration& migration) {
  const auto vm = read_vm(migration.vm_uuid);
  if (!vm) {
    return std::unexpected(vm.error());
  }
  if (!*vm) {
    return failed(Code::kNotFound, fmt::format("no VM {}", migration.vm_uuid.text()));
  }
  const VmRecord& from = **vm;
  if (from.ownership != migration.ownership_seen || from.host.empty()) {
    return failed(Code::kOwnershipMoved, fmt::format("VM \"{}\" has changed hands meanwhile; look again", from.name));
  }
  if (from.epoch_next >= kEpochMax - kEpochsPerAttempt - 1) {
    return failed(Code::kEpochsExhausted,
                  fmt::format("VM \"{}\" has used up its epochs: give it a new uuid", from.name));
  }
  if (const auto split = splits_.state_of(from.uuid);
      !split ||
      (*split != api::SPLIT_UNSPECIFIED && *split != (migration.plan.keeps_stores() ? api::SPLIT : api::GATHERING))) {
    return split ? failed(Code::kSplit, fmt::format("VM \"{}\" is split: gather it first", from.name))
                 : database_failed("read splits");
  }
  const std::uint32_t epoch_base = from.epoch_next + 1;
  {
    Use use(insert_migration_);
    use.id(migration.id).id(from.uuid).text(from.name).blob(migration.plan.SerializeAsString()).text(from.host);
    use.text(migration.destination).number(from.ownership).id(from.image_id).number(epoch_base);
    const int result = use.number(kEpochsPerAttempt).number(migration.created_unix_us).step();
    if (result == SQLITE_CONSTRAINT) {
      return failed(Code::kMigrationActive, fmt::format("VM \"{}\" is in a migration already", from.name));
    }
    if (result != SQLITE_DONE) {
      return database_failed("store a migration");
    }
  }
  {
    Use use(reserve_epochs_);
    if (!done(use.number(epoch_base + kEpochsPerAttempt).id(from.uuid))) {
      return database_failed("reserve epochs");
    }
  }
  Use use(migration_);
  use.id(migration.id);
  auto stored = row(use, migration_of, "read a migration");
  if (!stored) {
    return std::unexpected(stored.error());
  }
  GW_ASSERT(stored->has_value());
  return **stored;
}

Result<bool> SqliteStore::transition(const MigrationRecord& record, api::MigrationState expected,
                                     api::MigrationState next) {
  if (!may_follow(expected, next)) {
    return failed(Code::kForbidden, fmt::format("{} does not follow {}", api::MigrationState_Name(next),
                                                api::MigrationState_Name(expected)));
  }
  const auto won =
      transaction<bool>("change a migration's state", [&] { return transition_locked(record, expected, next); });
  // Losing is rolled back as an error, so that a half of it can never stay.
  if (!won && won.error().code == Code::kOwnershipMoved) {
    return false;
  }
  return won;
}

/// It is split if its stores are to be kept, and whole if not.
Result<void> SqliteStore::split_fits(const MigrationRecord& record) {
  const auto split = splits_.state_of(record.vm_uuid);
  if (!split) {
    return database_failed("read splits");
  }
  const bool keeps = record.plan.keeps_stores();
  if (*split != (keeps ? api::SPLIT : api::SPLIT_UNSPECIFIED)) {
    return failed(Code::kSplit, fmt::format("VM \"{}\" is {}", record.vm_name,
                                            keeps ? "not split any more" : "split: it has not been gathered"));
  }
  return {};
}

Result<bool> SqliteStore::transition_locked(const MigrationRecord& record, api::MigrationState expected,
                                            api::MigrationState next) {
  {
    Use use(set_state_);
    if (!done(use.number(next).id(record.id).number(expected))) {
      return database_failed("change a migration's state");
    }
  }
  if (!one_row_changed()) {
    return failed(Code::kOwnershipMoved, "lost");
  }
  if (next == api::TRANSFERRING) {
    if (auto fits = split_fits(record); !fits) {
      return std::unexpected(fits.error());
    }
  }
  if (is_committed(next) && !is_committed(expected)) {
    Use use(move_vm_);
    use.text(record.destination).id(record.vm_uuid).text(record.source).number(record.ownership_before);
    if (!done(use)) {
      return database_failed("move a VM's ownership");
    }
    if (!one_row_changed()) {
      return failed(Code::kOwnershipMoved, "lost");
    }
    if (auto fits = split_fits(record); !fits) {
      return std::unexpected(fits.error());
    }
    if (record.plan.keeps_stores() && !splits_.move(record)) {
      return database_failed("move a split");
    }
  }
  if (!write_details(record)) {
    return database_failed("store a migration's details");
  }
  return true;
}

bool SqliteStore::write_details(const MigrationRecord& record) {
  Use use(set_details_);
  use.text(record.reason).flag(record.reused).text(record.reuse_reason).number(record.ended_unix_us);
  use.number(record.stop_unix_us).number(record.resume_unix_us).blob(record.stats.SerializeAsString());
  use.blob(record.destination_stats.SerializeAsString()).number(record.tracker).text(record.tracker_reason);
  return done(use.flag(record.source_settled).flag(record.destination_settled).id(record.id));
}

Result<void> SqliteStore::save_details(const MigrationRecord& record) {
  const std::lock_guard lock(mutex_);
  if (!write_details(record)) {
    return database_failed("store a migration's details");
  }
  return {};
}

Result<std::optional<MigrationRecord>> SqliteStore::migration(const Id128& id) {
  const std::lock_guard lock(mutex_);
  Use use(migration_);
  use.id(id);
  return row(use, migration_of, "read a migration");
}

Result<std::vector<MigrationRecord>> SqliteStore::migrations(std::uint32_t count_max) {
  const std::lock_guard lock(mutex_);
  Use use(migrations_);
  use.number(count_max == 0 ? std::int64_t{-1} : std::int64_t{count_max});
  return rows(use, migration_of, "list migrations");
}

Result<std::vector<MigrationRecord>> SqliteStore::active_migrations() {
  const std::lock_guard lock(mutex_);
  Use use(active_);
  return rows(use, migration_of, "list migrations");
}

Result<std::vector<MigrationRecord>> SqliteStore::unsettled_migrations(const std::string& host) {
  const std::lock_guard lock(mutex_);
  Use use(unsettled_);
  use.text(host);
  return rows(use, migration_of, "list migrations");
}

Result<std::vector<SplitRecord>> SqliteStore::splits() {
  const std::lock_guard lock(mutex_);
  auto all = splits_.splits();
  return all ? Result<std::vector<SplitRecord>>(std::move(*all)) : database_failed("list splits");
}

Result<std::vector<PageStoreRecord>> SqliteStore::page_stores() {
  const std::lock_guard lock(mutex_);
  auto all = splits_.page_stores();
  return all ? Result<std::vector<PageStoreRecord>>(std::move(*all)) : database_failed("list page stores");
}

Result<void> SqliteStore::save_split(const SplitRecord& split, std::span<const PageStoreRecord> added) {
  return transaction<void>("store a split", [&]() -> Result<void> {
    const auto vm = read_vm(split.vm_uuid);
    if (!vm) {
      return std::unexpected(vm.error());
    }
    if (!*vm || (*vm)->host.empty() || (*vm)->ownership != split.ownership) {
      return failed(Code::kOwnershipMoved, "the VM has changed hands meanwhile; look again");
    }
    if (auto stays = not_migrating(split.vm_uuid, (*vm)->name, But::kKeepsStores); !stays) {
      return stays;
    }
    bool written = splits_.write(split);
    for (const PageStoreRecord& page_store : added) {
      written = written && splits_.add(page_store);
    }
    return written ? Result<void>() : database_failed("store a split");
  });
}

Result<void> SqliteStore::end_split(const Id128& vm_uuid) {
  return transaction<void>("end a split", [&]() -> Result<void> {
    return splits_.end(vm_uuid) ? Result<void>() : database_failed("end a split");
  });
}

Result<void> SqliteStore::set_page_store_state(const Id128& id, api::PageStoreState state) {
  const std::lock_guard lock(mutex_);
  return splits_.set_state(id, state) ? Result<void>() : database_failed("change a page store's state");
}

Result<void> SqliteStore::forget_page_store(const Id128& id) {
  const std::lock_guard lock(mutex_);
  return splits_.forget(id) ? Result<void>() : database_failed("forget a page store");
}

Result<std::vector<StandingOrder>> SqliteStore::standing_orders() {
  const std::lock_guard lock(mutex_);
  auto all = splits_.standing_orders();
  return all ? Result<std::vector<StandingOrder>>(std::move(*all)) : database_failed("list standing orders");
}

Result<void> SqliteStore::save_standing_order(const StandingOrder& order) {
  const std::lock_guard lock(mutex_);
  return splits_.write(order) ? Result<void>() : database_failed("store a standing order");
}

Result<void> SqliteStore::forget_standing_order(const Id128& vm_uuid) {
  const std::lock_guard lock(mutex_);
  return splits_.forget_order(vm_uuid) ? Result<void>() : database_failed("forget a standing order");
}

Result<void> SqliteStore::save_host(const HostRecord& host) {
  const std::lock_guard lock(mutex_);
  Use use(save_host_);
  if (!done(use.text(host.name).blob(host.last.SerializeAsString()).number(host.last_seen_unix_us))) {
    return database_failed("store a host");
  }
  return {};
}

Result<std::vector<HostRecord>> SqliteStore::hosts() {
  const std::lock_guard lock(mutex_);
  Use use(hosts_);
  return rows(use, host_of, "list hosts");
}

std::unexpected<StoreError> cannot_open(sqlite3* database, const std::filesystem::path& file) {
  return failed(Code::kDatabase, fmt::format("cannot open the store {}: {}", file.string(), sqlite3_errmsg(database)));
}

}  // namespace

std::expected<std::unique_ptr<Store>, StoreError> open_sqlite_store(const std::filesystem::path& file) {
  sqlite3* handle = nullptr;
  const int opened =
      sqlite3_open_v2(file.c_str(), &handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  Database database(handle);
  if (opened != SQLITE_OK) {
    return cannot_open(handle, file);
  }
  sqlite3_extended_result_codes(handle, 0);
  sqlite3_busy_timeout(handle, kBusyTimeoutMs);
  const auto run = [&](const char* sql) { return sqlite3_exec(handle, sql, nullptr, nullptr, nullptr) == SQLITE_OK; };
  if (!run(
          "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;"
          "BEGIN IMMEDIATE")) {
    return cannot_open(handle, file);
  }
  const auto version = bring_schema_up_to_date(handle);
  if (!version) {
    return cannot_open(handle, file);
  }
  if (*version > kSchemaVersion) {
    return failed(Code::kDatabase,
                  fmt::format("the store {} has schema version {}, this control plane knows {}: use the newer program",
                              file.string(), *version, kSchemaVersion));
  }
  if (!run("COMMIT")) {
    return cannot_open(handle, file);
  }
  auto store = std::make_unique<SqliteStore>(std::move(database), file.string());
  if (auto prepared = store->prepare(); !prepared) {
    return std::unexpected(prepared.error());
  }
  return store;
}

}  // namespace godwit::controlplane
