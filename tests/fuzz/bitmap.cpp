// Bitmaps as pieces. Input: one byte (bit 0: which of the two), bits (size_below), u32 first page, then
//   a piece to decode: the fast decoder and the naive one agree on yes or no, on every bit, and nothing else is
//   touched; or runs of a bitmap (gap, length as u16, or u16 0: random words): what is encoded, at any link speed and
//   into pieces of any size, decodes to the same.

#include "dataplane/pages/bitmap_codec.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/naive_codec.h"

namespace godwit::fuzz {
namespace {

constexpr std::uint32_t kBitsMax = 2 * 65536 + 9000;
constexpr std::uint8_t kAnySize = std::bit_width(kBitsMax - 1);  // for size_below()

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

void decode(Bytes piece, std::uint64_t first, std::uint64_t size) {
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

void round_trip(const pages::Bitmap& bitmap, const pages::CodecOptions& options) {
  pages::Bitmap out = patterned(bitmap.size());
  std::vector<std::byte> piece;
  pages::PageNumber at = 0;
  do {
    const pages::PageNumber next = pages::encode_bitmap_piece(bitmap, at, options, piece);
    FUZZ_CHECK(piece.size() <= options.bytes_max && (next > at || bitmap.size() == 0));
    const auto decoded = pages::decode_bitmap_piece(piece, at, out);
    FUZZ_CHECK(decoded && *decoded == next);
    at = next;
  } while (at < bitmap.size());
  FUZZ_CHECK(out == bitmap);
}

Output head(bool encode, std::uint32_t size, std::uint32_t first) {
  Output out;
  out.number<std::uint8_t>(encode ? 1 : 0).number<std::uint8_t>(kAnySize).number(size).number(first);
  return out;
}

void add_decode_seeds(std::vector<Seed>& out, const std::string& name, const pages::Bitmap& bitmap) {
  for (const std::uint64_t link_bps : {std::uint64_t{0}, pages::kDeflateBelowBps / 10}) {
    std::vector<std::byte> piece;
    pages::encode_bitmap_piece(bitmap, 0, {.link_bps = link_bps}, piece);
    out.push_back({name + (link_bps == 0 ? "" : "-deflated"),
                   head(false, static_cast<std::uint32_t>(bitmap.size()), 0).bytes(piece).take()});
  }
}

}  // namespace

void run(Bytes bytes) {
  Input input(bytes);
  const auto mode = input.number<std::uint8_t>();
  const std::uint64_t size = input.size_below(kBitsMax);
  const std::uint64_t first = input.below(static_cast<std::uint32_t>(size) + 1);
  if ((mode & 1) == 0) {
    decode(input.rest(), first, size);
    return;
  }
  pages::CodecOptions options{.link_bps = (mode & 2) != 0 ? pages::kDeflateBelowBps / 10 : 0};
  if ((mode & 4) != 0) {
    options.bytes_max = pages::kPieceBytesMin;
  }
  round_trip(draw(input, size), options);
}

std::vector<Seed> seeds() {
  std::vector<Seed> out;
  add_decode_seeds(out, "pattern", patterned(700));
  pages::Bitmap bitmap(70000);
  add_decode_seeds(out, "clear", bitmap);
  bitmap.set_range(100, 50);
  bitmap.set(69999);
  add_decode_seeds(out, "runs", bitmap);
  bitmap.set_all();
  bitmap.clear(5);
  add_decode_seeds(out, "zeros", bitmap);
  Output drawn = head(true, 140000, 0);
  drawn.number<std::uint16_t>(10).number<std::uint16_t>(500).number<std::uint16_t>(60000).number<std::uint16_t>(0);
  drawn.number<std::uint32_t>(99).number<std::uint16_t>(1).number<std::uint16_t>(65535);
  out.push_back({"drawn", drawn.take()});
  return out;
}

}  // namespace godwit::fuzz
