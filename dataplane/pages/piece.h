#pragma once
// The head of a piece of bitmap_codec.h or table_codec.h: varint first page, varint pages. Pure.

#include <expected>

#include "dataplane/pages/codec.h"
#include "dataplane/pages/page.h"
#include "dataplane/pages/words.h"

namespace godwit::pages {

/// Two varints of at most 9 bytes.
inline constexpr std::size_t kPieceHeadBytesMax = 18;

/// out = head, body.
inline void put_piece(std::vector<std::byte>& out, PageNumber first, std::uint64_t count,
                      const std::vector<std::byte>& body) {
  out.clear();
  put_varint(out, first);
  put_varint(out, count);
  put_bytes(out, body.data(), body.size());
}

/// Reads the head of a piece that must start at `first` of `size` pages and, unless there are none, hold some. Returns
/// their number.
[[nodiscard]] inline std::expected<std::uint64_t, DecodeError> read_piece_head(ByteReader& reader, PageNumber first,
                                                                               std::uint64_t size) {
  const auto piece_first = reader.varint();
  const auto count = reader.varint();
  if (!piece_first || !count) return std::unexpected(DecodeError::kTruncated);
  if (*piece_first != first || first > size) return std::unexpected(DecodeError::kWrongFirst);
  if (*count > size - first) return std::unexpected(DecodeError::kBeyondSize);
  if (*count == 0 && first != size) return std::unexpected(DecodeError::kBadCount);
  return *count;
}

}  // namespace godwit::pages
