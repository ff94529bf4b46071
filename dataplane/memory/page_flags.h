#pragma once
// A bit a page that any threads set and clear at any time. Pure; no failure. Sequentially consistent, so that of two
// threads of which each sets one flag and then looks at another, at least one sees the other's.

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "dataplane/pages/page.h"

namespace godwit::memory {

class PageFlags {
 public:
  explicit PageFlags(std::uint64_t pages) : pages_(pages), words_((pages + 63) / 64) {}

  [[nodiscard]] bool test(pages::PageNumber page) const { return (word(page).load() & bit(page)) != 0; }
  /// True: it was clear until this call.
  bool set(pages::PageNumber page) { return (word(page).fetch_or(bit(page)) & bit(page)) == 0; }
  /// True: it was set until this call.
  bool clear(pages::PageNumber page) { return (word(page).fetch_and(~bit(page)) & bit(page)) != 0; }

 private:
  static constexpr std::uint64_t bit(pages::PageNumber page) { return std::uint64_t{1} << page % 64; }
  [[nodiscard]] std::atomic_ref<std::uint64_t> word(pages::PageNumber page) const {
    GW_ASSERT(page < pages_);
    return std::atomic_ref<std::uint64_t>(words_[page / 64]);
  }

  std::uint64_t pages_;
  mutable std::vector<std::uint64_t> words_;
};

}  // namespace godwit::memory
