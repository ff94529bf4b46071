#include "tests/fuzz/naive_codec.h"

#include <algorithm>
#include <bit>
#include <set>

#include "dataplane/pages/deflate.h"

namespace godwit::fuzz {
namespace {

using Bits = std::vector<bool>;
using Entries = std::vector<std::uint32_t>;

constexpr std::uint64_t kChunkBits = 65536;
constexpr std::uint64_t kEntriesOfLayersMax = 1U << 20;
constexpr std::size_t kRunsMax = 4096;
constexpr std::size_t kInflatedBytesMax = kRunsMax * 8 + 32;

/// Reads past the end fail and stay failed.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool at_end() const { return bytes_.empty(); }

  std::uint8_t byte() {
    const auto taken = take(1);
    return taken.empty() ? 0 : std::to_integer<std::uint8_t>(taken[0]);
  }
  /// At most nine bytes of seven bits.
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < 9; ++i) {
      const std::uint64_t next = byte();
      value += (next & 127) << (7 * i);
      if (next < 128) {
        return value;
      }
    }
    ok_ = false;
    return 0;
  }
  std::span<const std::byte> take(std::uint64_t count) {
    if (!ok_ || count > bytes_.size()) {
      ok_ = false;
      return {};
    }
    const auto taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }
  /// One bit of the stream that begins here; after the last, align().
  bool bit() {
    if (bit_ / 8 >= bytes_.size()) {
      ok_ = false;
      return false;
    }
    const bool value = (std::to_integer<unsigned>(bytes_[bit_ / 8]) >> (bit_ % 8) & 1) != 0;
    ++bit_;
    return value;
  }
  std::uint64_t bits(unsigned count) {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < count; ++i) {
      value |= std::uint64_t{bit()} << i;
    }
    return value;
  }
  void align() {
    take((bit_ + 7) / 8);
    bit_ = 0;
  }
  void fail() { ok_ = false; }

 private:
  std::span<const std::byte> bytes_;
  std::uint64_t bit_ = 0;
  bool ok_ = true;
};

/// v >> k zeros, a one, k low bits; from 12 zeros on: a one, 5 bits of width - 1, the value.
std::uint64_t read_gap(Reader& in, unsigned k) {
  unsigned zeros = 0;
  while (in.ok() && zeros <= 12 && !in.bit()) {
    ++zeros;
  }
  if (zeros > 12) {
    in.fail();
  }
  if (zeros < 12) {
    return (std::uint64_t{zeros} << k) + in.bits(k);
  }
  const auto width = static_cast<unsigned>(in.bits(5)) + 1;
  if (width > 24) {
    in.fail();
  }
  return in.bits(std::min(width, 24U));
}

std::vector<std::uint64_t> read_positions(Reader& in, std::uint64_t size, bool two_parameters) {
  const std::uint64_t count = in.varint();
  const unsigned even = in.byte();
  const unsigned odd = two_parameters ? in.byte() : even;
  if (even > 23 || odd > 23 || count > size) {
    in.fail();
  }
  std::vector<std::uint64_t> positions;
  std::uint64_t next = 0;
  for (std::uint64_t i = 0; i < count && in.ok(); ++i) {
    next += read_gap(in, i % 2 == 0 ? even : odd);
    if (next >= size) {
      in.fail();
    }
    positions.push_back(next++);
  }
  in.align();
  return positions;
}

/// Bytes as bits; those past the size must be zero.
Bits from_bytes(Reader& in, std::span<const std::byte> bytes, std::uint64_t size) {
  Bits bits(size);
  for (std::uint64_t i = 0; i < bytes.size() * 8; ++i) {
    const bool value = (std::to_integer<unsigned>(bytes[i / 8]) >> (i % 8) & 1) != 0;
    if (i < size) {
      bits[i] = value;
    } else if (value) {
      in.fail();
    }
  }
  return bits;
}

Bits read_segment(Reader& in, std::uint8_t form, std::uint64_t size) {
  const std::uint64_t bytes = (size + 7) / 8;
  switch (form) {
    case 0:
    case 1:
      return Bits(size, form == 1);
    case 2:
      return from_bytes(in, in.take(bytes), size);
    case 3:
    case 4: {
      Bits bits(size, form == 4);
      for (const std::uint64_t position : read_positions(in, size, false)) {
        if (position < size) {
          bits[position] = form == 3;
        }
      }
      return bits;
    }
    case 5: {
      const auto list = read_positions(in, size, true);
      const std::set<std::uint64_t> changes(list.begin(), list.end());
      Bits bits(size);
      bool value = false;
      for (std::uint64_t i = 0; i < size; ++i) {
        value = value != changes.contains(i);
        bits[i] = value;
      }
      return bits;
    }
    case 6: {
      const auto stream = in.take(in.varint());
      std::vector<std::byte> inflated(bytes);
      if (!in.ok() || !pages::inflate(stream, inflated)) {
        in.fail();
      }
      return from_bytes(in, inflated, size);
    }
    default:
      in.fail();
      return Bits(size);
  }
}

Bits read_bits(Reader& in, std::uint64_t size) {
  Bits bits;
  while (in.ok() && bits.size() < size) {
    const std::uint8_t head = in.byte();
    const std::uint64_t chunks = (head & 0x80) != 0 ? 1 : in.varint();
    const std::uint64_t left = size - bits.size();
    if (chunks == 0 || chunks > (left + kChunkBits - 1) / kChunkBits) {
      in.fail();
      break;
    }
    const Bits segment = read_segment(in, head & 0x7f, std::min(chunks * kChunkBits, left));
    bits.insert(bits.end(), segment.begin(), segment.end());
  }
  return bits;
}

std::uint32_t read_generation(Reader& in) {
  const std::uint64_t value = in.varint();
  if (value > UINT32_MAX) {
    in.fail();
  }
  return static_cast<std::uint32_t>(value);
}

Entries read_runs(Reader& in, std::uint64_t count) {
  Entries entries;
  while (in.ok() && entries.size() < count) {
    const std::uint32_t generation = read_generation(in);
    const std::uint64_t more = in.varint();
    if (more >= count - entries.size()) {
      in.fail();
    } else {
      entries.insert(entries.end(), more + 1, generation);
    }
  }
  return entries;
}

/// Stretches of entries that no layer has named yet, as the decoder counts them.
std::size_t parts_left(const std::vector<std::uint64_t>& before, const Bits& named) {
  std::size_t parts = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const bool joins = i > 0 && before[i - 1] + 1 == before[i] && !named[i - 1];
    parts += !named[i] && !joins ? 1 : 0;
  }
  return parts;
}

Entries read_layers(Reader& in, std::uint64_t count) {
  const std::uint64_t distinct = in.varint();
  if (distinct < 2 || distinct > 16 || count > kEntriesOfLayersMax) {
    in.fail();
    return {};
  }
  Entries generations;
  for (std::uint64_t i = 0; i < distinct; ++i) {
    generations.push_back(read_generation(in));
  }
  Entries entries(count, generations.back());
  std::vector<std::uint64_t> left(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    left[i] = i;
  }
  for (std::uint64_t layer = 0; layer + 1 < distinct && in.ok(); ++layer) {
    const Bits named = read_bits(in, left.size());
    if (!in.ok() || parts_left(left, named) > kRunsMax) {
      in.fail();
      break;
    }
    std::vector<std::uint64_t> still;
    for (std::size_t i = 0; i < left.size(); ++i) {
      if (named[i]) {
        entries[left[i]] = generations[layer];
      } else {
        still.push_back(left[i]);
      }
    }
    left = std::move(still);
  }
  return entries;
}

Entries read_packed(Reader& in, std::uint64_t count) {
  const std::uint64_t distinct = in.varint();
  if (distinct < 2 || distinct > 1024) {
    in.fail();
    return {};
  }
  Entries generations;
  std::uint64_t last = 0;
  for (std::uint64_t i = 0; i < distinct && in.ok(); ++i) {
    last += read_generation(in);
    if (last > UINT32_MAX) {
      in.fail();
    }
    generations.push_back(static_cast<std::uint32_t>(last));
  }
  const auto width = static_cast<unsigned>(std::bit_width(distinct - 1));
  Entries entries;
  while (in.ok() && entries.size() < count) {
    const std::uint64_t index = in.bits(width);
    if (index >= generations.size()) {
      in.fail();
    } else {
      entries.push_back(generations[index]);
    }
  }
  in.align();
  return entries;
}

Entries read_form(Reader& in, std::uint8_t form, std::uint64_t count) {
  switch (form) {
    case 0:
      return Entries(count, read_generation(in));
    case 1:
      return read_runs(in, count);
    case 2:
      return read_layers(in, count);
    case 3:
      return read_packed(in, count);
    case 4: {
      const auto raw = in.take(count * 4);
      Entries entries(raw.size() / 4);
      std::ranges::copy(raw, std::as_writable_bytes(std::span(entries)).begin());
      return entries;
    }
    default:
      in.fail();
      return {};
  }
}

Entries read_deflated(Reader& in, std::uint8_t form, std::uint64_t count) {
  const std::uint64_t before = in.varint();
  const std::uint64_t after = in.varint();
  if (before > kInflatedBytesMax) {
    in.fail();
  }
  const auto stream = in.take(after);
  if (!in.ok()) {
    return {};
  }
  std::vector<std::byte> inflated(before);
  Reader inner(inflated);
  if (!pages::inflate(stream, inflated)) {
    in.fail();
    return {};
  }
  Entries entries = read_form(inner, form, count);
  if (!inner.ok() || !inner.at_end()) {
    in.fail();
  }
  return entries;
}

/// Pages of the piece, if its head allows them.
std::optional<std::uint64_t> read_head(Reader& in, std::uint64_t first, std::uint64_t size) {
  const std::uint64_t piece_first = in.varint();
  const std::uint64_t count = in.varint();
  const bool good = in.ok() && piece_first == first && count <= size - first && (count > 0 || first == size);
  return good ? std::optional(count) : std::nullopt;
}

}  // namespace

std::optional<NaivePiece> naive_bitmap_piece(std::span<const std::byte> piece, std::uint64_t first,
                                             std::uint64_t size) {
  Reader in(piece);
  const auto count = read_head(in, first, size);
  if (!count || first % 64 != 0 || ((first + *count) % 64 != 0 && first + *count != size)) {
    return std::nullopt;
  }
  NaivePiece out{.end = first + *count, .bits = read_bits(in, *count), .entries = {}};
  return in.ok() && in.at_end() ? std::optional(std::move(out)) : std::nullopt;
}

std::optional<NaivePiece> naive_table_piece(std::span<const std::byte> piece, std::uint64_t first, std::uint64_t size) {
  Reader in(piece);
  const auto count = read_head(in, first, size);
  if (!count) {
    return std::nullopt;
  }
  NaivePiece out{.end = first + *count, .bits = {}, .entries = {}};
  while (in.ok() && out.entries.size() < *count) {
    const std::uint8_t head = in.byte();
    const std::uint64_t entries = in.varint();
    if (!in.ok() || entries == 0 || entries > *count - out.entries.size()) {
      return std::nullopt;
    }
    const auto form = static_cast<std::uint8_t>(head & 0x7f);
    const Entries segment = (head & 0x80) != 0 ? read_deflated(in, form, entries) : read_form(in, form, entries);
    out.entries.insert(out.entries.end(), segment.begin(), segment.end());
  }
  return in.ok() && in.at_end() ? std::optional(std::move(out)) : std::nullopt;
}

}  // namespace godwit::fuzz
