#pragma once
// The tables of the SQLite store, and how those of an older version become today's. Stateless; one caller a file.

#include <sqlite3.h>

#include <optional>

namespace godwit::controlplane {

inline constexpr int kSchemaVersion = 5;

// A migration that has not ended: PREPARING, TRANSFERRING, SWITCHING or PULLING.
#define ACTIVE_MIGRATION "(state < 4 OR state = 6)"

/// In the caller's transaction. The version that was found, which may be newer than ours: then nothing was changed.
/// Nothing when the database refused.
[[nodiscard]] std::optional<int> bring_schema_up_to_date(sqlite3* database);

}  // namespace godwit::controlplane
