#pragma once
// Ranges of bits in arrays of 64-bit words, and byte and bit streams: what bitmap and codecs share. Pure; readers never
// pass their end.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

namespace godwit::pages {

static_assert(std::endian::native == std::endian::little, "the codecs store words as they are in memory");

/// Bits [bit, 64) of a word.
constexpr std::uint64_t bits_from(std::uint64_t bit) { return ~std::uint64_t{0} << bit; }
/// Bits [0, bit] of a word.
constexpr std::uint64_t bits_through(std::uint64_t bit) { return ~std::uint64_t{0} >> (63 - bit); }

/// Calls f(word index, mask) for each word that bits [first, first + count) touch; count > 0.
template <class F>
void for_each_masked_word(std::uint64_t first, std::uint64_t count, F&& f) {
  const std::uint64_t last = first + count - 1;
  const std::uint64_t first_word = first / 64;
  const std::uint64_t last_word = last / 64;
  if (first_word == last_word) {
    f(first_word, bits_from(first % 64) & bits_through(last % 64));
    return;
  }
  f(first_word, bits_from(first % 64));
  for (std::uint64_t word = first_word + 1; word < last_word; ++word) f(word, ~std::uint64_t{0});
  f(last_word, bits_through(last % 64));
}

inline void put_byte(std::vector<std::byte>& out, std::uint64_t value) { out.push_back(static_cast<std::byte>(value)); }

inline void put_varint(std::vector<std::byte>& out, std::uint64_t value) {
  for (; value >= 128; value >>= 7) put_byte(out, (value & 127) | 128);
  put_byte(out, value);
}

inline void put_bytes(std::vector<std::byte>& out, const void* data, std::size_t bytes) {
  const auto* first = static_cast<const std::byte*>(data);
  out.insert(out.end(), first, first + bytes);
}

/// Reads from hostile bytes; every read that would pass the end is nullopt.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : left_(bytes) {}
  [[nodiscard]] std::span<const std::byte> left() const { return left_; }

  [[nodiscard]] std::optional<std::uint8_t> byte() {
    if (left_.empty()) return std::nullopt;
    const auto value = std::to_integer<std::uint8_t>(left_[0]);
    left_ = left_.subspan(1);
    return value;
  }
  [[nodiscard]] std::optional<std::uint64_t> varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 63; shift += 7) {
      const auto next = byte();
      if (!next) return std::nullopt;
      value |= std::uint64_t{*next & 127U} << shift;
      if ((*next & 128U) == 0) return value;
    }
    return std::nullopt;
  }
  [[nodiscard]] std::optional<std::span<const std::byte>> bytes(std::uint64_t count) {
    if (count > left_.size()) return std::nullopt;
    const auto taken = left_.first(static_cast<std::size_t>(count));
    left_ = left_.subspan(taken.size());
    return taken;
  }

 private:
  std::span<const std::byte> left_;
};

/// Bits of a byte span, lowest first. Past the end it reads zeros; overrun() tells.
class BitReader {
 public:
  explicit BitReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  /// At least 57 valid bits.
  [[nodiscard]] std::uint64_t peek() const {
    const std::size_t at = position_ / 8;
    std::uint64_t word = 0;
    if (at + 8 <= bytes_.size()) {
      std::memcpy(&word, bytes_.data() + at, 8);
    } else if (at < bytes_.size()) {
      std::memcpy(&word, bytes_.data() + at, bytes_.size() - at);
    }
    return word >> (position_ % 8);
  }
  void skip(unsigned bits) { position_ += bits; }
  [[nodiscard]] bool overrun() const { return bytes_consumed() > bytes_.size(); }
  [[nodiscard]] std::size_t bytes_consumed() const { return (position_ + 7) / 8; }

 private:
  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
};

}  // namespace godwit::pages
