#pragma once
// What trackers share about huge pages: telling their pages apart, and refining written huge pages to 4 KiB. Stateless.

#include <expected>

#include "dataplane/memory/guest_ram.h"
#include "dataplane/memory/known_hashes.h"

namespace godwit::memory {

/// The pages of all regions of huge pages.
pages::Bitmap huge_region_pages(const GuestRam& ram);
/// Adds to `out` the pages of `written` that count as written: those of 4 KiB regions as they are, those of huge
/// regions only if their content differs from what is known.
std::expected<void, Error> add_refined(const GuestRam& ram, pages::Bitmap written, KnownHashes& hashes,
                                       pages::Bitmap& out);

}  // namespace godwit::memory
