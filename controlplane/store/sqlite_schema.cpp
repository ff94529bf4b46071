#include "controlplane/store/sqlite_schema.h"

#include <algorithm>

#include "controlplane/store/sqlite_statement.h"
#include "controlplane/store/store.h"

namespace godwit::controlplane {
namespace {

// States are the numbers of MigrationState: 1 PREPARING, 2 TRANSFERRING, 3 SWITCHING, 4 COMMITTED, 5 ABORTED, 6
// PULLING, 7 INCOMPLETE.
static_assert(api::PREPARING == 1 && api::SWITCHING == 3 && api::COMMITTED == 4 && api::ABORTED == 5 &&
              api::PULLING == 6 && api::INCOMPLETE == 7);
constexpr const char* kSchema = R"sql(
CREATE TABLE vms (
  uuid BLOB PRIMARY KEY CHECK (length(uuid) = 16),
  name TEXT NOT NULL UNIQUE,
  definition BLOB NOT NULL,
  host TEXT NOT NULL,
  ownership INTEGER NOT NULL CHECK (ownership > 0),
  image_id BLOB NOT NULL CHECK (length(image_id) = 16),
  epoch_next INTEGER NOT NULL CHECK (epoch_next > 0 AND epoch_next < 4294967295),
  tracker INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE hosts (
  name TEXT PRIMARY KEY,
  last BLOB NOT NULL,
  last_seen_unix_us INTEGER NOT NULL
) WITHOUT ROWID;
)sql";
constexpr const char* kMigrationsSchema = R"sql(
CREATE TABLE migrations (
  id BLOB PRIMARY KEY CHECK (length(id) = 16),
  vm_uuid BLOB NOT NULL REFERENCES vms (uuid),
  vm_name TEXT NOT NULL,
  plan BLOB NOT NULL,
  source TEXT NOT NULL,
  destination TEXT NOT NULL,
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 7),
  reason TEXT NOT NULL DEFAULT '',
  ownership_before INTEGER NOT NULL,
  image_id BLOB NOT NULL,
  epoch_base INTEGER NOT NULL,
  epoch_count INTEGER NOT NULL,
  reused INTEGER NOT NULL DEFAULT 0,
  reuse_reason TEXT NOT NULL DEFAULT '',
  created_unix_us INTEGER NOT NULL,
  ended_unix_us INTEGER NOT NULL DEFAULT 0,
  stop_unix_us INTEGER NOT NULL DEFAULT 0,
  resume_unix_us INTEGER NOT NULL DEFAULT 0,
  stats BLOB NOT NULL DEFAULT x'',
  destination_stats BLOB NOT NULL DEFAULT x'',
  tracker INTEGER NOT NULL DEFAULT 0,
  tracker_reason TEXT NOT NULL DEFAULT '',
  source_settled INTEGER NOT NULL DEFAULT 0,
  destination_settled INTEGER NOT NULL DEFAULT 0
);
)sql";
constexpr const char* kMigrationsIndexes = R"sql(
CREATE UNIQUE INDEX one_active_migration_a_vm ON migrations (vm_uuid) WHERE )sql" ACTIVE_MIGRATION R"sql(;
CREATE INDEX unsettled_migrations ON migrations (source, destination)
  WHERE state >= 4 AND (source_settled = 0 OR destination_settled = 0);
CREATE INDEX migrations_by_time ON migrations (created_unix_us);
)sql";
// The numbers of SplitState and PageStoreState, of which LOST (3) is not stored.
static_assert(api::SPLITTING == 1 && api::SPLIT == 2 && api::GATHERING == 3 && api::PAGE_STORE_PREPARING == 1 &&
              api::PAGE_STORE_CONNECTED == 2 && api::PAGE_STORE_RETIRING == 4 && api::PAGE_STORE_DRAINING == 5 &&
              dpapi::ENCRYPTION_AES_128_GCM == 0 && dpapi::ENCRYPTION_NONE == 2);
constexpr const char* kSplitsSchema = R"sql(
CREATE TABLE splits (
  vm_uuid BLOB PRIMARY KEY REFERENCES vms (uuid),
  ownership INTEGER NOT NULL CHECK (ownership > 0),
  budget_bytes INTEGER NOT NULL CHECK (budget_bytes > 0),
  state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 3),
  encryption INTEGER NOT NULL CHECK (encryption BETWEEN 0 AND 2)
) WITHOUT ROWID;
CREATE TABLE page_stores (
  id BLOB PRIMARY KEY CHECK (length(id) = 16),
  vm_uuid BLOB NOT NULL REFERENCES vms (uuid),
  vm_name TEXT NOT NULL,
  main_host TEXT NOT NULL,
  sub_host TEXT NOT NULL,
  ownership INTEGER NOT NULL,
  number INTEGER NOT NULL CHECK (number BETWEEN 0 AND 4095),
  bytes_lent INTEGER NOT NULL CHECK (bytes_lent > 0),
  state INTEGER NOT NULL CHECK (state IN (1, 2, 4, 5))
) WITHOUT ROWID;
CREATE UNIQUE INDEX one_page_store_a_number ON page_stores (vm_uuid, number) WHERE state <> 4;
CREATE UNIQUE INDEX one_page_store_a_sub_host ON page_stores (vm_uuid, sub_host) WHERE state <> 4;
)sql";
// Each of the splits is a SplitVmRequest; empty: none.
constexpr const char* kOrdersSchema = R"sql(
CREATE TABLE standing_orders (
  vm_uuid BLOB PRIMARY KEY REFERENCES vms (uuid),
  source TEXT NOT NULL,
  at_source BLOB NOT NULL,
  destination TEXT NOT NULL,
  at_destination BLOB NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = 5;
)sql";
// Version 1 knew no state above 5. The columns are the same; the old indexes go with the old table.
constexpr const char* kFromVersion1[] = {
    "ALTER TABLE migrations RENAME TO migrations_1;",
    kMigrationsSchema,
    "INSERT INTO migrations SELECT * FROM migrations_1 ORDER BY rowid; DROP TABLE migrations_1;",
    kMigrationsIndexes,
    kSplitsSchema,
    kOrdersSchema,
};
// Version 3 knew neither how flows are encrypted nor DRAINING.
constexpr const char* kFromVersion3[] = {
    "ALTER TABLE splits RENAME TO splits_3; ALTER TABLE page_stores RENAME TO page_stores_3;",
    "DROP INDEX one_page_store_a_number; DROP INDEX one_page_store_a_sub_host;",
    kSplitsSchema,
    "INSERT INTO splits SELECT *, 0 FROM splits_3; INSERT INTO page_stores SELECT * FROM page_stores_3;",
    "DROP TABLE splits_3; DROP TABLE page_stores_3;",
    kOrdersSchema,
};

/// -1 on an error.
int version_of(sqlite3* database) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(database, "PRAGMA user_version", -1, &statement, nullptr) != SQLITE_OK) {
    return -1;
  }
  const Statement owner(statement);
  return sqlite3_step(statement) == SQLITE_ROW ? sqlite3_column_int(statement, 0) : -1;
}

}  // namespace

std::optional<int> bring_schema_up_to_date(sqlite3* database) {
  const auto run = [&](const char* sql) { return sqlite3_exec(database, sql, nullptr, nullptr, nullptr) == SQLITE_OK; };
  const int version = version_of(database);
  const bool ready = version == 0 ? run(kSchema) && run(kMigrationsSchema) && run(kMigrationsIndexes) &&
                                        run(kSplitsSchema) && run(kOrdersSchema)
                     : version == 1 ? std::ranges::all_of(kFromVersion1, run)
                     : version == 2 ? run(kSplitsSchema) && run(kOrdersSchema)
                     : version == 3 ? std::ranges::all_of(kFromVersion3, run)
                     : version == 4 ? run(kOrdersSchema)
                                    : version > 0;
  return ready ? std::optional(version) : std::nullopt;
}

}  // namespace godwit::controlplane
