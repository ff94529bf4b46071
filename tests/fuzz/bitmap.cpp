// Bitmaps as pieces. Input: one byte (bit 0: which of the two), bits (size_below), u32 first page, then
//   a piece to decode: the fast decoder and the naive one agree on yes or no, on every bit, and nothing else is
//   touched; or runs of a bitmap (gap, length as u16, or u16 0: random words): what is encoded, at any link speed and
//   into pieces of any size, decodes to the same.

#include "dataplane/pages/bitmap_codec.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/naive_codec.h"
#include "tests/fuzz/piece_codec.h"

namespace godwit::fuzz {
namespace {

constexpr std::uint32_t kBitsMax = 2 * 65536 + 9000;

/// A pattern that no decoder leaves by chance.
pages::Bitmap patterned(std::uint64_t size) {
  pages::Bitmap bitmap(size);
  for (std::uint64_t page = 0; page < size; page += 3) {
    bitmap.set(page);
  }
  return bitmap;
}

void check_padding(const pages::Bitmap& bitmap) {
  if (bitmap.size() % 64 != 0) {
    FUZZ_CHECK(bitmap.words().back() >> (bitmap.size() % 64) == 0);
  }
}

void check_decoding(Bytes piece, std::uint64_t first, std::uint64_t size) {
  const pages::Bitmap before = patterned(size);
  pages::Bitmap out = before;
  const auto end = pages::decode_bitmap_piece(piece, first, out);
  const auto naive = naive_bitmap_piece(piece, first, size);
  FUZZ_CHECK(end.has_value() == naive.has_value());
  if (!end) {
    FUZZ_CHECK(!pages::to_string(end.error()).empty());
    for (std::uint64_t page = 0; page < first; ++page) {
      FUZZ_CHECK(out.test(page) == before.test(page));
    }
    return;
  }
  check_padding(out);
  FUZZ_CHECK(*end == naive->end);
  for (std::uint64_t page = 0; page < size; ++page) {
    const bool inside = page >= first && page < *end;
    FUZZ_CHECK(out.test(page) == (inside ? static_cast<bool>(naive->bits[page - first]) : before.test(page)));
  }
}

pages::Bitmap draw(Input& input, std::uint64_t size) {
  pages::Bitmap bitmap(size);
  std::uint64_t at = 0;
  while (!input.empty() && at < size) {
    at += input.number<std::uint16_t>();
    const std::uint64_t length = input.number<std::uint16_t>();
    if (at >= size) {
      break;
    }
    if (length > 0) {
      bitmap.set_range(at, std::min(length, size - at));
      at += length;
      continue;
    }
    std::uint64_t noise = input.number<std::uint32_t>() | 1;
    for (std::uint64_t end = std::min(size, at + 4096); at < end; ++at) {
      noise = noise * 6364136223846793005 + 1442695040888963407;
      if ((noise >> 60 & 3) == 0) {
        bitmap.set(at);
      }
    }
  }
  return bitmap;
}

struct BitmapCodec {
  using Value = pages::Bitmap;
  static constexpr std::uint32_t kSizeMax = kBitsMax;
  static constexpr auto encode = &pages::encode_bitmap_piece;
  static constexpr auto decode = &pages::decode_bitmap_piece;
  static constexpr auto check_decoding = &fuzz::check_decoding;
  static constexpr auto draw = &fuzz::draw;
  static Value blank(std::uint64_t size) { return patterned(size); }
};

}  // namespace

void run(Bytes bytes) { run_codec<BitmapCodec>(bytes); }

std::vector<Seed> seeds() {
  std::vector<Seed> out;
  add_decode_seeds<BitmapCodec>(out, "pattern", patterned(700));
  pages::Bitmap bitmap(70000);
  add_decode_seeds<BitmapCodec>(out, "clear", bitmap);
  bitmap.set_range(100, 50);
  bitmap.set(69999);
  add_decode_seeds<BitmapCodec>(out, "runs", bitmap);
  bitmap.set_all();
  bitmap.clear(5);
  add_decode_seeds<BitmapCodec>(out, "zeros", bitmap);
  Output drawn = head<BitmapCodec>(true, 140000);
  drawn.number<std::uint16_t>(10).number<std::uint16_t>(500).number<std::uint16_t>(60000).number<std::uint16_t>(0);
  drawn.number<std::uint32_t>(99).number<std::uint16_t>(1).number<std::uint16_t>(65535);
  out.push_back({"drawn", drawn.take()});
  return out;
}

}  // namespace godwit::fuzz
