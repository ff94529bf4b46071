#pragma once
// Thin owners of SQLite's handles, for sqlite_store.cpp alone. Thread: the store's mutex. A statement is reset and its
// bindings cleared when a Use of it goes, so no read transaction outlives a call.

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/uuid.h"

namespace godwit::controlplane {

struct CloseDatabase {
  void operator()(sqlite3* database) const { sqlite3_close_v2(database); }
};
struct FinalizeStatement {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Database = std::unique_ptr<sqlite3, CloseDatabase>;
using Statement = std::unique_ptr<sqlite3_stmt, FinalizeStatement>;

/// One execution of a prepared statement: bind in order, step, read columns in order.
class Use {
 public:
  explicit Use(const Statement& statement) : statement_(statement.get()) {}
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  ~Use() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }

  Use& text(std::string_view value) {
    return checked(sqlite3_bind_text64(statement_, next_++, value.data(), value.size(), SQLITE_TRANSIENT, SQLITE_UTF8));
  }
  Use& blob(std::string_view value) {
    const char* data = value.empty() ? "" : value.data();  // a null pointer would bind NULL
    return checked(sqlite3_bind_blob64(statement_, next_++, data, value.size(), SQLITE_TRANSIENT));
  }
  Use& id(const Id128& value) { return blob(value.to_bytes()); }
  Use& number(std::int64_t value) { return checked(sqlite3_bind_int64(statement_, next_++, value)); }
  Use& number(std::uint64_t value) { return number(static_cast<std::int64_t>(value)); }
  Use& number(std::uint32_t value) { return number(static_cast<std::int64_t>(value)); }
  Use& number(int value) { return number(static_cast<std::int64_t>(value)); }
  Use& flag(bool value) { return number(value ? 1 : 0); }

  /// SQLITE_ROW, SQLITE_DONE or an error.
  int step() {
    column_ = 0;
    return sqlite3_step(statement_);
  }

  std::string bytes() {
    const int column = column_++;
    const void* data = sqlite3_column_blob(statement_, column);
    const int length = sqlite3_column_bytes(statement_, column);
    return data == nullptr ? std::string()
                           : std::string(static_cast<const char*>(data), static_cast<std::size_t>(length));
  }
  Id128 id() { return Id128::from_bytes(bytes()).value_or(Id128{}); }
  std::int64_t number() { return sqlite3_column_int64(statement_, column_++); }
  bool flag() { return number() != 0; }

 private:
  Use& checked(int result) {
    GW_ASSERT(result == SQLITE_OK);  // only a wrong index or no memory
    return *this;
  }

  sqlite3_stmt* statement_;
  int next_ = 1;
  int column_ = 0;
};

}  // namespace godwit::controlplane
