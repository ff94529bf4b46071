#pragma once
// The coder of bit strings behind bitmap_codec.h and table_codec.h: segments, each in the form that is smallest for it.
//
// Pure. A string is an array of 64-bit words; bits past its length are zero, and the decoder insists on it.
// Segment: head byte (form, "one chunk" flag), [varint chunks], parameters, payload. See rice.h for the forms.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "dataplane/pages/codec.h"
#include "dataplane/pages/rice.h"
#include "dataplane/pages/words.h"

namespace godwit::pages {

/// The unit in which forms are chosen.
inline constexpr std::uint64_t kChunkBits = 65536;
inline constexpr std::uint64_t kChunkWords = kChunkBits / 64;
/// No segment takes more bytes than this.
inline constexpr std::size_t kSegmentBytesMax = 12 * 1024;

/// Which words of a chunk hold anything, a bit a word: so that coding reads only those.
struct ChunkActivity {
  std::array<std::uint64_t, kChunkWords / 64> nonzero;  // some bit is set
  std::array<std::uint64_t, kChunkWords / 64> changed;  // some bit differs from the one before it, in this chunk
};

class BitsEncoder {
 public:
  BitsEncoder(std::span<const std::uint64_t> words, std::uint64_t size, bool deflate);

  [[nodiscard]] std::uint64_t size() const { return size_; }
  /// Bits encoded so far: a multiple of kChunkBits, or size().
  [[nodiscard]] std::uint64_t position() const { return position_; }
  /// Appends one segment; position() < size() is required.
  void append_segment(std::vector<std::byte>& out);

 private:
  /// Of a stretch: its length, set bits, runs of set bits, and whether its first and last bit are set.
  struct Shape {
    std::uint64_t bits = 0, ones = 0, runs = 0;
    bool first = false, last = false;
    /// How many codes it takes, about.
    [[nodiscard]] std::uint64_t symbols() const;
    void operator+=(const Shape& other);
  };
  struct Plan;

  [[nodiscard]] Shape look_at(std::uint64_t position, ChunkActivity& activity) const;
  [[nodiscard]] Shape next_segment();
  [[nodiscard]] static Plan plan_of(const Shape& shape);
  void append_positions(BitsForm form, const Shape& shape, std::vector<std::byte>& out);

  std::span<const std::uint64_t> words_;
  std::uint64_t size_;
  bool deflate_;
  std::uint64_t position_ = 0;
  std::vector<ChunkActivity> activity_;  // of the segment's chunks, then of the one ahead
  std::optional<Shape> ahead_;           // of the chunk after the segment, already looked at
  std::size_t symbols_max_;
  std::unique_ptr<std::uint32_t[]> gaps_;
  std::unique_ptr<std::byte[]> coded_;
  std::vector<std::byte> body_;
  std::vector<std::byte> deflated_;
};

/// Fills `words` with exactly `size` bits from segments read off `reader`; bits past `size` become zero.
[[nodiscard]] std::optional<DecodeError> decode_bits(ByteReader& reader, std::span<std::uint64_t> words,
                                                     std::uint64_t size);

}  // namespace godwit::pages
