#pragma once
// The store in one SQLite file: write-ahead log, synchronous=FULL (one fsync a commit), foreign keys, one schema
// version. Thread: any, serialized by a mutex. Two processes on one file stay correct (every change is a
// compare-and-swap in an immediate transaction), they only wait for each other.

#include <expected>
#include <filesystem>
#include <memory>

#include "controlplane/store/store.h"

namespace godwit::controlplane {

/// Opens or creates. Refused: a file that is no database, is damaged, or has a newer schema.
[[nodiscard]] std::expected<std::unique_ptr<Store>, StoreError> open_sqlite_store(const std::filesystem::path& file);

}  // namespace godwit::controlplane
