#pragma once
// The outer shape of a godwit packet, one UDP payload: header (clear) | body (sealed) | tag. Pure; any thread;
// little-endian. Input is hostile: parse_packet() needs no key and changes nothing; after it the header's fields are in
// range, and the body is still only bytes: verify the tag before reading it with frames.h.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>

namespace godwit::wire {

inline constexpr std::uint8_t kProtocolVersion = 2;
inline constexpr std::size_t kHeaderBytes = 16;
inline constexpr std::size_t kTagBytes = 16;
/// IP packets of 1280 to 9216 bytes: the smallest of IPv6 over IPv6 headers, and the largest over IPv4.
inline constexpr std::size_t kDatagramBytesMinimum = 1280 - 48;
inline constexpr std::size_t kDatagramBytesMaximum = 9216 - 28;

inline constexpr std::uint64_t kPacketNumberMax = (std::uint64_t{1} << 62) - 1;  // as in RFC 9000 §12.3

enum class PacketType : std::uint8_t { kPages = 1, kAck = 2, kZeroRuns = 4, kProbe = 5, kMessage = 6 };

enum PacketFlag : std::uint8_t {
  kFlagAckBlock = 0x01,  // the body begins with an ack block
  kFlagAckNow = 0x02,    // the sender waits for the acknowledgement
  kFlagChecksum = 0x04,  // the tag is a checksum and the body is clear; else AES-GCM
  kFlagKeyPhase = 0x08,  // of AES-GCM: the lowest bit of the number of the key, which counts from 0
};
inline constexpr std::uint8_t kFlagsKnown = kFlagAckBlock | kFlagAckNow | kFlagChecksum | kFlagKeyPhase;

struct PacketHeader {
  PacketType type = PacketType::kProbe;
  std::uint8_t flags = 0;
  std::uint16_t lane = 0;
  std::uint32_t flow_id = 0;        // drawn by the receiver; never 0
  std::uint64_t packet_number = 0;  // of this lane and direction; never repeats
};

enum class Reject : std::uint8_t { kTooShort, kTooLong, kVersion, kType, kFlags, kFlowId, kPacketNumber, kCount };
/// A counter's name.
[[nodiscard]] std::string_view to_string(Reject reject);

struct PacketView {
  PacketHeader header;
  std::span<std::byte> body;  // without the tag
};

void write_header(const PacketHeader& header, std::span<std::byte> out);
[[nodiscard]] std::expected<PacketView, Reject> parse_packet(std::span<std::byte> datagram);

/// All but kAck ask for an acknowledgement.
[[nodiscard]] constexpr bool is_ack_eliciting(PacketType type) { return type != PacketType::kAck; }

}  // namespace godwit::wire
