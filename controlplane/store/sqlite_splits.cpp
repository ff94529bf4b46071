#include "controlplane/store/sqlite_splits.h"

#include "controlplane/store/sqlite_records.h"

namespace godwit::controlplane {
namespace {

#define SPLIT_COLUMNS "vm_uuid, ownership, budget_bytes, state, encryption"
#define ORDER_COLUMNS "vm_uuid, source, at_source, destination, at_destination"
#define PAGE_STORE_COLUMNS "id, vm_uuid, vm_name, main_host, sub_host, ownership, number, bytes_lent, state"

SplitRecord split_of(Use& use) {
  SplitRecord split;
  split.vm_uuid = use.id();
  split.ownership = static_cast<std::uint64_t>(use.number());
  split.budget_bytes = static_cast<std::uint64_t>(use.number());
  split.state = static_cast<api::SplitState>(use.number());
  split.encryption = static_cast<dpapi::Encryption>(use.number());
  return split;
}

PageStoreRecord page_store_of(Use& use) {
  PageStoreRecord record;
  record.id = use.id();
  record.vm_uuid = use.id();
  record.vm_name = use.bytes();
  record.main_host = use.bytes();
  record.sub_host = use.bytes();
  record.ownership = static_cast<std::uint64_t>(use.number());
  record.number = static_cast<std::uint32_t>(use.number());
  record.bytes_lent = static_cast<std::uint64_t>(use.number());
  record.state = static_cast<api::PageStoreState>(use.number());
  return record;
}

StandingOrder order_of(Use& use) {
  StandingOrder order;
  order.vm_uuid = use.id();
  order.source = use.bytes();
  order.at_source = parsed<api::SplitVmRequest>(use.bytes());
  order.destination = use.bytes();
  order.at_destination = parsed<api::SplitVmRequest>(use.bytes());
  return order;
}

template <typename Record>
std::optional<std::vector<Record>> rows(Use& use, Record (*read)(Use&)) {
  std::vector<Record> records;
  int result = 0;
  while ((result = use.step()) == SQLITE_ROW) {
    records.push_back(read(use));
  }
  return result == SQLITE_DONE ? std::optional(std::move(records)) : std::nullopt;
}

bool done(Use& use) { return use.step() == SQLITE_DONE; }

}  // namespace

bool SqliteSplits::prepare(sqlite3* database) {
  const std::array<std::pair<Statement*, const char*>, 14> statements{{
      {&splits_, "SELECT " SPLIT_COLUMNS " FROM splits"},
      {&split_of_vm_, "SELECT state FROM splits WHERE vm_uuid = ?"},
      {&write_split_, "INSERT OR REPLACE INTO splits (" SPLIT_COLUMNS ") VALUES (?, ?, ?, ?, ?)"},
      {&erase_split_, "DELETE FROM splits WHERE vm_uuid = ?"},
      {&move_split_,
       "UPDATE splits SET ownership = ownership + 1, budget_bytes = coalesce(nullif(?, 0), budget_bytes), state = ? "
       "WHERE vm_uuid = ?"},
      {&move_page_stores_, "UPDATE page_stores SET main_host = ?, ownership = ? WHERE vm_uuid = ? AND state <> 4"},
      {&page_stores_, "SELECT " PAGE_STORE_COLUMNS " FROM page_stores ORDER BY vm_name, number"},
      {&add_page_store_, "INSERT INTO page_stores (" PAGE_STORE_COLUMNS ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"},
      {&retire_, "UPDATE page_stores SET state = 4 WHERE vm_uuid = ?"},
      {&set_state_, "UPDATE page_stores SET state = ? WHERE id = ?"},
      {&forget_, "DELETE FROM page_stores WHERE id = ?"},
      {&orders_, "SELECT " ORDER_COLUMNS " FROM standing_orders"},
      {&write_order_, "INSERT OR REPLACE INTO standing_orders (" ORDER_COLUMNS ") VALUES (?, ?, ?, ?, ?)"},
      {&erase_order_, "DELETE FROM standing_orders WHERE vm_uuid = ?"},
  }};
  for (const auto& [statement, sql] : statements) {
    sqlite3_stmt* prepared = nullptr;
    if (sqlite3_prepare_v3(database, sql, -1, SQLITE_PREPARE_PERSISTENT, &prepared, nullptr) != SQLITE_OK) {
      return false;
    }
    statement->reset(prepared);
  }
  return true;
}

std::optional<std::vector<SplitRecord>> SqliteSplits::splits() {
  Use use(splits_);
  return rows(use, split_of);
}

std::optional<std::vector<PageStoreRecord>> SqliteSplits::page_stores() {
  Use use(page_stores_);
  return rows(use, page_store_of);
}

std::optional<api::SplitState> SqliteSplits::state_of(const Id128& vm_uuid) {
  Use use(split_of_vm_);
  const int result = use.id(vm_uuid).step();
  return result == SQLITE_ROW    ? std::optional(static_cast<api::SplitState>(use.number()))
         : result == SQLITE_DONE ? std::optional(api::SPLIT_UNSPECIFIED)
                                 : std::nullopt;
}

bool SqliteSplits::write(const SplitRecord& split) {
  Use use(write_split_);
  use.id(split.vm_uuid).number(split.ownership).number(split.budget_bytes).number(split.state);
  return done(use.number(split.encryption));
}

bool SqliteSplits::add(const PageStoreRecord& page_store) {
  Use use(add_page_store_);
  use.id(page_store.id).id(page_store.vm_uuid).text(page_store.vm_name).text(page_store.main_host);
  use.text(page_store.sub_host).number(page_store.ownership).number(page_store.number);
  return done(use.number(page_store.bytes_lent).number(page_store.state));
}

bool SqliteSplits::end(const Id128& vm_uuid) {
  Use erase(erase_split_);
  Use retire(retire_);
  return done(erase.id(vm_uuid)) && done(retire.id(vm_uuid));
}

bool SqliteSplits::move(const MigrationRecord& migration) {
  const api::Plan& plan = migration.plan;
  Use split(move_split_);
  split.number(plan.resident_budget_bytes()).number(plan.whole() ? api::GATHERING : api::SPLIT);
  Use stores(move_page_stores_);
  stores.text(migration.destination).number(migration.ownership_before + 1).id(migration.vm_uuid);
  return done(split.id(migration.vm_uuid)) && done(stores);
}

bool SqliteSplits::set_state(const Id128& page_store, api::PageStoreState state) {
  Use use(set_state_);
  return done(use.number(state).id(page_store));
}

bool SqliteSplits::forget(const Id128& page_store) {
  Use use(forget_);
  return done(use.id(page_store));
}

std::optional<std::vector<StandingOrder>> SqliteSplits::standing_orders() {
  Use use(orders_);
  return rows(use, order_of);
}

bool SqliteSplits::write(const StandingOrder& order) {
  Use use(write_order_);
  use.id(order.vm_uuid).text(order.source).blob(order.at_source.SerializeAsString());
  return done(use.text(order.destination).blob(order.at_destination.SerializeAsString()));
}

bool SqliteSplits::forget_order(const Id128& vm_uuid) {
  Use use(erase_order_);
  return done(use.id(vm_uuid));
}

}  // namespace godwit::controlplane
