#include "dataplane/port/super_frame.h"

#include <algorithm>

#include "base/check.h"
#include "dataplane/wire/datagram.h"
#include "dataplane/wire/headers.h"

namespace godwit::port {
namespace {

using wire::kEthernetBytes;
using wire::kIpv4Bytes;
using wire::kIpv6Bytes;
using wire::kUdpBytes;

constexpr std::size_t kAtIpv4Length = kEthernetBytes + 2;
constexpr std::size_t kAtIpv4Fragment = kEthernetBytes + 6;
constexpr std::size_t kAtIpv4Protocol = kEthernetBytes + 9;
constexpr std::size_t kAtIpv4Checksum = kEthernetBytes + 10;
constexpr std::size_t kAtIpv6Length = kEthernetBytes + 4;
constexpr std::size_t kAtIpv6Protocol = kEthernetBytes + 6;
constexpr std::size_t kUdpLength = 4;    // in a UDP header
constexpr std::size_t kUdpChecksum = 6;  // in a UDP header
constexpr std::uint16_t kFragmentMask = 0x3fff;

bool is_ipv4(std::span<const std::byte> headers) {
  return wire::load_be<std::uint16_t>(headers, wire::kAtEtherType) == wire::kEtherTypeIpv4;
}

void put_lengths(std::span<std::byte> headers, std::size_t payload_bytes) {
  const std::size_t udp = headers.size() - kUdpBytes;
  const auto udp_bytes = static_cast<std::uint16_t>(payload_bytes + kUdpBytes);
  if (is_ipv4(headers)) {
    wire::store_be<std::uint16_t>(headers, kAtIpv4Length, static_cast<std::uint16_t>(udp_bytes + kIpv4Bytes));
  } else {
    wire::store_be<std::uint16_t>(headers, kAtIpv6Length, udp_bytes);
  }
  wire::store_be<std::uint16_t>(headers, udp + kUdpLength, udp_bytes);
}

/// The checksum over the pseudo header alone, not inverted: whoever takes the frame apart goes on from there.
std::uint16_t partial_checksum(std::span<const std::byte> headers, std::uint32_t udp_bytes) {
  const bool v4 = is_ipv4(headers);
  const auto family = v4 ? wire::IpFamily::kV4 : wire::IpFamily::kV6;
  const std::size_t addresses = kEthernetBytes + (v4 ? 12 : 8);
  return static_cast<std::uint16_t>(~wire::internet_checksum(wire::pseudo_header_sum(
      wire::load_ip(headers, addresses, family),
      wire::load_ip(headers, addresses + wire::address_bytes(family), family), wire::kProtocolUdp, udp_bytes)));
}

}  // namespace

std::size_t udp_headers(std::span<const std::byte> head, std::size_t frame_bytes) {
  const auto fits = [&](std::size_t headers) { return head.size() >= headers && frame_bytes >= headers; };
  std::size_t headers = wire::datagram_header_bytes(wire::IpFamily::kV4);
  if (!fits(headers)) {
    return 0;
  }
  if (is_ipv4(head)) {
    if (wire::load_be<std::uint8_t>(head, kEthernetBytes) != 0x45 ||
        (wire::load_be<std::uint16_t>(head, kAtIpv4Fragment) & kFragmentMask) != 0 ||
        wire::load_be<std::uint8_t>(head, kAtIpv4Protocol) != wire::kProtocolUdp ||
        wire::load_be<std::uint16_t>(head, kAtIpv4Length) != frame_bytes - kEthernetBytes) {
      return 0;
    }
  } else {
    headers = wire::datagram_header_bytes(wire::IpFamily::kV6);
    if (!fits(headers) || wire::load_be<std::uint16_t>(head, wire::kAtEtherType) != wire::kEtherTypeIpv6 ||
        wire::load_be<std::uint8_t>(head, kAtIpv6Protocol) != wire::kProtocolUdp ||
        wire::load_be<std::uint16_t>(head, kAtIpv6Length) != frame_bytes - kEthernetBytes - kIpv6Bytes) {
      return 0;
    }
  }
  const auto udp_bytes = wire::load_be<std::uint16_t>(head, headers - kUdpBytes + kUdpLength);
  return udp_bytes == frame_bytes - headers + kUdpBytes ? headers : 0;
}

bool same_headers(std::span<const std::byte> one, std::span<const std::byte> other, std::size_t headers) {
  const bool v4 = is_ipv4(one);
  const std::size_t length = v4 ? kAtIpv4Length : kAtIpv6Length;
  const std::size_t udp = headers - kUdpBytes;
  const auto same = [&](std::size_t from, std::size_t to) {
    return std::equal(one.begin() + static_cast<std::ptrdiff_t>(from), one.begin() + static_cast<std::ptrdiff_t>(to),
                      other.begin() + static_cast<std::ptrdiff_t>(from));
  };
  return same(0, length) && same(length + 2, v4 ? kAtIpv4Checksum : udp) && (!v4 || same(kAtIpv4Checksum + 2, udp)) &&
         same(udp, udp + kUdpLength);
}

OffloadHeader make_super_frame(std::span<std::byte> headers, std::size_t payload_bytes, std::size_t segment_bytes) {
  GW_ASSERT(headers.size() + payload_bytes <= kSuperFrameBytesMax && segment_bytes > 0);
  const std::size_t udp = headers.size() - kUdpBytes;
  put_lengths(headers, payload_bytes);
  if (is_ipv4(headers)) {
    wire::store_be<std::uint16_t>(headers, kAtIpv4Checksum, 0);
    const std::uint64_t sum = wire::checksum_add(0, headers.subspan(kEthernetBytes, kIpv4Bytes));
    wire::store_be<std::uint16_t>(headers, kAtIpv4Checksum, wire::internet_checksum(sum));
  }
  const auto udp_bytes = static_cast<std::uint32_t>(payload_bytes + kUdpBytes);
  wire::store_be<std::uint16_t>(headers, udp + kUdpChecksum, partial_checksum(headers, udp_bytes));
  return {.flags = kNeedsChecksum,
          .gso_type = kGsoUdpL4,
          .headers_bytes = static_cast<std::uint16_t>(headers.size()),
          .segment_bytes = static_cast<std::uint16_t>(segment_bytes),
          .checksum_start = static_cast<std::uint16_t>(udp),
          .checksum_offset = kUdpChecksum};
}

std::optional<Segments> split(const OffloadHeader& told, std::span<const std::byte> head, std::size_t frame_bytes) {
  const std::size_t headers = udp_headers(head, frame_bytes);
  const std::size_t segment = told.segment_bytes;
  if (told.gso_type != kGsoUdpL4 || headers == 0 || segment == 0 || frame_bytes <= headers) {
    return std::nullopt;
  }
  return Segments{.headers = headers, .bytes = segment, .count = (frame_bytes - headers + segment - 1) / segment};
}

void make_segment(std::span<std::byte> headers, std::size_t payload_bytes) { put_lengths(headers, payload_bytes); }

}  // namespace godwit::port
