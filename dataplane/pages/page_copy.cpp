#include "dataplane/pages/page_copy.h"

// g++ 12 warns of its own header's "undefined" vectors wherever one is inlined (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define XXH_INLINE_ALL  // its constants and its last step, which the library does not export
#include <xxhash.h>

#include <array>
#include <cstring>

#include "base/check.h"

namespace godwit::pages {
namespace {

// XXH3_64bits of 4096 bytes by the algorithm's description (xxHash, doc/xxhash_spec.md, "XXH3 algorithm description
// for large inputs"), with the default secret: 64 stripes of 64 bytes, 16 in a block.
constexpr std::size_t kStripeBytes = XXH_STRIPE_LEN;
constexpr std::size_t kStripes = kPageSize / kStripeBytes;
constexpr std::size_t kStripesInBlock = (XXH_SECRET_DEFAULT_SIZE - kStripeBytes) / XXH_SECRET_CONSUME_RATE;
constexpr std::size_t kStripesInTurn = 4;
constexpr std::size_t kScrambleSecret = XXH_SECRET_DEFAULT_SIZE - kStripeBytes;
constexpr std::size_t kLastSecret = kScrambleSecret - XXH_SECRET_LASTACC_START;
static_assert(kStripes % kStripesInBlock == 0 && kStripesInBlock % kStripesInTurn == 0);

constexpr std::size_t secret_of(std::size_t stripe) {
  return stripe + 1 == kStripes ? kLastSecret : stripe % kStripesInBlock * XXH_SECRET_CONSUME_RATE;
}

/// The last stripe is not followed by a scramble.
constexpr bool ends_block(std::size_t stripe) {
  return stripe % kStripesInBlock == kStripesInBlock - 1 && stripe + 1 != kStripes;
}

using Accumulators = std::array<std::uint64_t, 8>;
alignas(64) constexpr Accumulators kInitial = XXH3_INIT_ACC;

PageHash merge(const Accumulators& accumulators) {
  return XXH3_mergeAccs(accumulators.data(), XXH3_kSecret + XXH_SECRET_MERGEACCS_START,
                        std::uint64_t{kPageSize} * XXH_PRIME64_1);
}

[[gnu::target("avx512f")]] inline __m512i accumulate(__m512i sum, __m512i data, std::size_t secret) {
  const __m512i key = _mm512_xor_si512(data, _mm512_loadu_si512(XXH3_kSecret + secret));
  const __m512i product = _mm512_mul_epu32(key, _mm512_srli_epi64(key, 32));
  const __m512i swapped = _mm512_shuffle_epi32(data, _MM_PERM_BADC);
  return _mm512_add_epi64(product, _mm512_add_epi64(sum, swapped));
}

[[gnu::target("avx512f")]] inline __m512i scramble(__m512i sum) {
  const __m512i mixed = _mm512_xor_si512(_mm512_xor_si512(sum, _mm512_srli_epi64(sum, 47)),
                                         _mm512_loadu_si512(XXH3_kSecret + kScrambleSecret));
  const __m512i prime = _mm512_set1_epi64(XXH_PRIME32_1);
  const __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(mixed, 32), prime);
  return _mm512_add_epi64(_mm512_mul_epu32(mixed, prime), _mm512_slli_epi64(high, 32));
}

/// "prfchw": or g++ would fetch what is to be written for reading, and its owner would have to be asked twice. Whoever
/// has AVX-512 has it.
template <std::size_t kPages, bool kFetchesTo, bool kFetchesFrom>
[[gnu::target("avx512f,prfchw")]] void copy_avx512(const PageCopy* copies, PageHash* hashes) {
  __m512i sums[kPages];
  PageCopy pages[kPages];  // our own: for all the compiler knows, the stores below change `copies`
#pragma GCC unroll 2
  for (std::size_t page = 0; page < kPages; ++page) {
    sums[page] = _mm512_loadu_si512(kInitial.data());
    pages[page] = copies[page];
  }
  for (std::size_t first = 0; first < kStripes; first += kStripesInTurn) {
    // Unrolled, or the sums would live in memory: g++ does not see it at -O2.
#pragma GCC unroll 2
    for (std::size_t page = 0; page < kPages; ++page) {
#pragma GCC unroll 4
      for (std::size_t stripe = first; stripe < first + kStripesInTurn; ++stripe) {
        const std::size_t at = stripe * kStripeBytes;
        const __m512i data = _mm512_loadu_si512(pages[page].from + at);
        _mm512_storeu_si512(pages[page].to + at, data);
        if constexpr (kFetchesTo) __builtin_prefetch(pages[page].next_to + at, 1);
        if constexpr (kFetchesFrom) __builtin_prefetch(pages[page].next_from + at);
        sums[page] = accumulate(sums[page], data, secret_of(stripe));
        if (ends_block(stripe)) sums[page] = scramble(sums[page]);
      }
    }
  }
#pragma GCC unroll 2
  for (std::size_t page = 0; page < kPages; ++page) {
    alignas(64) Accumulators accumulators;
    _mm512_store_si512(accumulators.data(), sums[page]);
    hashes[page] = merge(accumulators);
  }
}

/// By what is fetched: [to][from].
using CopyTwo = void (*)(const PageCopy*, PageHash*);
constexpr CopyTwo kCopyTwo[2][2] = {{copy_avx512<2, false, false>, copy_avx512<2, false, true>},
                                    {copy_avx512<2, true, false>, copy_avx512<2, true, true>}};

[[gnu::target("avx2")]] inline __m256i accumulate(__m256i sum, __m256i data, std::size_t secret) {
  const __m256i key =
      _mm256_xor_si256(data, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(XXH3_kSecret + secret)));
  const __m256i product = _mm256_mul_epu32(key, _mm256_srli_epi64(key, 32));
  const __m256i swapped = _mm256_shuffle_epi32(data, _MM_SHUFFLE(1, 0, 3, 2));
  return _mm256_add_epi64(product, _mm256_add_epi64(sum, swapped));
}

[[gnu::target("avx2")]] inline __m256i scramble(__m256i sum, std::size_t half) {
  const __m256i secret =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(XXH3_kSecret + kScrambleSecret + half * sizeof(__m256i)));
  const __m256i mixed = _mm256_xor_si256(_mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47)), secret);
  const __m256i prime = _mm256_set1_epi64x(XXH_PRIME32_1);
  const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), prime);
  return _mm256_add_epi64(_mm256_mul_epu32(mixed, prime), _mm256_slli_epi64(high, 32));
}

[[gnu::target("avx2")]] PageHash copy_avx2(const PageCopy& copy) {
  alignas(64) Accumulators accumulators = kInitial;
  __m256i sums[2];
  std::memcpy(sums, accumulators.data(), sizeof sums);
  for (std::size_t stripe = 0; stripe < kStripes; ++stripe) {
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      const std::size_t at = stripe * kStripeBytes + half * sizeof(__m256i);
      const __m256i data = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(copy.from + at));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(copy.to + at), data);
      sums[half] = accumulate(sums[half], data, secret_of(stripe) + half * sizeof(__m256i));
      if (ends_block(stripe)) sums[half] = scramble(sums[half], half);
    }
  }
  std::memcpy(accumulators.data(), sums, sizeof sums);
  return merge(accumulators);
}

PageHash copy_plain(const PageCopy& copy) {
  std::array<std::byte, kPageSize> page;
  std::memcpy(page.data(), copy.from, page.size());
  std::memcpy(copy.to, page.data(), page.size());
  return hash_page(page);
}

}  // namespace

PageCopier best_page_copier() {
  if (__builtin_cpu_supports("avx512f") != 0) {
    return PageCopier::kAvx512;
  }
  return __builtin_cpu_supports("avx2") != 0 ? PageCopier::kAvx2 : PageCopier::kPlain;
}

void copy_pages(std::span<const PageCopy> copies, std::span<PageHash> hashes, PageCopier copier) {
  GW_ASSERT(copies.size() == hashes.size());
  if (copier == PageCopier::kAvx512 && copies.size() == 2) {
    const bool to = copies[0].next_to != nullptr && copies[1].next_to != nullptr;
    const bool from = copies[0].next_from != nullptr && copies[1].next_from != nullptr;
    return kCopyTwo[to ? 1 : 0][from ? 1 : 0](copies.data(), hashes.data());
  }
  for (std::size_t i = 0; i < copies.size(); ++i) {
    switch (copier) {
      case PageCopier::kAvx512:
        copy_avx512<1, false, false>(&copies[i], &hashes[i]);
        break;
      case PageCopier::kAvx2:
        hashes[i] = copy_avx2(copies[i]);
        break;
      case PageCopier::kPlain:
        hashes[i] = copy_plain(copies[i]);
        break;
    }
  }
}

void copy_pages(std::span<const PageCopy> copies, std::span<PageHash> hashes) {
  static const PageCopier best = best_page_copier();
  copy_pages(copies, hashes, best);
}

}  // namespace godwit::pages
