#include "dataplane/pages/table_codec.h"

#include <gtest/gtest.h>

#include "tests/unit/pages/random_bits.h"

namespace godwit::pages {
namespace {

constexpr CodecOptions kFast{};
constexpr CodecOptions kSlow{.link_bps = 100'000'000};

std::vector<std::vector<std::byte>> encode(const GenerationTable& table, const CodecOptions& options) {
  std::vector<std::vector<std::byte>> pieces;
  PageNumber at = 0;
  do {
    pieces.emplace_back();
    const PageNumber next = encode_table_piece(table, at, options, pieces.back());
    EXPECT_TRUE(next > at || table.size() == 0);
    EXPECT_LE(pieces.back().size(), options.bytes_max);
    at = next;
  } while (at < table.size());
  return pieces;
}

std::size_t expect_round_trip(const GenerationTable& table, const CodecOptions& options) {
  GenerationTable decoded(table.size(), 0x12345678);
  std::size_t bytes = 0;
  PageNumber at = 0;
  for (const auto& piece : encode(table, options)) {
    bytes += piece.size();
    const auto next = decode_table_piece(piece, at, decoded);
    EXPECT_TRUE(next.has_value()) << to_string(next.error());
    if (!next) return bytes;
    at = *next;
  }
  EXPECT_EQ(at, table.size());
  EXPECT_EQ(decoded, table);
  return bytes;
}

/// As visits leave it: each writes some pages, in runs.
GenerationTable visited(Random& random, std::uint64_t size, int visits, double mean_run, double mean_gap) {
  GenerationTable table(size);
  for (int visit = 1; visit <= visits; ++visit) {
    table.set_written(random_runs(random, size, mean_run, mean_gap), static_cast<Generation>(visit * 3));
  }
  return table;
}

GenerationTable random_entries(Random& random, std::uint64_t size, std::uint64_t distinct) {
  GenerationTable table(size);
  for (PageNumber page = 0; page < size; ++page) {
    table.set(page, static_cast<Generation>(below(random, distinct) * 0x9e3779b1U));
  }
  return table;
}

std::vector<GenerationTable> one_of_each_form(Random& random) {
  std::vector<GenerationTable> tables;
  tables.push_back(GenerationTable(50'000, 7));
  tables.push_back(visited(random, 50'000, 3, 20, 200));
  tables.push_back(visited(random, 50'000, 40, 300, 3000));
  tables.push_back(random_entries(random, 20'000, 100));
  tables.push_back(random_entries(random, 20'000, std::uint64_t{1} << 32));
  return tables;
}

TEST(TableCodec, EveryKindAndSizeComesBack) {
  Random random(1);
  for (const std::uint64_t size : std::initializer_list<std::uint64_t>{0, 1, 2, 63, 64, 1000, 4097, 200'000}) {
    for (const auto& options : {kFast, kSlow}) {
      expect_round_trip(GenerationTable(size, kUnknownGeneration), options);
      expect_round_trip(visited(random, size, 1, 1, 100), options);
      expect_round_trip(visited(random, size, 5, 50, 1000), options);
      expect_round_trip(visited(random, size, 60, 50, 1000), options);
      for (const std::uint64_t distinct : std::initializer_list<std::uint64_t>{2, 16, 17, 255, 1024, 1025, 1'000'000}) {
        expect_round_trip(random_entries(random, size, distinct), options);
      }
    }
  }
}

TEST(TableCodec, OneGenerationOfA64GiBGuestIsAFewBytes) {
  EXPECT_LT(expect_round_trip(GenerationTable(1 << 24, 5), kFast), 20U);
}

TEST(TableCodec, ScatteredWritesCostAboutABitmap) {
  // 1 % of the pages, one at a time: entropy 0.081 bits a page.
  Random random(2);
  GenerationTable table(1 << 22, 4);
  table.set_written(random_bits(random, table.size(), 0.01), 9);
  EXPECT_LT(expect_round_trip(table, kFast), (1 << 22) * 0.081 / 8 * 1.06);
}

TEST(TableCodec, LongRunsCostAFewBytesEach) {
  GenerationTable table(1 << 22);
  for (PageNumber page = 0; page < table.size(); page += 1 << 14)
    table.set_range(page, 1 << 14, static_cast<Generation>(page >> 14));
  EXPECT_LT(expect_round_trip(table, kFast), 256 * 8U);
}

TEST(TableCodec, PackedIsNearTheEntropyOfManyGenerations) {
  Random random(3);
  EXPECT_LT(expect_round_trip(random_entries(random, 1 << 18, 128), kFast), (1 << 18) * 7.0 / 8 * 1.25);
}

TEST(TableCodec, NeverMuchLargerThanRaw) {
  Random random(4);
  EXPECT_LT(expect_round_trip(random_entries(random, 1 << 18, std::uint64_t{1} << 32), kFast), (1 << 20) + 1000U);
}

TEST(TableCodec, PiecesFitAndEachDecodesOnItsOwn) {
  Random random(5);
  const GenerationTable table = random_entries(random, 100'000, std::uint64_t{1} << 32);
  const auto pieces = encode(table, {.link_bps = 0, .bytes_max = kPieceBytesMin});
  EXPECT_GT(pieces.size(), 10U);
  GenerationTable decoded(table.size());
  std::vector<PageNumber> firsts{0};
  for (const auto& piece : pieces) firsts.push_back(*decode_table_piece(piece, firsts.back(), decoded));
  GenerationTable backwards(table.size());
  for (std::size_t i = pieces.size(); i-- > 0;) {
    ASSERT_TRUE(decode_table_piece(pieces[i], firsts[i], backwards).has_value());
  }
  EXPECT_EQ(backwards, table);
}

TEST(TableCodec, RefusesAPieceThatIsNotTheNext) {
  GenerationTable table(100, 1);
  std::vector<std::byte> piece;
  encode_table_piece(table, 0, kFast, piece);
  GenerationTable larger(200);
  EXPECT_EQ(decode_table_piece(piece, 100, larger), std::unexpected(DecodeError::kWrongFirst));
  GenerationTable smaller(99);
  EXPECT_EQ(decode_table_piece(piece, 0, smaller), std::unexpected(DecodeError::kBeyondSize));
  piece.push_back(std::byte{0});
  EXPECT_EQ(decode_table_piece(piece, 0, table), std::unexpected(DecodeError::kTrailing));
}

TEST(TableCodec, EveryTruncationIsRefused) {
  Random random(6);
  for (const GenerationTable& table : one_of_each_form(random)) {
    for (const auto& options : {kFast, kSlow}) {
      std::vector<std::byte> piece;
      encode_table_piece(table, 0, options, piece);
      GenerationTable out(table.size());
      const std::size_t step = std::max<std::size_t>(1, piece.size() / 200);
      for (std::size_t length = 0; length < piece.size(); length += step) {
        const std::vector<std::byte> cut(piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(length));
        ASSERT_FALSE(decode_table_piece(cut, 0, out).has_value()) << length;
      }
    }
  }
}

TEST(TableCodec, GarbledBytesStayWithinTheTable) {
  Random random(7);
  for (const GenerationTable& table : one_of_each_form(random)) {
    for (const auto& options : {kFast, kSlow}) {
      std::vector<std::byte> piece;
      encode_table_piece(table, 0, options, piece);
      GenerationTable out(table.size());
      for (int round = 0; round < 300; ++round) {
        auto garbled = piece;
        const std::uint64_t reach = round % 2 == 0 ? std::min<std::size_t>(40, garbled.size()) : garbled.size();
        for (std::uint64_t i = 0; i <= below(random, 4); ++i) {
          garbled[below(random, reach)] = std::byte(below(random, 256));
        }
        const auto result = decode_table_piece(garbled, 0, out);
        if (result) {
          ASSERT_LE(*result, out.size());
        }
        for (std::uint64_t i = out.size(); i % 64 != 0; ++i) ASSERT_EQ(out.entries().data()[i], 0U) << "padding";
      }
    }
  }
}

TEST(TableCodec, RefusesLayersInMorePartsThanAnEncoderMakes) {
  std::vector<std::byte> piece;
  for (const unsigned byte :
       std::initializer_list<unsigned>{0x00, 0x80, 0x80, 0x04,     // first 0, 65536 pages
                                       0x02, 0x80, 0x80, 0x04,     // layers, 65536 entries
                                       0x02, 0x01, 0x02, 0x82}) {  // two generations, 1 and 2; one raw chunk
    piece.push_back(static_cast<std::byte>(byte));
  }
  piece.resize(piece.size() + 8192, std::byte{0x55});
  GenerationTable out(65536);
  EXPECT_EQ(decode_table_piece(piece, 0, out), std::unexpected(DecodeError::kBadCount));
  std::fill(piece.end() - 8192, piece.end(), std::byte{0});
  EXPECT_EQ(decode_table_piece(piece, 0, out), PageNumber{65536});
  EXPECT_EQ(out.count(2), 65536U);
}

}  // namespace
}  // namespace godwit::pages
