#pragma once
// UDP datagrams in Ethernet frames: builds the headers in front of a payload, and takes a received frame apart.
// Pure; any thread. Input is hostile: parse_datagram() checks every length before it reads, and names the first broken
// rule. Refused on purpose: VLAN tags, IPv4 options and fragments, IPv6 extension headers; none is ever sent by a data
// plane.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>

#include "dataplane/wire/address.h"

namespace godwit::wire {

inline constexpr std::size_t kEthernetBytes = 14;
inline constexpr std::size_t kIpv4Bytes = 20;
inline constexpr std::size_t kIpv6Bytes = 40;
inline constexpr std::size_t kUdpBytes = 8;

/// Ethernet, IP and UDP headers in front of a payload: 42 or 62.
[[nodiscard]] constexpr std::size_t datagram_header_bytes(IpFamily family) {
  return kEthernetBytes + (family == IpFamily::kV4 ? kIpv4Bytes : kIpv6Bytes) + kUdpBytes;
}
/// The largest UDP payload whose IP packet fits the MTU; MTU is an IP packet's size (1500, 9000).
[[nodiscard]] constexpr std::uint32_t payload_bytes_max(IpFamily family, std::uint32_t mtu_bytes) {
  const auto headers = static_cast<std::uint32_t>(datagram_header_bytes(family) - kEthernetBytes);
  return mtu_bytes > headers ? mtu_bytes - headers : 0;
}

enum class FrameKind : std::uint8_t { kUdp, kArp, kNeighbour, kOther };

/// What a frame claims to be, by EtherType and protocol alone: says which parser to ask.
[[nodiscard]] FrameKind classify_frame(std::span<const std::byte> frame);

struct DatagramPath {
  MacAddress source_mac;
  MacAddress destination_mac;
  UdpEndpoint source;
  UdpEndpoint destination;  // of the same family as source
  std::uint8_t dscp = 0;    // 0..63
};

/// Over IPv4 the UDP checksum may be left out (the payload carries its own seal); over IPv6 it is always written.
enum class UdpChecksum : std::uint8_t { kNone, kWrite };

/// Writes the headers at the front of `frame`; the payload already stands behind them and ends the frame. Of a payload
/// that is not checksummed `bytes_elsewhere` may be sent from other memory.
void write_datagram_headers(const DatagramPath& path, UdpChecksum checksum, std::span<std::byte> frame,
                            std::size_t bytes_elsewhere = 0);

enum class DatagramReject : std::uint8_t {
  kTooShort,
  kNotIp,
  kIpVersion,
  kIpHeaderLength,
  kIpLength,
  kIpChecksum,
  kIpFragment,
  kNotUdp,
  kUdpLength,
  kUdpChecksum,
  kCount,
};
/// A counter's name.
[[nodiscard]] std::string_view to_string(DatagramReject reject);

struct DatagramView {
  MacAddress source_mac;
  MacAddress destination_mac;
  UdpEndpoint source;
  UdpEndpoint destination;
  std::span<std::byte> payload;
};

/// kTrust: the NIC has verified both checksums.
enum class ChecksumCheck : std::uint8_t { kVerify, kTrust };

[[nodiscard]] std::expected<DatagramView, DatagramReject> parse_datagram(std::span<std::byte> frame,
                                                                         ChecksumCheck check);

/// Ones' complement sum of RFC 1071 over `bytes`, continuing `sum`; fold with internet_checksum().
[[nodiscard]] std::uint64_t checksum_add(std::uint64_t sum, std::span<const std::byte> bytes);
/// The 16 bits to store (big-endian) for a sum.
[[nodiscard]] std::uint16_t internet_checksum(std::uint64_t sum);
/// The sum over an IPv6 pseudo header (RFC 8200 §8.1), or the IPv4 one (RFC 768).
[[nodiscard]] std::uint64_t pseudo_header_sum(const IpAddress& source, const IpAddress& destination,
                                              std::uint8_t protocol, std::uint32_t length);

}  // namespace godwit::wire
