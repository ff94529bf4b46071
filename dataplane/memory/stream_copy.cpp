#include "dataplane/memory/stream_copy.h"

// g++ 12 warns of its own header's "undefined" vectors wherever one is inlined (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <algorithm>

#include "dataplane/pages/read_ahead.h"

namespace godwit::memory {
namespace {

constexpr std::size_t kLineBytes = pages::ReadAhead::kLineBytes;
/// Fetched beside each page, more than it has: its share of what stands before and behind the pages in a frame.
constexpr std::size_t kFrameShareBytes = 2 * kLineBytes;

bool fits(const std::byte* to, std::size_t bytes, std::size_t step) {
  return reinterpret_cast<std::uintptr_t>(to) % step == 0 && bytes % step == 0;
}

void copy_sse2(std::byte* to, std::span<const std::byte> from) {
  constexpr std::size_t kStep = sizeof(__m128i);
  for (std::size_t at = 0; at < from.size(); at += kStep) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + at),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from.data() + at)));
  }
}

[[gnu::target("avx512f")]] void copy_avx512(std::byte* to, std::span<const std::byte> from) {
  const std::span<const std::byte> ahead = pages::ReadAhead::of_this_thread().take(from.size() + kFrameShareBytes);
  std::size_t fetched = 0;
  for (std::size_t at = 0; at < from.size(); at += kLineBytes) {
    if (fetched < ahead.size()) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead.data() + fetched), _MM_HINT_T0);
      fetched += kLineBytes;
    }
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), _mm512_loadu_si512(from.data() + at));
  }
  for (; fetched < ahead.size(); fetched += kLineBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead.data() + fetched), _MM_HINT_T0);
  }
}

}  // namespace

Streamer best_streamer() { return __builtin_cpu_supports("avx512f") != 0 ? Streamer::kAvx512 : Streamer::kSse2; }

void stream_copy(std::byte* to, std::span<const std::byte> from, Streamer streamer) {
  // Stores of half a line each share their buffers with what is fetched: nothing is gained then.
  if (streamer == Streamer::kAvx512 && fits(to, from.size(), kLineBytes)) {
    copy_avx512(to, from);
  } else if (fits(to, from.size(), sizeof(__m128i))) {
    copy_sse2(to, from);
  } else {
    std::ranges::copy(from, to);  // of nothing there may be no address
  }
}

void stream_copy(std::byte* to, std::span<const std::byte> from) {
  static const Streamer best = best_streamer();
  stream_copy(to, from, best);
}

}  // namespace godwit::memory
