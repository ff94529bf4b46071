#include "perf/bitmap_rivals.h"

#include <isa-l/igzip_lib.h>
#include <roaring/roaring.h>

#include <cstring>
#include <memory>

namespace godwit::perf {

namespace {

std::byte* put_varint(std::byte* out, std::uint64_t value) {
  for (; value >= 128; value >>= 7) *out++ = static_cast<std::byte>((value & 127) | 128);
  *out++ = static_cast<std::byte>(value);
  return out;
}

template <class F>
void for_each_set(const pages::Bitmap& bitmap, F&& f) {
  const auto words = bitmap.words();
  for (std::size_t i = 0; i < words.size(); ++i) {
    for (std::uint64_t bits = words[i]; bits != 0; bits &= bits - 1) {
      f(i * 64 + static_cast<std::uint64_t>(std::countr_zero(bits)));
    }
  }
}

/// Room that is written once, so that no time goes into zeroing it.
std::byte* scratch(std::size_t bytes) {
  static std::unique_ptr<std::byte[]> room;
  static std::size_t size = 0;
  if (size < bytes) {
    room = std::make_unique_for_overwrite<std::byte[]>(bytes);
    size = bytes;
  }
  return room.get();
}

void serialize(roaring_bitmap_t* roaring, Bytes& out) {
  roaring_bitmap_run_optimize(roaring);
  out.resize(roaring_bitmap_portable_size_in_bytes(roaring));
  roaring_bitmap_portable_serialize(roaring, reinterpret_cast<char*>(out.data()));
  roaring_bitmap_free(roaring);
}

}  // namespace

void encode_raw(const pages::Bitmap& bitmap, Bytes& out) {
  out.resize(bitmap.words().size_bytes());
  std::memcpy(out.data(), bitmap.words().data(), out.size());
}

void encode_varint_gaps(const pages::Bitmap& bitmap, Bytes& out) {
  std::byte* const begin = scratch(bitmap.size() * 2 + 64);
  std::byte* end = begin;
  std::uint64_t last = 0;
  for_each_set(bitmap, [&](std::uint64_t page) {
    end = put_varint(end, page - last);
    last = page;
  });
  out.assign(begin, end);
}

void encode_varint_runs(const pages::Bitmap& bitmap, Bytes& out) {
  std::byte* const begin = scratch(bitmap.size() * 2 + 64);
  std::byte* end = begin;
  std::uint64_t last = 0;
  bitmap.for_each_run([&](std::uint64_t first, std::uint64_t count) {
    end = put_varint(end, first - last);
    end = put_varint(end, count);
    last = first + count;
  });
  out.assign(begin, end);
}

void encode_roaring(const pages::Bitmap& bitmap, Bytes& out) {
  auto* const indices = reinterpret_cast<std::uint32_t*>(scratch(bitmap.size() * sizeof(std::uint32_t)));
  std::size_t count = 0;
  for_each_set(bitmap, [&](std::uint64_t page) { indices[count++] = static_cast<std::uint32_t>(page); });
  serialize(roaring_bitmap_of_ptr(count, indices), out);
}

void encode_roaring_by_runs(const pages::Bitmap& bitmap, Bytes& out) {
  roaring_bitmap_t* roaring = roaring_bitmap_create();
  bitmap.for_each_run([&](std::uint64_t first, std::uint64_t count) {
    roaring_bitmap_add_range_closed(roaring, static_cast<std::uint32_t>(first),
                                    static_cast<std::uint32_t>(first + count - 1));
  });
  serialize(roaring, out);
}

void encode_igzip(const pages::Bitmap& bitmap, Bytes& out) {
  static const auto level_buffer = std::make_unique<std::uint8_t[]>(ISAL_DEF_LVL1_DEFAULT);
  static const auto stream = std::make_unique<isal_zstream>();
  const auto raw = bitmap.words();
  isal_deflate_stateless_init(stream.get());
  std::byte* const room = scratch(raw.size_bytes() * 2);
  stream->level = 1;
  stream->level_buf = level_buffer.get();
  stream->level_buf_size = ISAL_DEF_LVL1_DEFAULT;
  stream->end_of_stream = 1;
  stream->flush = NO_FLUSH;
  stream->next_in = reinterpret_cast<std::uint8_t*>(const_cast<std::uint64_t*>(raw.data()));
  stream->avail_in = static_cast<std::uint32_t>(raw.size_bytes());
  stream->next_out = reinterpret_cast<std::uint8_t*>(room);
  stream->avail_out = static_cast<std::uint32_t>(raw.size_bytes() * 2);
  isal_deflate_stateless(stream.get());
  out.assign(room, room + stream->total_out);
}

}  // namespace godwit::perf
