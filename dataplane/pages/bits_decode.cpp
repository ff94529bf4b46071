#include <algorithm>
#include <array>

#include "dataplane/pages/bits_codec.h"
#include "dataplane/pages/deflate.h"
#include "dataplane/pages/rice.h"

namespace godwit::pages {

namespace {

/// Calls place(index, position) for each position of a segment of `bits` bits.
template <class F>
std::optional<DecodeError> for_each_position(ByteReader& reader, std::uint64_t bits, bool two_parameters, F&& place) {
  const auto count = reader.varint();
  const auto even_k = reader.byte();
  const auto odd_k = two_parameters ? reader.byte() : even_k;
  if (!count || !even_k || !odd_k) return DecodeError::kTruncated;
  if (*even_k > kRiceMax || *odd_k > kRiceMax) return DecodeError::kBadHead;
  if (*count > bits) return DecodeError::kBadCount;
  const std::array<unsigned, 2> ks{*even_k, *odd_k};
  BitReader codes(reader.left());
  std::uint64_t expected = 0;
  for (std::uint64_t i = 0; i < *count; ++i) {
    const std::uint64_t next = codes.peek();
    // Zeros past the end, or forged, are no code.
    const auto quotient = static_cast<unsigned>(std::countr_zero(next | std::uint64_t{1} << (kEscape + 1)));
    if (quotient > kEscape) return DecodeError::kTruncated;
    std::uint64_t gap;
    if (quotient < kEscape) [[likely]] {
      const unsigned k = ks[i & 1];
      gap = std::uint64_t{quotient} << k | ((next >> (quotient + 1)) & ((std::uint64_t{1} << k) - 1));
      codes.skip(quotient + 1 + k);
    } else {
      const auto width = static_cast<unsigned>(next >> (kEscape + 1) & 31) + 1;
      if (width > kWidthMax) return DecodeError::kBadHead;
      gap = next >> (kEscape + 6) & ((std::uint64_t{1} << width) - 1);
      codes.skip(kEscape + 6 + width);
    }
    const std::uint64_t position = expected + gap;
    if (position >= bits) return DecodeError::kBadCount;
    place(i, position);
    expected = position + 1;
  }
  if (codes.overrun()) return DecodeError::kTruncated;
  if (!reader.bytes(codes.bytes_consumed())) return DecodeError::kTruncated;
  return std::nullopt;
}

void flip_bit(std::span<std::uint64_t> words, std::uint64_t bit) { words[bit / 64] ^= std::uint64_t{1} << (bit % 64); }

/// From changes to bits: every bit becomes the parity of the changes up to it.
std::optional<DecodeError> decode_changes(ByteReader& reader, std::span<std::uint64_t> words, std::uint64_t bits) {
  std::uint64_t begin = 0;
  bool open = false;
  const auto fill = [&](std::uint64_t end) {
    for_each_masked_word(begin, end - begin, [&](std::uint64_t word, std::uint64_t mask) { words[word] |= mask; });
  };
  const auto error = for_each_position(reader, bits, true, [&](std::uint64_t, std::uint64_t position) {
    if (open) fill(position);
    open = !open;
    begin = position;
  });
  if (!error && open) fill(bits);
  return error;
}

std::optional<DecodeError> check_padding(std::span<const std::uint64_t> words, std::uint64_t bits) {
  if ((words.back() & ~bits_through((bits - 1) % 64)) != 0) return DecodeError::kBadCount;
  return std::nullopt;
}

/// One segment into `words`, which are `bits` bits: bits > 0.
std::optional<DecodeError> decode_segment(ByteReader& reader, BitsForm form, std::span<std::uint64_t> words,
                                          std::uint64_t bits) {
  const std::size_t raw_bytes = (bits + 7) / 8;
  const bool ones_first = form == BitsForm::kSet || form == BitsForm::kZeros;
  std::fill(words.begin(), words.end(), ones_first ? ~std::uint64_t{0} : 0);
  if (ones_first) words.back() = bits_through((bits - 1) % 64);
  const auto flip_at = [words](std::uint64_t, std::uint64_t position) { flip_bit(words, position); };
  switch (form) {
    case BitsForm::kClear:
    case BitsForm::kSet:
      return std::nullopt;
    case BitsForm::kOnes:
    case BitsForm::kZeros:
      return for_each_position(reader, bits, false, flip_at);
    case BitsForm::kChanges:
      return decode_changes(reader, words, bits);
    case BitsForm::kRaw: {
      const auto raw = reader.bytes(raw_bytes);
      if (!raw) return DecodeError::kTruncated;
      std::memcpy(words.data(), raw->data(), raw->size());
      return check_padding(words, bits);
    }
    case BitsForm::kDeflate: {
      const auto length = reader.varint();
      if (!length) return DecodeError::kTruncated;
      const auto deflated = reader.bytes(*length);
      if (!deflated) return DecodeError::kTruncated;
      if (!inflate(*deflated, std::as_writable_bytes(words).first(raw_bytes))) return DecodeError::kBadDeflate;
      return check_padding(words, bits);
    }
  }
  return DecodeError::kBadHead;
}

}  // namespace

std::optional<DecodeError> decode_bits(ByteReader& reader, std::span<std::uint64_t> words, std::uint64_t size) {
  for (std::uint64_t position = 0; position < size;) {
    const auto head = reader.byte();
    if (!head) return DecodeError::kTruncated;
    std::uint64_t chunks = 1;
    if ((*head & kOneChunk) == 0) {
      const auto count = reader.varint();
      if (!count) return DecodeError::kTruncated;
      // No more chunks than there are: also keeps the product below from wrapping.
      if (*count == 0 || *count > (size - position + kChunkBits - 1) / kChunkBits) return DecodeError::kBadCount;
      chunks = *count;
    }
    const std::uint64_t bits = std::min(chunks * kChunkBits, size - position);
    const auto form = static_cast<BitsForm>(*head & ~kOneChunk);
    const auto error = decode_segment(reader, form, words.subspan(position / 64, (bits + 63) / 64), bits);
    if (error) return error;
    position += bits;
  }
  return std::nullopt;
}

}  // namespace godwit::pages
