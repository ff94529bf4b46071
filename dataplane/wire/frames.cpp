#include "dataplane/wire/frames.h"

#include <algorithm>

#include "dataplane/pages/page.h"
#include "dataplane/wire/bytes.h"

namespace godwit::wire {

namespace {

using Bytes = std::span<const std::byte>;

// Ack block: largest u64, floor delta u32, edge delta u32, delay u32, words u8, reserved u8[3].
static_assert(8 + 4 + 4 + 4 + 1 + 3 == kAckFixedBytes);
// Prefix: count u8, reserved u8, length u16, floor delta u32.
static_assert(1 + 1 + 2 + 4 == kPrefixBytes);
// Page descriptor: round u32, offset u16, length u16, page u64, reserved u64.
static_assert(4 + 2 + 2 + 8 + 8 == kPageDescBytes);
// Zero run: first u64, count u64, round u32, reserved u32.
static_assert(8 + 8 + 4 + 4 == kZeroRunBytes);
// A full packet of runs, with the largest ack block, fits the smallest datagram.
static_assert(kHeaderBytes + ack_block_bytes(kAckWordsMax) + kPrefixBytes + kZeroRunsPerPacketMax * kZeroRunBytes +
                  kTagBytes <=
              kDatagramBytesMinimum);

std::uint32_t saturate(std::uint64_t value) {
  return value > UINT32_MAX ? UINT32_MAX : static_cast<std::uint32_t>(value);
}

BadBody parse_ack(Bytes& bytes, AckBlock& ack) {
  if (bytes.size() < kAckFixedBytes) {
    return BadBody::kTruncated;
  }
  ack.largest = load_le<std::uint64_t>(bytes, 0);
  const auto floor_delta = load_le<std::uint32_t>(bytes, 8);
  const auto edge_delta = load_le<std::uint32_t>(bytes, 12);
  ack.ack_delay_us = load_le<std::uint32_t>(bytes, 16);
  ack.word_count = load_le<std::uint8_t>(bytes, 20);
  if ((load_le<std::uint32_t>(bytes, 20) & 0xffffff00U) != 0) {
    return BadBody::kReserved;
  }
  if (ack.largest >= kStreamOffsetLimit || floor_delta > ack.largest + 1) {
    return BadBody::kAckRange;
  }
  ack.floor = ack.largest + 1 - floor_delta;
  ack.edge = ack.largest + edge_delta;
  if (ack.word_count > kAckWordsMax || ack.word_count > ack.largest / 64 + 1) {
    return BadBody::kAckWords;
  }
  if (bytes.size() < ack_block_bytes(ack.word_count)) {
    return BadBody::kTruncated;
  }
  for (std::size_t i = 0; i < ack.word_count; ++i) {
    ack.words[i] = load_le<std::uint64_t>(bytes, kAckFixedBytes + 8 * i);
  }
  const std::uint64_t above = ack.largest % 64 == 63 ? 0 : ~std::uint64_t{0} << (ack.largest % 64 + 1);
  if (ack.word_count > 0 && (ack.words[0] & above) != 0) {
    return BadBody::kAckWords;
  }
  bytes = bytes.subspan(ack_block_bytes(ack.word_count));
  return BadBody::kNone;
}

BadBody parse_page_desc(Bytes bytes, bool alone, PageDesc& desc) {
  const auto page = load_le<std::uint64_t>(bytes, 8);
  const auto offset = load_le<std::uint16_t>(bytes, 4);
  const auto length = load_le<std::uint16_t>(bytes, 6);
  desc = {.page = page, .round = load_le<std::uint32_t>(bytes, 0), .offset = offset, .length = length};
  if (load_le<std::uint64_t>(bytes, 16) != 0) {
    return BadBody::kReserved;
  }
  if (page >= kPageNumberLimit) {
    return BadBody::kPageRange;
  }
  const bool whole = offset == 0 && length == pages::kPageSize;
  const bool inside = length > 0 && offset + std::size_t{length} <= pages::kPageSize;
  // A fragment travels alone.
  return whole || (alone && inside) ? BadBody::kNone : BadBody::kFragment;
}

BadBody parse_pages(Bytes bytes, Body& body) {
  if (body.count < 1 || body.count > kPagesPerPacketMax) {
    return BadBody::kItemCount;
  }
  if (bytes.size() < body.count * kPageDescBytes) {
    return BadBody::kTruncated;
  }
  Bytes payload = bytes.subspan(body.count * kPageDescBytes);
  for (std::size_t i = 0; i < body.count; ++i) {
    PageDesc& desc = body.pages[i];
    const BadBody bad = parse_page_desc(bytes.subspan(i * kPageDescBytes, kPageDescBytes), body.count == 1, desc);
    if (bad != BadBody::kNone) {
      return bad;
    }
    if (payload.size() < desc.length) {
      return BadBody::kTruncated;
    }
    body.page_bytes[i] = payload.first(desc.length);
    payload = payload.subspan(desc.length);
  }
  return payload.empty() ? BadBody::kNone : BadBody::kTrailing;
}

ZeroRun load_zero_run(Bytes bytes) {
  return {.first = load_le<std::uint64_t>(bytes, 0),
          .count = load_le<std::uint64_t>(bytes, 8),
          .round = load_le<std::uint32_t>(bytes, 16)};
}

BadBody parse_zero_runs(Bytes bytes, Body& body) {
  if (body.count < 1 || body.count > kZeroRunsPerPacketMax) {
    return BadBody::kItemCount;
  }
  if (bytes.size() != body.count * kZeroRunBytes) {
    return bytes.size() < body.count * kZeroRunBytes ? BadBody::kTruncated : BadBody::kTrailing;
  }
  for (std::size_t i = 0; i < body.count; ++i) {
    const Bytes at = bytes.subspan(i * kZeroRunBytes, kZeroRunBytes);
    const ZeroRun run = load_zero_run(at);
    if (load_le<std::uint32_t>(at, 20) != 0) {
      return BadBody::kReserved;
    }
    if (run.count == 0 || run.first >= kPageNumberLimit || run.count > kPageNumberLimit - run.first) {
      return BadBody::kRunRange;
    }
  }
  body.run_bytes = bytes;
  return BadBody::kNone;
}

BadBody parse_padding(Bytes bytes, std::uint16_t length, Body& body) {
  body.padding_bytes = length;
  if (bytes.size() != length) {
    return bytes.size() < length ? BadBody::kTruncated : BadBody::kTrailing;
  }
  const bool zero = std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
  return zero ? BadBody::kNone : BadBody::kReserved;
}

BadBody parse_message(Bytes bytes, std::uint16_t length, Body& body) {
  if (bytes.size() < kMessageOffsetBytes) {
    return BadBody::kTruncated;
  }
  body.message_offset = load_le<std::uint64_t>(bytes, 0);
  body.message_bytes = bytes.subspan(kMessageOffsetBytes);
  if (body.message_bytes.size() != length) {
    return body.message_bytes.size() < length ? BadBody::kTruncated : BadBody::kTrailing;
  }
  if (length == 0) {
    return BadBody::kLength;
  }
  return body.message_offset < kStreamOffsetLimit ? BadBody::kNone : BadBody::kStreamRange;
}

}  // namespace

std::string_view to_string(BadBody bad) {
  switch (bad) {
    case BadBody::kNone:
      return "valid";
    case BadBody::kTruncated:
      return "shorter than its fields say";
    case BadBody::kTrailing:
      return "bytes after the content";
    case BadBody::kReserved:
      return "reserved bytes not zero";
    case BadBody::kAckRange:
      return "ack floor above the largest number";
    case BadBody::kAckWords:
      return "ack words out of range";
    case BadBody::kFloor:
      return "floor above the packet number";
    case BadBody::kItemCount:
      return "count out of range";
    case BadBody::kLength:
      return "length out of range";
    case BadBody::kPageRange:
      return "page number out of range";
    case BadBody::kFragment:
      return "fragment outside its page, or not alone";
    case BadBody::kRunRange:
      return "zero run empty or out of range";
    case BadBody::kStreamRange:
      return "message offset out of range";
  }
  return "?";
}

std::size_t write_ack_block(const AckBlock& ack, std::span<std::byte> out) {
  GW_ASSERT(ack.word_count <= kAckWordsMax && ack.floor <= ack.largest + 1 && ack.edge >= ack.largest);
  const std::uint64_t floor_delta = ack.largest + 1 - ack.floor;
  GW_ASSERT(floor_delta <= UINT32_MAX);
  store_le<std::uint64_t>(out, 0, ack.largest);
  store_le<std::uint32_t>(out, 8, static_cast<std::uint32_t>(floor_delta));
  store_le<std::uint32_t>(out, 12, saturate(ack.edge - ack.largest));
  store_le<std::uint32_t>(out, 16, ack.ack_delay_us);
  store_le<std::uint32_t>(out, 20, ack.word_count);
  for (std::size_t i = 0; i < ack.word_count; ++i) {
    store_le<std::uint64_t>(out, kAckFixedBytes + 8 * i, ack.words[i]);
  }
  return ack_block_bytes(ack.word_count);
}

std::size_t write_prefix(const Prefix& prefix, std::uint64_t packet_number, std::span<std::byte> out) {
  GW_ASSERT(prefix.floor <= packet_number && packet_number - prefix.floor <= UINT32_MAX);
  store_le<std::uint8_t>(out, 0, prefix.count);
  store_le<std::uint8_t>(out, 1, 0);
  store_le<std::uint16_t>(out, 2, prefix.length);
  store_le<std::uint32_t>(out, 4, static_cast<std::uint32_t>(packet_number - prefix.floor));
  return kPrefixBytes;
}

std::size_t write_page_desc(const PageDesc& desc, std::span<std::byte> out) {
  store_le<std::uint32_t>(out, 0, desc.round);
  store_le<std::uint16_t>(out, 4, desc.offset);
  store_le<std::uint16_t>(out, 6, desc.length);
  store_le<std::uint64_t>(out, 8, desc.page);
  store_le<std::uint64_t>(out, 16, 0);
  return kPageDescBytes;
}

std::size_t write_zero_run(const ZeroRun& run, std::span<std::byte> out) {
  store_le<std::uint64_t>(out, 0, run.first);
  store_le<std::uint64_t>(out, 8, run.count);
  store_le<std::uint32_t>(out, 16, run.round);
  store_le<std::uint32_t>(out, 20, 0);
  return kZeroRunBytes;
}

std::size_t write_message_offset(std::uint64_t offset, std::span<std::byte> out) {
  store_le<std::uint64_t>(out, 0, offset);
  return kMessageOffsetBytes;
}

BadBody parse_body(const PacketHeader& header, Bytes bytes, Body& body) {
  body.has_ack = (header.flags & kFlagAckBlock) != 0;
  body.count = 0;
  if (body.has_ack) {
    if (const BadBody bad = parse_ack(bytes, body.ack); bad != BadBody::kNone) {
      return bad;
    }
  }
  if (header.type == PacketType::kAck) {
    return bytes.empty() ? BadBody::kNone : BadBody::kTrailing;
  }
  if (bytes.size() < kPrefixBytes) {
    return BadBody::kTruncated;
  }
  body.count = load_le<std::uint8_t>(bytes, 0);
  const auto length = load_le<std::uint16_t>(bytes, 2);
  const auto floor_delta = load_le<std::uint32_t>(bytes, 4);
  if (load_le<std::uint8_t>(bytes, 1) != 0) {
    return BadBody::kReserved;
  }
  if (floor_delta > header.packet_number) {
    return BadBody::kFloor;
  }
  body.floor = header.packet_number - floor_delta;
  bytes = bytes.subspan(kPrefixBytes);
  const bool has_count = header.type == PacketType::kPages || header.type == PacketType::kZeroRuns;
  if (!has_count && body.count != 0) {
    return BadBody::kItemCount;
  }
  if (has_count && length != 0) {
    return BadBody::kLength;
  }
  switch (header.type) {
    case PacketType::kPages:
      return parse_pages(bytes, body);
    case PacketType::kZeroRuns:
      return parse_zero_runs(bytes, body);
    case PacketType::kMessage:
      return parse_message(bytes, length, body);
    case PacketType::kProbe:
      return parse_padding(bytes, length, body);
    case PacketType::kAck:
      break;
  }
  return BadBody::kNone;
}

ZeroRun zero_run(const Body& body, std::size_t i) {
  GW_ASSERT(i < body.count);
  return load_zero_run(body.run_bytes.subspan(i * kZeroRunBytes, kZeroRunBytes));
}

}  // namespace godwit::wire
