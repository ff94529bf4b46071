#pragma once
// How a segment of bits_codec.h is stored: the forms, and the Rice code of gaps. Constants only.

#include <cstddef>
#include <cstdint>

namespace godwit::pages {

// Three of the forms are one: a sorted set of positions, coded as the gaps between them. Positions are those of the set
// bits, of the clear bits, or of the changes (so that gaps are run lengths; the string counts as preceded by a clear
// bit).
enum class BitsForm : std::uint8_t { kClear, kSet, kRaw, kOnes, kZeros, kChanges, kDeflate };

/// Head byte of a segment: the form and this flag. Without it, a varint of chunks follows.
inline constexpr std::uint8_t kOneChunk = 0x80;

// Rice code of a gap v with parameter k: v >> k zeros, a one, the k low bits of v. Where v >> k reaches kEscape:
// kEscape zeros, a one, 5 bits of width - 1, the width low bits; so a few huge gaps among small ones cost little. Gaps
// of even and odd number have their own k among changes, since runs of clear and of set bits differ.
inline constexpr unsigned kEscape = 12;
inline constexpr unsigned kWidthMax = 24;
inline constexpr unsigned kRiceMax = kWidthMax - 1;
/// Bits of the longest code; with up to 7 bits pending it fits a 64-bit store and load.
inline constexpr unsigned kCodeBitsMax = kEscape + 1 + 5 + kWidthMax;
static_assert(kCodeBitsMax + 7 <= 57);

/// Bits of the longest segment that is made, so that every gap fits kWidthMax: 64 GiB of guest.
inline constexpr std::uint64_t kSegmentBitsMax = std::uint64_t{1} << kWidthMax;

}  // namespace godwit::pages
