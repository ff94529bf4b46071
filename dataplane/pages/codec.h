#pragma once
// What bitmap_codec.h and table_codec.h share: why a decoder refuses its input, and how an encoder is told about the
// link.

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace godwit::pages {

enum class DecodeError : std::uint8_t {
  kTruncated,   // ends before what it announces
  kTrailing,    // bytes after the end
  kWrongFirst,  // does not continue where the piece before ended
  kBeyondSize,  // names pages that the VM does not have
  kBadHead,     // an unknown or impossible kind of segment, or parameter
  kBadCount,    // more or fewer entries than the segment has pages
  kBadDeflate,  // the deflate stream is damaged or of another length
};

[[nodiscard]] std::string_view to_string(DecodeError error);

/// Pieces of at most this many bytes leave room for a message header below transport's 64 KiB.
inline constexpr std::size_t kPieceBytesMax = 60 * 1024;
/// The least `bytes_max` an encoder takes: it must be able to store one incompressible chunk.
inline constexpr std::size_t kPieceBytesMin = 36 * 1024;

/// Deflate reads and writes some 100 MB/s of already coded chunks: below this rate of the link it is sooner done than
/// the bytes it saves.
inline constexpr std::uint64_t kDeflateBelowBps = 1'000'000'000;

struct CodecOptions {
  std::uint64_t link_bps = 0;  // 0: unknown, taken as fast
  std::size_t bytes_max = kPieceBytesMax;
  [[nodiscard]] bool deflate() const { return link_bps != 0 && link_bps < kDeflateBelowBps; }
};

}  // namespace godwit::pages
