#pragma once
// ISA-L deflate of short buffers, for the codecs. Pure; the states of ISA-L (some 100 KiB) live on the heap for the
// call.

#include <cstddef>
#include <span>
#include <vector>

namespace godwit::pages {

/// Level 1. False, with `out` unspecified, when the result would not be smaller than `bytes_max`.
[[nodiscard]] bool deflate(std::span<const std::byte> in, std::size_t bytes_max, std::vector<std::byte>& out);

/// True if `in` is one whole deflate stream of exactly out.size() bytes, now in `out`. Never writes elsewhere, whatever
/// `in` is.
[[nodiscard]] bool inflate(std::span<const std::byte> in, std::span<std::byte> out);

}  // namespace godwit::pages
