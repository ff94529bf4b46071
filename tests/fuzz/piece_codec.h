#pragma once
// What the targets bitmap and table have in common: pieces of a value that has an entry a page. Input: one byte (bit 0:
// decode or round trip; bits 1, 2: a slow link, small pieces), entries (size_below), u32 first page, then what the
// target's own functions read. A Codec names them:
//   Value, with size() and ==; kSizeMax
//   std::uint64_t encode(const Value&, first, options, piece): the first page of the next piece
//   std::expected<page, …> decode(piece, first, Value&)
//   void check_decoding(piece, first, size): beside the naive decoder
//   Value draw(Input&, size), Value blank(size): what a round trip carries, and decodes into
// Pure. A broken property ends the process, as everywhere in fuzz.

#include "dataplane/pages/codec.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {

/// Slow enough for deflate to pay.
inline constexpr std::uint64_t kSlowLinkBps = pages::kDeflateBelowBps / 10;

/// What is encoded, into pieces of any size, decodes to the same.
template <class Codec>
void round_trip(const typename Codec::Value& value, const pages::CodecOptions& options) {
  typename Codec::Value out = Codec::blank(value.size());
  std::vector<std::byte> piece;
  pages::PageNumber at = 0;
  do {
    const pages::PageNumber next = Codec::encode(value, at, options, piece);
    FUZZ_CHECK(piece.size() <= options.bytes_max && (next > at || value.size() == 0));
    const auto decoded = Codec::decode(piece, at, out);
    FUZZ_CHECK(decoded && *decoded == next);
    at = next;
  } while (at < value.size());
  FUZZ_CHECK(out == value);
}

template <class Codec>
void run_codec(Bytes bytes) {
  Input input(bytes);
  const auto mode = input.number<std::uint8_t>();
  const std::uint64_t size = input.size_below(Codec::kSizeMax);
  const std::uint64_t first = input.below(static_cast<std::uint32_t>(size) + 1);
  if ((mode & 1) == 0) {
    Codec::check_decoding(input.rest(), first, size);
    return;
  }
  pages::CodecOptions options{.link_bps = (mode & 2) != 0 ? kSlowLinkBps : 0};
  if ((mode & 4) != 0) {
    options.bytes_max = pages::kPieceBytesMin;
  }
  round_trip<Codec>(Codec::draw(input, size), options);
}

/// An input up to what the target's own functions read: `size` entries, from page 0.
template <class Codec>
Output head(bool encode, std::uint32_t size) {
  Output out;
  out.number<std::uint8_t>(encode ? 1 : 0).number(static_cast<std::uint8_t>(std::bit_width(Codec::kSizeMax - 1)));
  out.number(size).number(std::uint32_t{0});
  return out;
}

template <class Codec>
void add_decode_seeds(std::vector<Seed>& out, const std::string& name, const typename Codec::Value& value) {
  for (const std::uint64_t link_bps : {std::uint64_t{0}, kSlowLinkBps}) {
    std::vector<std::byte> piece;
    Codec::encode(value, 0, {.link_bps = link_bps}, piece);
    out.push_back({name + (link_bps == 0 ? "" : "-deflated"),
                   head<Codec>(false, static_cast<std::uint32_t>(value.size())).bytes(piece).take()});
  }
}

}  // namespace godwit::fuzz
