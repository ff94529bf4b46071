#pragma once
// What a packet's body holds: [ack block] [prefix, content]. Pure; any thread; little-endian; reserved bytes are zero
// and are checked. Writers are for our own use (GW_ASSERT on room). Parsers take bytes whose tag has been verified, and
// still trust nothing: a body that breaks a rule is a peer's bug and is refused whole, with the rule's name.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>

#include "dataplane/wire/packet.h"

namespace godwit::wire {

inline constexpr std::size_t kAckWordsMax = 16;
inline constexpr std::size_t kAckFixedBytes = 24;
inline constexpr std::size_t kPrefixBytes = 8;
inline constexpr std::size_t kPageDescBytes = 24;
inline constexpr std::size_t kPagesPerPacketMax = 2;
/// Where pages begin in a packet of as many as there may be, without an ack block.
inline constexpr std::size_t kPagesAt = kHeaderBytes + kPrefixBytes + kPagesPerPacketMax * kPageDescBytes;
inline constexpr std::size_t kZeroRunBytes = 24;
inline constexpr std::size_t kZeroRunsPerPacketMax = 32;
inline constexpr std::size_t kMessageOffsetBytes = 8;
inline constexpr std::uint64_t kPageNumberLimit = std::uint64_t{1} << 52;
inline constexpr std::uint64_t kStreamOffsetLimit = std::uint64_t{1} << 62;

/// What has been received of the other direction of the same lane.
struct AckBlock {
  std::uint64_t largest = 0;       // largest packet number received
  std::uint64_t floor = 0;         // every one below is received or was given up by its sender; at most largest + 1
  std::uint64_t edge = 0;          // credit: the largest packet number that the peer may use; at least largest
  std::uint32_t ack_delay_us = 0;  // since `largest` was received, or may have been
  /// Word i covers the numbers 64 * (largest / 64 - i) .. + 63; bit b is received. No bit above `largest` is set.
  std::uint8_t word_count = 0;
  std::array<std::uint64_t, kAckWordsMax> words{};
};
[[nodiscard]] constexpr std::size_t ack_block_bytes(std::size_t word_count) { return kAckFixedBytes + 8 * word_count; }

/// The page bytes follow the descriptors, in their order.
struct PageDesc {
  std::uint64_t page = 0;
  std::uint32_t round = 0;
  std::uint16_t offset = 0;
  std::uint16_t length = 0;
};

struct ZeroRun {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  std::uint32_t round = 0;
};

/// In front of the content of every ack-eliciting packet.
struct Prefix {
  std::uint8_t count = 0;    // page descriptors or zero runs; else 0
  std::uint16_t length = 0;  // message bytes, a probe's padding of zeros; else 0
  std::uint64_t floor =
      0;  // the sender has given up, or knows received, every packet number below; at most its own number
};

// ---- writers: at the front of `out`; return the bytes written ----
std::size_t write_ack_block(const AckBlock& ack, std::span<std::byte> out);
std::size_t write_prefix(const Prefix& prefix, std::uint64_t packet_number, std::span<std::byte> out);
std::size_t write_page_desc(const PageDesc& desc, std::span<std::byte> out);
std::size_t write_zero_run(const ZeroRun& run, std::span<std::byte> out);
std::size_t write_message_offset(std::uint64_t offset, std::span<std::byte> out);

// ---- parsers ----
enum class BadBody : std::uint8_t {
  kNone,
  kTruncated,
  kTrailing,
  kReserved,
  kAckRange,
  kAckWords,
  kFloor,
  kItemCount,
  kLength,
  kPageRange,
  kFragment,
  kRunRange,
  kStreamRange,
};
[[nodiscard]] std::string_view to_string(BadBody bad);

/// A body, valid as a whole. The spans point into it.
struct Body {
  bool has_ack = false;
  AckBlock ack;
  std::uint64_t floor = 0;  // valid for ack-eliciting types
  std::uint8_t count = 0;   // of pages or runs
  std::array<PageDesc, kPagesPerPacketMax> pages{};
  std::array<std::span<const std::byte>, kPagesPerPacketMax> page_bytes{};
  std::span<const std::byte> run_bytes;  // `count` encoded runs, each validated: read with zero_run()
  std::uint64_t message_offset = 0;
  std::span<const std::byte> message_bytes;
  std::uint16_t padding_bytes = 0;  // of a probe: zeros
};

[[nodiscard]] BadBody parse_body(const PacketHeader& header, std::span<const std::byte> bytes, Body& body);
/// The i-th run of a parsed body.
[[nodiscard]] ZeroRun zero_run(const Body& body, std::size_t i);

}  // namespace godwit::wire
