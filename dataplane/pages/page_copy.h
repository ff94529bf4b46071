#pragma once
// Copies pages and hashes them in one pass, each byte read once: so the hash is of what was copied, whoever writes the
// source meanwhile. As fast as the slower of the two memories, as the processor computes while it waits for lines.
// Pure; any thread; no failure.

#include <cstddef>
#include <span>

#include "dataplane/pages/page.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::pages {

/// `to` and `from` are a page each; the hash is hash_page()'s.
struct PageCopy {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  PageHash hash = 0;
};

/// Two at a time are a tenth faster than one after the other: the processor prefetches within a page only.
void copy_pages(std::span<PageCopy> copies);

}  // namespace godwit::pages
