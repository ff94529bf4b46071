// Generation tables as pieces. Input: one byte (bit 0: which of the two), entries (size_below), u32 first page, then
//   a piece to decode: the fast decoder and the naive one agree on yes or no, on every entry, and nothing else is
//   touched;
//   or runs of a table (generation u32, length u16; length 0: noise): what is encoded, at any link speed and into
//   pieces of any size, decodes to the same.

#include "dataplane/pages/table_codec.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/naive_codec.h"
#include "tests/fuzz/piece_codec.h"

namespace godwit::fuzz {
namespace {

constexpr std::uint32_t kEntriesMax = 40'000;
constexpr pages::Generation kUntouched = 0xabcdef01;

void check_decoding(Bytes piece, std::uint64_t first, std::uint64_t size) {
  pages::GenerationTable out(size, kUntouched);
  const auto end = pages::decode_table_piece(piece, first, out);
  const auto naive = naive_table_piece(piece, first, size);
  FUZZ_CHECK(end.has_value() == naive.has_value());
  if (!end) {
    FUZZ_CHECK(!pages::to_string(end.error()).empty());
  } else {
    FUZZ_CHECK(*end == naive->end);
    FUZZ_CHECK(std::ranges::equal(out.entries().subspan(first, *end - first), naive->entries));
  }
  const std::uint64_t touched_end = end ? *end : size;
  for (std::uint64_t page = 0; page < size; ++page) {
    FUZZ_CHECK((page >= first && page < touched_end) || out.get(page) == kUntouched);
  }
}

pages::GenerationTable draw(Input& input, std::uint64_t size) {
  pages::GenerationTable table(size);
  std::uint64_t at = 0;
  while (!input.empty() && at < size) {
    const auto generation = input.number<std::uint32_t>();
    const std::uint64_t length = input.number<std::uint16_t>();
    if (length > 0) {
      table.set_range(at, std::min(length, size - at), generation);
      at += length;
      continue;
    }
    std::uint64_t noise = generation | 1;
    for (std::uint64_t end = std::min<std::uint64_t>(size, at + 3000); at < end; ++at) {
      noise = noise * 6364136223846793005 + 1442695040888963407;
      table.set(at, static_cast<pages::Generation>(noise >> (32 + generation % 32)));
    }
  }
  return table;
}

struct TableCodec {
  using Value = pages::GenerationTable;
  static constexpr std::uint32_t kSizeMax = kEntriesMax;
  static constexpr auto encode = &pages::encode_table_piece;
  static constexpr auto decode = &pages::decode_table_piece;
  static constexpr auto check_decoding = &fuzz::check_decoding;
  static constexpr auto draw = &fuzz::draw;
  static Value blank(std::uint64_t size) { return pages::GenerationTable(size, kUntouched); }
};

}  // namespace

void run(Bytes bytes) { run_codec<TableCodec>(bytes); }

std::vector<Seed> seeds() {
  std::vector<Seed> out;
  pages::GenerationTable table(1000, 7);
  add_decode_seeds<TableCodec>(out, "constant", table);
  table.set_range(10, 200, 9);
  table.set_range(500, 1, pages::kUnknownGeneration);
  add_decode_seeds<TableCodec>(out, "runs", table);
  for (std::uint64_t page = 0; page < table.size(); ++page) {
    table.set(page, static_cast<pages::Generation>(page % 3 == 0 ? 5 : 6 + page % 2));
  }
  add_decode_seeds<TableCodec>(out, "layers", table);
  for (std::uint64_t page = 0; page < table.size(); ++page) {
    table.set(page, static_cast<pages::Generation>(page * page % 97));
  }
  add_decode_seeds<TableCodec>(out, "packed", table);
  for (std::uint64_t page = 0; page < table.size(); ++page) {
    table.set(page, static_cast<pages::Generation>(page * 2654435761));
  }
  add_decode_seeds<TableCodec>(out, "raw", table);
  Output drawn = head<TableCodec>(true, 39000);
  drawn.number<std::uint32_t>(3).number<std::uint16_t>(20000).number<std::uint32_t>(9).number<std::uint16_t>(0);
  drawn.number<std::uint32_t>(30).number<std::uint16_t>(0).number<std::uint32_t>(4).number<std::uint16_t>(40000);
  out.push_back({"drawn", drawn.take()});
  return out;
}

}  // namespace godwit::fuzz
