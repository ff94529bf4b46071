#pragma once
// The codecs that ours is measured against: each encodes a bitmap into bytes as well as a user of it would. Pure.

#include <cstddef>
#include <vector>

#include "dataplane/pages/bitmap.h"

namespace godwit::perf {

using Bytes = std::vector<std::byte>;

void encode_raw(const pages::Bitmap& bitmap, Bytes& out);
/// LEB128 of the distance of each set bit from the last.
void encode_varint_gaps(const pages::Bitmap& bitmap, Bytes& out);
/// LEB128 of the lengths of runs, clear and set in turn.
void encode_varint_runs(const pages::Bitmap& bitmap, Bytes& out);
/// CRoaring, run-optimised, portable format, built from the indices of the set bits.
void encode_roaring(const pages::Bitmap& bitmap, Bytes& out);
/// The same, built from the runs: faster where runs are long.
void encode_roaring_by_runs(const pages::Bitmap& bitmap, Bytes& out);
/// ISA-L deflate of the raw bitmap, level 1.
void encode_igzip(const pages::Bitmap& bitmap, Bytes& out);

}  // namespace godwit::perf
