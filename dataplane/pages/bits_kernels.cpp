#include "dataplane/pages/bits_kernels.h"

// g++ 12 takes the undefined operands inside its own intrinsics for ours (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace godwit::pages {

namespace {

BitCounts look_plain(std::span<const std::uint64_t> words, std::uint64_t carry, std::size_t first,
                     ChunkActivity& activity) {
  BitCounts counts;
  for (std::size_t i = first; i < words.size(); ++i) {
    const std::uint64_t word = words[i];
    const std::uint64_t left = word << 1 | carry;
    carry = word >> 63;
    if ((word | left) == 0) continue;
    counts.ones += static_cast<std::uint64_t>(std::popcount(word));
    counts.runs += static_cast<std::uint64_t>(std::popcount(word & ~left));
    activity.nonzero[i / 64] |= std::uint64_t{word != 0} << (i % 64);
    activity.changed[i / 64] |= std::uint64_t{(word ^ left) != 0} << (i % 64);
  }
  return counts;
}

/// Four lines of 64 bytes at a time, since most of a bitmap is mostly empty.
[[gnu::target("avx512f,avx512vpopcntdq")]] BitCounts look_avx512(std::span<const std::uint64_t> words,
                                                                 ChunkActivity& activity) {
  const std::size_t whole = words.size() / 32 * 32;
  __m512i before = _mm512_setzero_si512();
  __m512i ones = before;
  __m512i runs = before;
  for (std::size_t first = 0; first < whole; first += 32) {
    const std::uint64_t* at = words.data() + first;
    const __m512i lines[4] = {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 8), _mm512_loadu_si512(at + 16),
                              _mm512_loadu_si512(at + 24)};
    const __m512i any = _mm512_or_si512(_mm512_or_si512(_mm512_or_si512(lines[0], lines[1]), before),
                                        _mm512_or_si512(lines[2], lines[3]));
    if (_mm512_test_epi64_mask(any, any) == 0) continue;
    std::uint64_t nonzero = 0;
    std::uint64_t changed = 0;
    for (unsigned i = 0; i < 4; ++i) {
      const __m512i word = lines[i];
      const __m512i carry = _mm512_srli_epi64(_mm512_alignr_epi64(word, before, 7), 63);
      const __m512i left = _mm512_or_si512(_mm512_slli_epi64(word, 1), carry);
      const __m512i changes = _mm512_xor_si512(word, left);
      ones = _mm512_add_epi64(ones, _mm512_popcnt_epi64(word));
      runs = _mm512_add_epi64(runs, _mm512_popcnt_epi64(_mm512_andnot_si512(left, word)));
      nonzero |= std::uint64_t{_mm512_test_epi64_mask(word, word)} << (8 * i);
      changed |= std::uint64_t{_mm512_test_epi64_mask(changes, changes)} << (8 * i);
      before = word;
    }
    activity.nonzero[first / 64] |= nonzero << (first % 64);
    activity.changed[first / 64] |= changed << (first % 64);
  }
  const std::uint64_t carry = whole == 0 ? 0 : words[whole - 1] >> 63;
  BitCounts counts = look_plain(words, carry, whole, activity);
  counts.ones += static_cast<std::uint64_t>(_mm512_reduce_add_epi64(ones));
  counts.runs += static_cast<std::uint64_t>(_mm512_reduce_add_epi64(runs));
  return counts;
}

[[gnu::always_inline]] inline std::size_t extract_body(BitsForm form, std::span<const std::uint64_t> words,
                                                       std::uint64_t bits, std::span<const ChunkActivity> activity,
                                                       std::uint32_t* const begin) {
  const std::size_t last_word = words.size() - 1;
  const std::uint64_t last_mask = bits_through((bits - 1) % 64);
  const std::uint64_t flip = form == BitsForm::kZeros ? ~std::uint64_t{0} : 0;
  const bool changes = form == BitsForm::kChanges;
  std::uint32_t* out = begin;
  std::uint32_t expected = 0;  // the position that a gap of 0 would mean
  for (std::size_t group = 0; group * 64 < words.size(); ++group) {
    const ChunkActivity& chunk = activity[group / (kChunkWords / 64)];
    const std::size_t in_chunk = group % (kChunkWords / 64);
    std::uint64_t active = changes ? chunk.changed[in_chunk] : chunk.nonzero[in_chunk];
    // A word without a change that is not zero is all ones: no clear bit.
    if (flip != 0) active = chunk.changed[in_chunk] | ~active;
    // Whether a chunk's first bit is a change is not for the chunk to know.
    if (changes && in_chunk == 0) active |= 1;
    if (words.size() - group * 64 < 64) active &= bits_through(words.size() - group * 64 - 1);
    for (; active != 0; active &= active - 1) {
      const std::size_t i = group * 64 + static_cast<std::size_t>(std::countr_zero(active));
      const std::uint64_t word = words[i];
      const std::uint64_t carry = i == 0 ? 0 : words[i - 1] >> 63;
      std::uint64_t positions = word ^ (changes ? (word << 1 | carry) : flip);
      if (i == last_word) positions &= last_mask;
      const auto base = static_cast<std::uint32_t>(i * 64);
      for (; positions != 0; positions &= positions - 1) {
        const std::uint32_t position = base + static_cast<std::uint32_t>(std::countr_zero(positions));
        *out++ = position - expected;
        expected = position + 1;
      }
    }
  }
  return static_cast<std::size_t>(out - begin);
}

[[gnu::always_inline]] inline std::size_t write_body(std::span<const std::uint32_t> gaps, unsigned even_k,
                                                     unsigned odd_k, std::byte* const begin) {
  const std::array<unsigned, 2> ks{even_k, odd_k};
  std::byte* out = begin;
  std::uint64_t pending = 0;
  unsigned pending_bits = 0;
  for (std::size_t i = 0; i < gaps.size(); ++i) {
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
  return static_cast<std::size_t>(out - begin) + (pending_bits != 0 ? 1 : 0);
}

// Shifts by variable amounts and searches for set bits: BMI makes these loops a quarter faster.
[[gnu::target("bmi,bmi2,lzcnt,popcnt")]] std::size_t extract_bmi(BitsForm form, std::span<const std::uint64_t> words,
                                                                 std::uint64_t bits,
                                                                 std::span<const ChunkActivity> activity,
                                                                 std::uint32_t* out) {
  return extract_body(form, words, bits, activity, out);
}

[[gnu::target("bmi,bmi2,lzcnt,popcnt")]] std::size_t write_bmi(std::span<const std::uint32_t> gaps, unsigned even_k,
                                                               unsigned odd_k, std::byte* out) {
  return write_body(gaps, even_k, odd_k, out);
}

bool has_bmi() {
  static const bool has = __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                          __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("popcnt");
  return has;
}

}  // namespace

bool bit_kernels_supported(BitKernels kernels) {
  return kernels == BitKernels::kPlain ||
         (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vpopcntdq"));
}

BitKernels bit_kernels_best() {
  static const BitKernels best = bit_kernels_supported(BitKernels::kAvx512) ? BitKernels::kAvx512 : BitKernels::kPlain;
  return best;
}

BitCounts look_at_words(std::span<const std::uint64_t> words, ChunkActivity& activity, BitKernels kernels) {
  GW_ASSERT(words.size() <= kChunkWords);
  activity = {};
  return kernels == BitKernels::kAvx512 ? look_avx512(words, activity) : look_plain(words, 0, 0, activity);
}

std::size_t extract_gaps(BitsForm form, std::span<const std::uint64_t> words, std::uint64_t bits,
                         std::span<const ChunkActivity> activity, std::uint32_t* out) {
  return has_bmi() ? extract_bmi(form, words, bits, activity, out) : extract_body(form, words, bits, activity, out);
}

std::size_t write_codes(std::span<const std::uint32_t> gaps, unsigned even_k, unsigned odd_k, std::byte* out) {
  return has_bmi() ? write_bmi(gaps, even_k, odd_k, out) : write_body(gaps, even_k, odd_k, out);
}

}  // namespace godwit::pages
