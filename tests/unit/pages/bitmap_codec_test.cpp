#include "dataplane/pages/bitmap_codec.h"

#include <gtest/gtest.h>

#include <cmath>

#include "dataplane/pages/bits_kernels.h"
#include "tests/unit/pages/random_bits.h"

namespace godwit::pages {
namespace {

constexpr CodecOptions kFast{};
constexpr CodecOptions kSlow{.link_bps = 100'000'000};

std::vector<std::vector<std::byte>> encode(const Bitmap& bitmap, const CodecOptions& options) {
  std::vector<std::vector<std::byte>> pieces;
  PageNumber at = 0;
  do {
    pieces.emplace_back();
    const PageNumber next = encode_bitmap_piece(bitmap, at, options, pieces.back());
    EXPECT_TRUE(next > at || bitmap.size() == 0);
    EXPECT_LE(pieces.back().size(), options.bytes_max);
    at = next;
  } while (at < bitmap.size());
  return pieces;
}

/// Encodes and decodes into a bitmap full of the opposite; returns the bytes.
std::size_t expect_round_trip(const Bitmap& bitmap, const CodecOptions& options) {
  Bitmap decoded(bitmap.size());
  decoded.set_all();
  decoded.and_not(bitmap);
  std::size_t bytes = 0;
  PageNumber at = 0;
  for (const auto& piece : encode(bitmap, options)) {
    bytes += piece.size();
    const auto next = decode_bitmap_piece(piece, at, decoded);
    EXPECT_TRUE(next.has_value()) << to_string(next.error());
    if (!next) return bytes;
    at = *next;
  }
  EXPECT_EQ(at, bitmap.size());
  EXPECT_EQ(decoded, bitmap);
  return bytes;
}

TEST(BitmapCodec, EveryDensitySizeAndShapeComesBack) {
  Random random(1);
  for (const std::uint64_t size :
       std::initializer_list<std::uint64_t>{0, 1, 63, 64, 65, 65535, 65536, 65537, 131072, 300'001}) {
    for (const double density : {0.0, 0.00002, 0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.97, 0.999, 1.0}) {
      expect_round_trip(random_bits(random, size, density), kFast);
      expect_round_trip(random_bits(random, size, density), kSlow);
    }
    for (const double mean : {1.0, 2.0, 64.0, 5000.0, 200'000.0}) {
      expect_round_trip(random_runs(random, size, mean, 64), kFast);
      expect_round_trip(random_runs(random, size, 64, mean), kFast);
    }
  }
}

TEST(BitmapCodec, NeighboursOfOppositeKindsComeBack) {
  // Stretches of every kind side by side, joined into segments in every way.
  Random random(2);
  for (int round = 0; round < 60; ++round) {
    Bitmap bitmap(65536 * 12 + below(random, 65536));
    for (PageNumber at = 0; at < bitmap.size(); at += 65536) {
      const std::uint64_t count = std::min<std::uint64_t>(65536, bitmap.size() - at);
      switch (below(random, 5)) {
        case 0:
          break;
        case 1:
          bitmap.set_range(at, count);
          break;
        case 2:  // full but for a few
          bitmap.set_range(at, count);
          for (int i = 0; i < 400; ++i) bitmap.clear(at + below(random, count));
          break;
        case 3:
          for (int i = 0; i < 400; ++i) bitmap.set(at + below(random, count));
          break;
        default:
          for (PageNumber page = at; page < at + count; ++page) {
            if (below(random, 2) == 0) bitmap.set(page);
          }
      }
    }
    expect_round_trip(bitmap, round % 2 == 0 ? kFast : kSlow);
  }
}

TEST(BitmapCodec, AHugeGapAmongSmallOnesComesBackSmall) {
  Bitmap bitmap(std::uint64_t{1} << 26);
  bitmap.set_range(3, 1);
  for (PageNumber page = (1 << 26) - 600; page < 1 << 26; page += 2) bitmap.set(page);
  EXPECT_LT(expect_round_trip(bitmap, kFast), 400U);
}

TEST(BitmapCodec, RandomIsWithinFivePercentOfItsEntropy) {
  Random random(3);
  constexpr double kBits = 1 << 22;
  for (const double p : {0.001, 0.01, 0.1, 0.3, 0.9}) {
    const double entropy_bytes = kBits * (-p * std::log2(p) - (1 - p) * std::log2(1 - p)) / 8;
    const auto bytes = static_cast<double>(expect_round_trip(random_bits(random, 1 << 22, p), kFast));
    EXPECT_LT(bytes, entropy_bytes * 1.05) << p;
  }
}

TEST(BitmapCodec, NeverMuchLargerThanRaw) {
  Random random(4);
  for (const double density : {0.4, 0.45, 0.5, 0.55, 0.6}) {
    EXPECT_LT(expect_round_trip(random_bits(random, 1 << 20, density), kFast), (1 << 17) + 200U);
  }
}

TEST(BitmapCodec, APatternDeflatesOnASlowLinkOnly) {
  Bitmap bitmap(1 << 20);
  for (PageNumber page = 0; page < bitmap.size(); page += 3) bitmap.set(page);
  const std::size_t fast = expect_round_trip(bitmap, kFast);
  const std::size_t slow = expect_round_trip(bitmap, kSlow);
  EXPECT_LT(slow * 20, fast);
}

TEST(BitmapCodec, PiecesFitAndEachDecodesOnItsOwn) {
  Random random(5);
  const Bitmap bitmap = random_bits(random, 3 << 20, 0.5);
  const auto pieces = encode(bitmap, {.link_bps = 0, .bytes_max = kPieceBytesMin});
  EXPECT_GT(pieces.size(), 8U);
  Bitmap decoded(bitmap.size());
  std::vector<PageNumber> firsts{0};
  for (const auto& piece : pieces) firsts.push_back(*decode_bitmap_piece(piece, firsts.back(), decoded));
  Bitmap backwards(bitmap.size());
  for (std::size_t i = pieces.size(); i-- > 0;) {
    ASSERT_TRUE(decode_bitmap_piece(pieces[i], firsts[i], backwards).has_value());
  }
  EXPECT_EQ(backwards, bitmap);
}

TEST(BitmapCodec, RefusesAPieceThatIsNotTheNext) {
  Bitmap bitmap(4096);
  std::vector<std::byte> piece;
  encode_bitmap_piece(bitmap, 0, kFast, piece);
  Bitmap out(8192);
  EXPECT_EQ(decode_bitmap_piece(piece, 64, out), std::unexpected(DecodeError::kWrongFirst));
  Bitmap small(4032);
  EXPECT_EQ(decode_bitmap_piece(piece, 0, small), std::unexpected(DecodeError::kBeyondSize));
  piece.push_back(std::byte{0});
  EXPECT_EQ(decode_bitmap_piece(piece, 0, bitmap), std::unexpected(DecodeError::kTrailing));
}

std::vector<Bitmap> one_of_each_form(Random& random) {
  Bitmap pattern(65536);
  for (PageNumber page = 0; page < pattern.size(); page += 3) pattern.set(page);
  return {random_bits(random, 70'001, 0.5),  random_bits(random, 70'001, 0.05),       random_bits(random, 70'001, 0.97),
          random_runs(random, 70'001, 9, 9), random_runs(random, 500'000, 5, 50'000), pattern};
}

TEST(BitmapCodec, EveryTruncationIsRefused) {
  Random random(6);
  for (const Bitmap& bitmap : one_of_each_form(random)) {
    std::vector<std::byte> piece;
    encode_bitmap_piece(bitmap, 0, kSlow, piece);
    Bitmap out(bitmap.size());
    const std::size_t step = std::max<std::size_t>(1, piece.size() / 300);
    for (std::size_t length = 0; length < piece.size(); length += step) {
      // An own allocation of exact length, so that a sanitizer sees a read past its end.
      const std::vector<std::byte> cut(piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(length));
      ASSERT_FALSE(decode_bitmap_piece(cut, 0, out).has_value()) << length;
    }
  }
}

TEST(BitmapCodec, GarbledBytesNeverBreakTheBitmap) {
  Random random(7);
  for (const Bitmap& bitmap : one_of_each_form(random)) {
    std::vector<std::byte> piece;
    encode_bitmap_piece(bitmap, 0, kSlow, piece);
    Bitmap out(bitmap.size());
    for (int round = 0; round < 400; ++round) {
      auto garbled = piece;
      const std::uint64_t reach = round % 2 == 0 ? std::min<std::size_t>(20, garbled.size()) : garbled.size();
      for (std::uint64_t i = 0; i <= below(random, 4); ++i)
        garbled[below(random, reach)] = std::byte(below(random, 256));
      const auto result = decode_bitmap_piece(garbled, 0, out);
      if (!result || *result != out.size()) continue;
      if (out.size() % 64 == 0) continue;
      ASSERT_EQ(out.words().back() >> (out.size() % 64), 0U) << "bits beyond the size";
    }
  }
}

TEST(BitmapCodec, BothKernelsSeeTheSame) {
  if (!bit_kernels_supported(BitKernels::kAvx512)) GTEST_SKIP() << "this CPU lacks the instructions";
  Random random(9);
  for (const double density : {0.0001, 0.01, 0.5, 0.99, 1.0}) {
    for (const std::uint64_t size : std::initializer_list<std::uint64_t>{1, 64, 2047, 2048, 65536, 60'000}) {
      const Bitmap bitmap = random_bits(random, size, density);
      ChunkActivity plain;
      ChunkActivity wide;
      const BitCounts a = look_at_words(bitmap.words(), plain, BitKernels::kPlain);
      const BitCounts b = look_at_words(bitmap.words(), wide, BitKernels::kAvx512);
      EXPECT_EQ(a.ones, bitmap.count());
      EXPECT_EQ(a.ones, b.ones);
      EXPECT_EQ(a.runs, b.runs);
      EXPECT_EQ(plain.nonzero, wide.nonzero);
      EXPECT_EQ(plain.changed, wide.changed);
    }
  }
}

TEST(BitmapCodec, RandomBytesAreHarmless) {
  Random random(8);
  for (int round = 0; round < 20'000; ++round) {
    Bitmap out(100'000);
    std::vector<std::byte> bytes(below(random, 60));
    for (auto& byte : bytes) byte = std::byte(below(random, 256));
    if (bytes.size() > 4) {  // a head that is accepted, so that the rest is read
      bytes[0] = std::byte{0};
      bytes[1] = std::byte{0xa0};
      bytes[2] = std::byte{0x8d};
      bytes[3] = std::byte{0x06};
      bytes[4] &= std::byte{0x87};
    }
    (void)decode_bitmap_piece(bytes, 0, out);
  }
}

}  // namespace
}  // namespace godwit::pages
