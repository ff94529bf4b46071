#pragma once
// A bit a page. Owned by one thread at a time; no locks. Bits beyond size() are always zero, so whole words may be
// compared and counted.

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "dataplane/pages/page.h"

namespace godwit::pages {

class Bitmap {
 public:
  Bitmap() = default;
  explicit Bitmap(std::uint64_t size) : size_(size), words_((size + 63) / 64) {}

  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] bool test(PageNumber page) const {
    GW_ASSERT(page < size_);
    return (words_[page / 64] >> (page % 64) & 1) != 0;
  }
  void set(PageNumber page) {
    GW_ASSERT(page < size_);
    words_[page / 64] |= std::uint64_t{1} << (page % 64);
  }
  void clear(PageNumber page) {
    GW_ASSERT(page < size_);
    words_[page / 64] &= ~(std::uint64_t{1} << (page % 64));
  }
  void set_range(PageNumber first, std::uint64_t count);
  void clear_range(PageNumber first, std::uint64_t count);
  void set_all() { set_range(0, size_); }
  void clear_all() { words_.assign(words_.size(), 0); }

  [[nodiscard]] std::uint64_t count() const;
  [[nodiscard]] bool any() const;
  /// First set bit at or after `from`, size() if none.
  [[nodiscard]] PageNumber next_set(PageNumber from) const { return next_set(from, size_); }
  /// First set bit in [from, end), `end` if none. Looks no further than `end`, so that many parts cost no more than
  /// one.
  [[nodiscard]] PageNumber next_set(PageNumber from, PageNumber end) const;
  /// First clear bit at or after `from`, size() if none.
  [[nodiscard]] PageNumber next_clear(PageNumber from) const { return next_clear(from, size_); }
  /// First clear bit in [from, end), `end` if none.
  [[nodiscard]] PageNumber next_clear(PageNumber from, PageNumber end) const;

  /// Same size required.
  Bitmap& operator|=(const Bitmap& other);
  Bitmap& operator&=(const Bitmap& other);
  Bitmap& and_not(const Bitmap& other);
  bool operator==(const Bitmap&) const = default;

  /// Calls f(first, count) for each run of set bits, in order.
  template <class F>
  void for_each_run(F&& f) const {
    for (PageNumber at = next_set(0); at < size_;) {
      const PageNumber end = next_clear(at);
      f(at, end - at);
      at = next_set(end);
    }
  }

  [[nodiscard]] std::span<const std::uint64_t> words() const { return words_; }
  [[nodiscard]] std::span<std::uint64_t> words() { return words_; }

 private:
  std::uint64_t size_ = 0;
  std::vector<std::uint64_t> words_;
};

}  // namespace godwit::pages
