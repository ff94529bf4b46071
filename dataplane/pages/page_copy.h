#pragma once
// Copies pages and hashes them in one pass, each byte read once: so the hash is of what was copied, whoever writes the
// source meanwhile. As fast as the slower of the two memories, as the processor computes while it waits for lines.
// Pure; any thread; no failure.

#include <cstddef>
#include <cstdint>
#include <span>

#include "dataplane/pages/page.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::pages {

/// A page each.
struct PageCopy {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  /// Where the page after this one will be copied to: owned by this core when its time comes. A hint, never written.
  const std::byte* next_to = nullptr;
  /// Where that one lies: in this core's caches when its time comes. A hint, never read.
  const std::byte* next_from = nullptr;
};

/// hash_page() of each is put into `hashes`, as many. Two at a time are a tenth faster than one after the other: the
/// processor prefetches within a page only.
void copy_pages(std::span<const PageCopy> copies, std::span<PageHash> hashes);

/// What copies: the widest registers that the processor has.
enum class PageCopier : std::uint8_t { kPlain, kAvx2, kAvx512 };
[[nodiscard]] PageCopier best_page_copier();
/// By a given one, which must not be wider than the best.
void copy_pages(std::span<const PageCopy> copies, std::span<PageHash> hashes, PageCopier copier);

}  // namespace godwit::pages
