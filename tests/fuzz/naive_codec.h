#pragma once
// The formats of bitmap_codec.h and table_codec.h read again as plainly as possible, a bit and an entry at a time, from
// the comments that define them: what the fast decoders are compared with. Deflate streams are left to ISA-L through
// the same inflate(). Pure; nullopt: not such a piece.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace godwit::fuzz {

struct NaivePiece {
  std::uint64_t end = 0;               // the page after its last
  std::vector<bool> bits;              // of a bitmap: pages first .. end - 1
  std::vector<std::uint32_t> entries;  // of a table
};

std::optional<NaivePiece> naive_bitmap_piece(std::span<const std::byte> piece, std::uint64_t first, std::uint64_t size);
std::optional<NaivePiece> naive_table_piece(std::span<const std::byte> piece, std::uint64_t first, std::uint64_t size);

}  // namespace godwit::fuzz
