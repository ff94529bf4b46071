#include <algorithm>
#include <array>

#include "base/check.h"
#include "dataplane/pages/bits_codec.h"
#include "dataplane/pages/bits_kernels.h"
#include "dataplane/pages/deflate.h"
#include "dataplane/pages/rice.h"

namespace godwit::pages {

namespace {

/// Chunks are put together while they hold no more symbols than this: enough for the head not to matter.
constexpr std::uint64_t kSymbolsWanted = 1024;
/// A chunk is coded as positions only where that is smaller than raw, and a position takes a bit at least.
constexpr std::size_t kSymbolsMax = kChunkBits + kSymbolsWanted;

/// Expected bits of `symbols` Rice codes whose values sum to `sum`, as if geometric, with the best k.
double rice_bits(std::uint64_t symbols, std::uint64_t sum) {
  if (symbols == 0) return 0;
  const auto n = static_cast<double>(symbols);
  const std::uint64_t mean = sum * 7 / (symbols * 10);
  const unsigned low = mean == 0 ? 0 : static_cast<unsigned>(std::bit_width(mean)) - 1;
  double best = 1e300;
  for (const unsigned k : {low, low + 1}) {
    const auto step = static_cast<double>(std::uint64_t{1} << k);
    best = std::min(best, n * (k + 1) + std::max(0.0, static_cast<double>(sum) / step - n * 0.5 * (1 - 1 / step)));
  }
  return best;
}

constexpr std::size_t kWidths = 32;  // 0 to kWidthMax, padded for the vectoriser

/// About how many eighths of a bit a value of this width takes with this k. Values of a width are spread over
/// [2^(width-1), 2^width), more of them below.
constexpr std::uint32_t cost_of(unsigned k, unsigned width) {
  if (width <= k) return 8 * (k + 1);
  if (width == k + 1) return 8 * (k + 2);
  const std::uint64_t quotient = (std::uint64_t{11} << (width - k - 1)) - 4;
  return static_cast<std::uint32_t>(quotient < 8 * kEscape ? 8 * (k + 1) + quotient : 8 * (kEscape + 6 + width));
}

constexpr auto kCosts = [] {
  std::array<std::array<std::uint32_t, kWidths>, kRiceMax + 1> costs{};
  for (unsigned k = 0; k <= kRiceMax; ++k) {
    for (unsigned width = 0; width <= kWidthMax; ++width) costs[k][width] = cost_of(k, width);
  }
  return costs;
}();

/// The cheapest k for every stride-th value, judged by their widths.
unsigned best_k(std::span<const std::uint32_t> gaps, std::size_t first, std::size_t stride) {
  std::array<std::uint32_t, kWidths> widths{};
  for (std::size_t i = first; i < gaps.size(); i += stride) ++widths[static_cast<unsigned>(std::bit_width(gaps[i]))];
  unsigned best = 0;
  std::uint32_t best_cost = UINT32_MAX;
  for (unsigned k = 0; k <= kRiceMax; ++k) {
    std::uint32_t cost = 0;
    for (std::size_t width = 0; width < kWidths; ++width) cost += kCosts[k][width] * widths[width];
    if (cost < best_cost) {
      best_cost = cost;
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
      symbols_max_(std::min<std::uint64_t>(size, kSymbolsMax)),
      gaps_(std::make_unique_for_overwrite<std::uint32_t[]>(symbols_max_)),
      coded_(std::make_unique_for_overwrite<std::byte[]>(symbols_max_ * kCodeBitsMax / 8 + 16)) {
  GW_ASSERT(words.size() == (size + 63) / 64);
}

BitsEncoder::Shape BitsEncoder::look_at(std::uint64_t position, ChunkActivity& activity) const {
  const std::uint64_t bits = std::min(kChunkBits, size_ - position);
  const auto words = words_.subspan(position / 64, (bits + 63) / 64);
  const BitCounts counts = look_at_words(words, activity, bit_kernels_best());
  const bool first = (words.front() & 1) != 0;
  const bool last = (words.back() >> ((bits - 1) % 64) & 1) != 0;
  return {bits, counts.ones, counts.runs, first, last};
}

BitsEncoder::Shape BitsEncoder::next_segment() {
  // What was looked at ahead is the last activity.
  if (ahead_) {
    activity_.front() = activity_.back();
    activity_.resize(1);
  } else {
    activity_.resize(1);
    ahead_ = look_at(position_, activity_.front());
  }
  Shape segment = *ahead_;
  ahead_.reset();
  while (position_ + segment.bits < size_ && segment.bits < kSegmentBitsMax) {
    const Shape next = look_at(position_ + segment.bits, activity_.emplace_back());
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

/// Parameters and payload of a segment of positions.
void BitsEncoder::append_positions(BitsForm form, const Shape& shape, std::vector<std::byte>& out) {
  const auto words = words_.subspan(position_ / 64, (shape.bits + 63) / 64);
  const std::size_t count = extract_gaps(form, words, shape.bits, activity_, gaps_.get());
  GW_ASSERT(count <= symbols_max_);
  const std::span<const std::uint32_t> gaps(gaps_.get(), count);
  // A sample of some hundred values tells the best k well enough.
  const std::size_t thinning = count / 512 + 1;
  const bool changes = form == BitsForm::kChanges;
  const unsigned even_k = best_k(gaps, 0, changes ? 2 * thinning : thinning);
  const unsigned odd_k = changes ? best_k(gaps, 1, 2 * thinning) : even_k;
  const std::size_t bytes = write_codes(gaps, even_k, odd_k, coded_.get());
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
