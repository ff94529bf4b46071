#pragma once
// Copies past the caches: for memory that this core will not read soon. The destination's old lines are not fetched, so
// a page costs half the memory traffic and leaves the caches to those who need them. Pure; any thread; no failure.

#include <emmintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace godwit::memory {

/// Visible to other threads only after stream_fence(). Falls back to memcpy unless `to` and the length are multiples
/// of 16.
inline void stream_copy(std::byte* to, std::span<const std::byte> from) {
  constexpr std::size_t kStep = sizeof(__m128i);
  if (reinterpret_cast<std::uintptr_t>(to) % kStep != 0 || from.size() % kStep != 0) {
    std::memcpy(to, from.data(), from.size());
    return;
  }
  for (std::size_t at = 0; at < from.size(); at += kStep) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + at),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from.data() + at)));
  }
}

inline void stream_fence() { _mm_sfence(); }

}  // namespace godwit::memory
