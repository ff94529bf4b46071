// g++ 12 takes the undefined operands inside its own intrinsics for ours (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <array>

#include "base/check.h"
#include "dataplane/pages/bits_codec.h"
#include "dataplane/pages/deflate.h"
#include "dataplane/pages/rice.h"

namespace godwit::pages {

namespace {

/// Chunks are put together while they hold no more symbols than this: enough for the head not to matter.
constexpr std::uint64_t kSymbolsWanted = 1024;
/// A chunk is coded as positions only where that is smaller than raw, and a position takes a bit at least.
constexpr std::size_t kSymbolsMax = kChunkBits + kSymbolsWanted;

struct Counts {
  std::uint64_t ones = 0, runs = 0;
};

Counts count_plain(std::span<const std::uint64_t> words) {
  Counts counts;
  std::uint64_t carry = 0;
  for (const std::uint64_t word : words) {
    if (word != 0) {
      counts.ones += static_cast<std::uint64_t>(std::popcount(word));
      counts.runs += static_cast<std::uint64_t>(std::popcount(word & ~(word << 1 | carry)));
    }
    carry = word >> 63;
  }
  return counts;
}

[[gnu::target("avx512f,avx512vpopcntdq")]] Counts count_avx512(std::span<const std::uint64_t> words) {
  const std::size_t whole = words.size() / 8 * 8;
  __m512i before = _mm512_setzero_si512();
  __m512i ones = before;
  __m512i runs = before;
  for (std::size_t i = 0; i < whole; i += 8) {
    const __m512i word = _mm512_loadu_si512(words.data() + i);
    const __m512i carry = _mm512_srli_epi64(_mm512_alignr_epi64(word, before, 7), 63);
    const __m512i left = _mm512_or_si512(_mm512_slli_epi64(word, 1), carry);
    ones = _mm512_add_epi64(ones, _mm512_popcnt_epi64(word));
    runs = _mm512_add_epi64(runs, _mm512_popcnt_epi64(_mm512_andnot_si512(left, word)));
    before = word;
  }
  // A run that crosses into the rest counts once more; the counts choose a form, they are not stored.
  Counts counts = count_plain(words.subspan(whole));
  counts.ones += static_cast<std::uint64_t>(_mm512_reduce_add_epi64(ones));
  counts.runs += static_cast<std::uint64_t>(_mm512_reduce_add_epi64(runs));
  return counts;
}

Counts count(std::span<const std::uint64_t> words) {
  static const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vpopcntdq");
  return wide ? count_avx512(words) : count_plain(words);
}

/// Expected bits of `symbols` Rice codes whose values sum to `sum`, as if geometric, with the best k.
double rice_bits(std::uint64_t symbols, std::uint64_t sum) {
  if (symbols == 0) return 0;
  const auto n = static_cast<double>(symbols);
  const std::uint64_t mean = sum * 7 / (symbols * 10);
  const unsigned k = mean == 0 ? 0 : std::min<unsigned>(static_cast<unsigned>(std::bit_width(mean)) - 1, kRiceMax);
  const auto step = static_cast<double>(std::uint64_t{1} << k);
  return n * (k + 1) + std::max(0.0, static_cast<double>(sum) / step - n * 0.5 * (1 - 1 / step));
}

/// The cheaper k for the values, judged by the widths of a sample of them.
unsigned best_k(const std::uint32_t* gaps, std::size_t count, std::size_t first, std::size_t stride) {
  std::array<std::uint32_t, kWidthMax + 1> widths{};
  for (std::size_t i = first; i < count; i += stride) ++widths[static_cast<unsigned>(std::bit_width(gaps[i]))];
  unsigned best = 0;
  double best_bits = 1e300;
  for (unsigned k = 0; k <= kRiceMax; ++k) {
    double bits = 0;
    for (unsigned width = 0; width <= kWidthMax; ++width) {
      // Values of this width are spread over [2^(width-1), 2^width), more of them below.
      const double quotient = width <= k       ? 0
                              : width == k + 1 ? 1
                                               : 1.4 * static_cast<double>(std::uint64_t{1} << (width - k - 1)) - 0.5;
      const double cost = quotient < kEscape ? k + 1 + quotient : kEscape + 6 + width;
      bits += cost * widths[width];
    }
    if (bits < best_bits) {
      best_bits = bits;
      best = k;
    }
  }
  return best;
}

std::uint64_t bytes_of(std::uint64_t bits) { return (bits + 7) / 8; }

}  // namespace

struct BitsEncoder::Plan {
  BitsForm form;
  double bits;
};

std::uint64_t BitsEncoder::Shape::symbols() const {
  // A stretch all set is still one run among its neighbours.
  return std::min({ones, std::max<std::uint64_t>(bits - ones, 1), 2 * runs});
}

void BitsEncoder::Shape::operator+=(const Shape& other) {
  runs += other.runs - (last && other.first ? 1 : 0);
  bits += other.bits;
  ones += other.ones;
  last = other.last;
}

BitsEncoder::BitsEncoder(std::span<const std::uint64_t> words, std::uint64_t size, bool deflate)
    : words_(words),
      size_(size),
      deflate_(deflate),
      gaps_(std::make_unique_for_overwrite<std::uint32_t[]>(kSymbolsMax)),
      coded_(std::make_unique_for_overwrite<std::byte[]>(kSymbolsMax * kCodeBitsMax / 8 + 16)) {
  GW_ASSERT(words.size() == (size + 63) / 64);
}

BitsEncoder::Shape BitsEncoder::shape_at(std::uint64_t position) const {
  const std::uint64_t bits = std::min(kChunkBits, size_ - position);
  const auto words = words_.subspan(position / 64, (bits + 63) / 64);
  const Counts counts = count(words);
  const bool first = (words.front() & 1) != 0;
  const bool last = (words.back() >> ((bits - 1) % 64) & 1) != 0;
  return {bits, counts.ones, counts.runs, first, last};
}

BitsEncoder::Shape BitsEncoder::next_segment() {
  Shape segment = ahead_ ? *ahead_ : shape_at(position_);
  ahead_.reset();
  while (position_ + segment.bits < size_ && segment.bits < kSegmentBitsMax) {
    const Shape next = shape_at(position_ + segment.bits);
    if (segment.symbols() + next.symbols() > kSymbolsWanted) {
      ahead_ = next;
      break;
    }
    segment += next;
  }
  return segment;
}

BitsEncoder::Plan BitsEncoder::plan_of(const Shape& shape) {
  const std::uint64_t zeros = shape.bits - shape.ones;
  if (shape.ones == 0) return {BitsForm::kClear, 0};
  if (zeros == 0) return {BitsForm::kSet, 0};
  // Too many symbols for our buffers never beats raw: only a single chunk can have them.
  const Plan raw{BitsForm::kRaw, static_cast<double>(shape.bits) * 0.97};
  const Plan ones{BitsForm::kOnes, rice_bits(shape.ones, zeros)};
  const Plan clear{BitsForm::kZeros, rice_bits(zeros, shape.ones)};
  const Plan changes{BitsForm::kChanges, rice_bits(shape.runs, zeros - std::min(zeros, shape.runs)) +
                                             rice_bits(shape.runs, shape.ones - std::min(shape.ones, shape.runs))};
  const auto fewer_bits = [](const Plan& a, const Plan& b) { return a.bits < b.bits; };
  return std::min({raw, ones, clear, changes}, fewer_bits);
}

std::size_t BitsEncoder::extract(BitsForm form, const Shape& shape) {
  const std::uint64_t first_word = position_ / 64;
  const std::uint64_t word_count = (shape.bits + 63) / 64;
  const std::uint64_t last_mask = bits_through((shape.bits - 1) % 64);
  const std::uint64_t flip = form == BitsForm::kZeros ? ~std::uint64_t{0} : 0;
  const bool changes = form == BitsForm::kChanges;
  std::uint64_t carry = 0;
  std::uint32_t* out = gaps_.get();
  std::uint32_t expected = 0;  // the position that a gap of 0 would mean
  for (std::uint64_t i = 0; i < word_count; ++i) {
    const std::uint64_t word = words_[first_word + i];
    std::uint64_t bits = word ^ (changes ? (word << 1 | carry) : flip);
    carry = word >> 63;
    if (i + 1 == word_count) bits &= last_mask;
    const auto base = static_cast<std::uint32_t>(i * 64);
    for (; bits != 0; bits &= bits - 1) {
      const std::uint32_t position = base + static_cast<std::uint32_t>(std::countr_zero(bits));
      *out++ = position - expected;
      expected = position + 1;
    }
  }
  return static_cast<std::size_t>(out - gaps_.get());
}

std::size_t BitsEncoder::code(std::size_t count, unsigned even_k, unsigned odd_k) {
  const std::array<unsigned, 2> ks{even_k, odd_k};
  const std::uint32_t* gaps = gaps_.get();
  std::byte* out = coded_.get();
  std::uint64_t pending = 0;
  unsigned pending_bits = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t gap = gaps[i];
    const unsigned k = ks[i & 1];
    const std::uint32_t quotient = gap >> k;
    std::uint64_t bits;
    unsigned length;
    if (quotient < kEscape) [[likely]] {
      const std::uint64_t low = gap & ((std::uint32_t{1} << k) - 1);
      bits = (low << 1 | 1) << quotient;
      length = quotient + 1 + k;
    } else {
      const auto width = static_cast<unsigned>(std::bit_width(gap));
      bits = ((std::uint64_t{gap} << 5 | (width - 1)) << 1 | 1) << kEscape;
      length = kEscape + 6 + width;
    }
    pending |= bits << pending_bits;
    pending_bits += length;
    std::memcpy(out, &pending, 8);
    out += pending_bits / 8;
    pending >>= pending_bits & ~7U;
    pending_bits &= 7;
  }
  return static_cast<std::size_t>(out - coded_.get()) + (pending_bits != 0 ? 1 : 0);
}

/// Parameters and payload of a segment of positions.
void BitsEncoder::append_positions(BitsForm form, const Shape& shape, std::vector<std::byte>& out) {
  const std::size_t count = extract(form, shape);
  GW_ASSERT(count <= kSymbolsMax);
  // A sample of some hundred values tells the best k well enough.
  const std::size_t thinning = count < 4096 ? 1 : 8;
  const bool changes = form == BitsForm::kChanges;
  const unsigned even_k = best_k(gaps_.get(), count, 0, changes ? 2 * thinning : thinning);
  const unsigned odd_k = changes ? best_k(gaps_.get(), count, 1, 2 * thinning) : even_k;
  const std::size_t bytes = code(count, even_k, odd_k);
  put_varint(out, count);
  put_byte(out, even_k);
  if (changes) put_byte(out, odd_k);
  put_bytes(out, coded_.get(), bytes);
}

void BitsEncoder::append_segment(std::vector<std::byte>& out) {
  GW_ASSERT(position_ < size_);
  const Shape shape = next_segment();
  BitsForm form = plan_of(shape).form;
  body_.clear();
  if (form == BitsForm::kOnes || form == BitsForm::kZeros || form == BitsForm::kChanges)
    append_positions(form, shape, body_);
  const bool one_chunk = shape.bits <= kChunkBits;
  const std::uint64_t raw_bytes = bytes_of(shape.bits);
  const std::uint64_t* raw = words_.data() + position_ / 64;
  if (one_chunk && form != BitsForm::kClear && form != BitsForm::kSet) {
    if (body_.size() > raw_bytes) form = BitsForm::kRaw;
    // What Rice codes have made small has no pattern left for deflate that would repay its head.
    const std::size_t now = form == BitsForm::kRaw ? raw_bytes : body_.size();
    if (deflate_ && now > raw_bytes / 16 &&
        deflate({reinterpret_cast<const std::byte*>(raw), raw_bytes}, now - now / 32, deflated_)) {
      form = BitsForm::kDeflate;
      body_.clear();
      put_varint(body_, deflated_.size());
      put_bytes(body_, deflated_.data(), deflated_.size());
    }
  }
  put_byte(out, static_cast<std::uint8_t>(form) | (one_chunk ? kOneChunk : 0));
  if (!one_chunk) put_varint(out, (shape.bits + kChunkBits - 1) / kChunkBits);
  if (form == BitsForm::kRaw) {
    put_bytes(out, raw, raw_bytes);
  } else {
    put_bytes(out, body_.data(), body_.size());
  }
  position_ += shape.bits;
}

}  // namespace godwit::pages
