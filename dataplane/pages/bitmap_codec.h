#pragma once
// Bitmaps as bytes, in pieces that each fit a message. Every piece is decodable on its own; the pieces of a bitmap are
// sent in order.
//
// Pure. Encoders cannot fail. Decoders take hostile bytes: any input gives a result or a DecodeError, touches only
// `out`, and allocates no more than the state of inflate. After an error the pages of the piece are unspecified.
//
// Each stretch of 64 Kbit (several together where little is set) takes the smallest of: raw, Golomb-Rice coded gaps
// between set (or between clear) bits, Golomb-Rice coded runs, deflate (slow links only). Rice codes come within 3 % of
// the entropy of random and of geometric bitmaps, so they undercut varints, Roaring and deflate alike at the price of
// one pass.

#include <expected>
#include <span>
#include <vector>

#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/codec.h"

namespace godwit::pages {

/// Writes a piece that starts at page `first` (a multiple of 64) into `out` (replaced), and returns the page after its
/// last: call again with that until it is bitmap.size(). An empty bitmap is one piece.
PageNumber encode_bitmap_piece(const Bitmap& bitmap, PageNumber first, const CodecOptions& options,
                               std::vector<std::byte>& out);

/// Overwrites pages [first, returned) of `out` with the piece, which must start at page `first`. Complete when the
/// result is out.size().
[[nodiscard]] std::expected<PageNumber, DecodeError> decode_bitmap_piece(std::span<const std::byte> piece,
                                                                         PageNumber first, Bitmap& out);

}  // namespace godwit::pages
