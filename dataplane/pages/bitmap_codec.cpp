#include "dataplane/pages/bitmap_codec.h"

#include "dataplane/pages/bits_codec.h"
#include "dataplane/pages/piece.h"

namespace godwit::pages {

static_assert(kSegmentBytesMax + kPieceHeadBytesMax <= kPieceBytesMin);

PageNumber encode_bitmap_piece(const Bitmap& bitmap, PageNumber first, const CodecOptions& options,
                               std::vector<std::byte>& out) {
  GW_ASSERT(options.bytes_max >= kPieceBytesMin);
  GW_ASSERT(first <= bitmap.size() && first % 64 == 0);
  const std::uint64_t left = bitmap.size() - first;
  BitsEncoder encoder(bitmap.words().subspan(first / 64), left, options.deflate());
  std::vector<std::byte> body;
  while (encoder.position() < left && body.size() + kSegmentBytesMax + kPieceHeadBytesMax <= options.bytes_max) {
    encoder.append_segment(body);
  }
  put_piece(out, first, encoder.position(), body);
  GW_ASSERT(out.size() <= options.bytes_max);
  return first + encoder.position();
}

std::expected<PageNumber, DecodeError> decode_bitmap_piece(std::span<const std::byte> piece, PageNumber first,
                                                           Bitmap& out) {
  ByteReader reader(piece);
  const auto count = read_piece_head(reader, first, out.size());
  if (!count) return std::unexpected(count.error());
  const PageNumber end = first + *count;
  // Pieces join at whole words.
  if (first % 64 != 0 || (end % 64 != 0 && end != out.size())) return std::unexpected(DecodeError::kBadCount);
  const auto words = out.words().subspan(first / 64, (*count + 63) / 64);
  if (const auto error = decode_bits(reader, words, *count)) return std::unexpected(*error);
  if (!reader.left().empty()) return std::unexpected(DecodeError::kTrailing);
  return end;
}

}  // namespace godwit::pages
