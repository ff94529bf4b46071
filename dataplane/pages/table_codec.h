#pragma once
// Generation tables as bytes, in pieces that each fit a message. Every piece is decodable on its own; the pieces of a
// table are sent in order.
//
// Pure. Encoders cannot fail. Decoders take hostile bytes: any input gives a result or a DecodeError, touches only
// `out`, and allocates
// some 300 KiB at most. After an error the entries of the piece are unspecified: set them to
// kUnknownGeneration or drop the table.
//
// A long stretch of one generation is one segment. Any other 4096 runs take the smallest of: runs (generation,
// count), a dictionary with one bitmap a generation (bitmap codec over the entries not yet named), bit-packed indices
// into a dictionary, raw; each then deflated where the link is slow and it helps.

#include <expected>
#include <span>
#include <vector>

#include "dataplane/pages/codec.h"
#include "dataplane/pages/generation_table.h"

namespace godwit::pages {

/// Writes a piece that starts at page `first` into `out` (replaced), and returns the page after its last: call again
/// with that until it is table.size(). An empty table is one piece.
PageNumber encode_table_piece(const GenerationTable& table, PageNumber first, const CodecOptions& options,
                              std::vector<std::byte>& out);

/// Overwrites entries [first, returned) of `out` with the piece, which must start at page `first`. Complete when the
/// result is out.size().
[[nodiscard]] std::expected<PageNumber, DecodeError> decode_table_piece(std::span<const std::byte> piece,
                                                                        PageNumber first, GenerationTable& out);

}  // namespace godwit::pages
