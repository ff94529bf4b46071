#pragma once
// What a page is, everywhere in godwit. Pure constants and types.

#include <cstddef>
#include <cstdint>
#include <span>

namespace godwit::pages {

inline constexpr std::size_t kPageSize = 4096;

/// A page of one VM, numbered through its regions in their order: page 0 is the first page of region 0.
/// The regions (name, size, order) are compared when a migration starts, so both ends number alike.
using PageNumber = std::uint64_t;

/// u32 of a page: the epoch in which it was last written. See generation_table.h.
using Generation = std::uint32_t;
inline constexpr Generation kNeverWritten = 0;
inline constexpr Generation kUnknownGeneration = UINT32_MAX;  // equal to nothing, itself included

using PageBytes = std::span<const std::byte, kPageSize>;
using MutablePageBytes = std::span<std::byte, kPageSize>;

}  // namespace godwit::pages
