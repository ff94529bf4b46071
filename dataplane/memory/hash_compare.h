#pragma once
// Finds pages whose content differs from what is known of them, on all cores.
//
// Any thread, one call on a table at a time (note_sent() may come in between). Failure: Error; `out` is then
// incomplete.

#include <expected>

#include "dataplane/memory/guest_ram.h"
#include "dataplane/memory/known_hashes.h"

namespace godwit::memory {

/// Sets in `out` every page among `among` that is unknown or hashes differently now, and remembers its present hash.
std::expected<void, Error> find_changed(const GuestRam& ram, const pages::Bitmap& among, KnownHashes& hashes,
                                        pages::Bitmap& out);
/// Hashes the pages among `among` that are unknown.
std::expected<void, Error> learn_unknown(const GuestRam& ram, const pages::Bitmap& among, KnownHashes& hashes);

}  // namespace godwit::memory
