#pragma once
// The tables of split VMs, their page stores and standing orders in the store's SQLite file. Owned by the store, under
// its mutex and in its transactions. Every function tells by false, or nothing, that the database refused;
// sqlite3_errmsg() says why.

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "controlplane/store/sqlite_statement.h"
#include "controlplane/store/store.h"

namespace godwit::controlplane {

class SqliteSplits {
 public:
  [[nodiscard]] bool prepare(sqlite3* database);

  [[nodiscard]] std::optional<std::vector<SplitRecord>> splits();
  [[nodiscard]] std::optional<std::vector<PageStoreRecord>> page_stores();
  /// SPLIT_UNSPECIFIED: it is not split.
  [[nodiscard]] std::optional<api::SplitState> state_of(const Id128& vm_uuid);
  [[nodiscard]] bool write(const SplitRecord& split);
  [[nodiscard]] bool add(const PageStoreRecord& page_store);
  [[nodiscard]] bool end(const Id128& vm_uuid);
  /// Its main host is the migration's destination, under the next ownership number, with the plan's budget, or
  /// GATHERING if it is to be whole.
  [[nodiscard]] bool move(const MigrationRecord& migration);
  [[nodiscard]] bool set_state(const Id128& page_store, api::PageStoreState state);
  [[nodiscard]] bool forget(const Id128& page_store);
  [[nodiscard]] std::optional<std::vector<StandingOrder>> standing_orders();
  [[nodiscard]] bool write(const StandingOrder& order);
  [[nodiscard]] bool forget_order(const Id128& vm_uuid);

 private:
  Statement splits_, split_of_vm_, write_split_, erase_split_, move_split_;
  Statement page_stores_, add_page_store_, retire_, set_state_, forget_, move_page_stores_;
  Statement orders_, write_order_, erase_order_;
};

}  // namespace godwit::controlplane
