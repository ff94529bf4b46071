#pragma once
// Copies past the caches: for memory that this core will not read soon. The destination's old lines are not fetched, so
// a page costs half the memory traffic and leaves the caches to those who need them. The core waits for memory
// meanwhile, so what pages::ReadAhead knows is fetched beside it. Any thread; no failure.

#include <emmintrin.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace godwit::memory {

/// What stores: with the widest registers a line is one store, and no line is ever sent to memory in part.
enum class Streamer : std::uint8_t { kSse2, kAvx512 };
[[nodiscard]] Streamer best_streamer();

/// Visible to other threads only after stream_fence(). Falls back to memcpy unless `to` and the length are multiples
/// of what is stored at once.
void stream_copy(std::byte* to, std::span<const std::byte> from);
/// By a given one, which must not be wider than the best.
void stream_copy(std::byte* to, std::span<const std::byte> from, Streamer streamer);

inline void stream_fence() { _mm_sfence(); }

}  // namespace godwit::memory
