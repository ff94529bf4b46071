#include "dataplane/pages/bitmap.h"

#include <algorithm>

#include "dataplane/pages/words.h"

namespace godwit::pages {

namespace {

/// First bit in [from, end) whose value differs from that of `flip`'s bits (0: looks for ones, ~0: for zeros).
PageNumber next_in(std::span<const std::uint64_t> words, PageNumber from, PageNumber end, std::uint64_t flip) {
  if (from >= end) return end;
  const std::uint64_t words_end = (end + 63) / 64;
  std::uint64_t word = from / 64;
  std::uint64_t bits = (words[word] ^ flip) & bits_from(from % 64);
  while (bits == 0) {
    if (++word == words_end) return end;
    bits = words[word] ^ flip;
  }
  return std::min(end, word * 64 + static_cast<std::uint64_t>(std::countr_zero(bits)));
}

}  // namespace

void Bitmap::set_range(PageNumber first, std::uint64_t count) {
  GW_ASSERT(first <= size_ && count <= size_ - first);
  if (count == 0) return;
  for_each_masked_word(first, count, [this](std::uint64_t word, std::uint64_t mask) { words_[word] |= mask; });
}

void Bitmap::clear_range(PageNumber first, std::uint64_t count) {
  GW_ASSERT(first <= size_ && count <= size_ - first);
  if (count == 0) return;
  for_each_masked_word(first, count, [this](std::uint64_t word, std::uint64_t mask) { words_[word] &= ~mask; });
}

std::uint64_t Bitmap::count() const {
  std::uint64_t total = 0;
  for (const std::uint64_t word : words_) total += static_cast<std::uint64_t>(std::popcount(word));
  return total;
}

bool Bitmap::any() const {
  return std::any_of(words_.begin(), words_.end(), [](std::uint64_t word) { return word != 0; });
}

PageNumber Bitmap::next_set(PageNumber from, PageNumber end) const {
  GW_ASSERT(end <= size_);
  return next_in(words_, from, end, 0);
}

PageNumber Bitmap::next_clear(PageNumber from, PageNumber end) const {
  GW_ASSERT(end <= size_);
  return next_in(words_, from, end, ~std::uint64_t{0});
}

Bitmap& Bitmap::operator|=(const Bitmap& other) {
  GW_ASSERT(size_ == other.size_);
  for (std::size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  return *this;
}

Bitmap& Bitmap::operator&=(const Bitmap& other) {
  GW_ASSERT(size_ == other.size_);
  for (std::size_t i = 0; i < words_.size(); ++i) words_[i] &= other.words_[i];
  return *this;
}

Bitmap& Bitmap::and_not(const Bitmap& other) {
  GW_ASSERT(size_ == other.size_);
  for (std::size_t i = 0; i < words_.size(); ++i) words_[i] &= ~other.words_[i];
  return *this;
}

}  // namespace godwit::pages
