#pragma once
// The inner loops of BitsEncoder: looking at a chunk, and turning its bits into gaps and gaps into codes. Pure.
// Each has a plain path and one for newer CPUs, chosen at run time; both give the same.

#include <cstddef>
#include <cstdint>
#include <span>

#include "dataplane/pages/bits_codec.h"

namespace godwit::pages {

struct BitCounts {
  std::uint64_t ones = 0, runs = 0;
};

enum class BitKernels : std::uint8_t { kPlain, kAvx512 };
[[nodiscard]] bool bit_kernels_supported(BitKernels kernels);
[[nodiscard]] BitKernels bit_kernels_best();

/// Set bits and runs of them in up to kChunkWords words, and which words hold any.
[[nodiscard]] BitCounts look_at_words(std::span<const std::uint64_t> words, ChunkActivity& activity,
                                      BitKernels kernels);

/// The gaps between the positions that `form` codes (kOnes, kZeros, kChanges) of `bits` bits of `words`; returns how
/// many. `activity` has an element a chunk.
[[nodiscard]] std::size_t extract_gaps(BitsForm form, std::span<const std::uint64_t> words, std::uint64_t bits,
                                       std::span<const ChunkActivity> activity, std::uint32_t* out);

/// Writes the Rice codes of `gaps` (rice.h); gaps of even number with even_k, others with odd_k. `out` has room for
/// kCodeBitsMax a gap and 8 bytes. Returns the bytes.
[[nodiscard]] std::size_t write_codes(std::span<const std::uint32_t> gaps, unsigned even_k, unsigned odd_k,
                                      std::byte* out);

}  // namespace godwit::pages
