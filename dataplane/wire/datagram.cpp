#include "dataplane/wire/datagram.h"

#include <algorithm>
#include <optional>

#include "dataplane/wire/bytes.h"
#include "dataplane/wire/headers.h"

namespace godwit::wire {

namespace {

constexpr std::uint8_t kTimeToLive = 64;
constexpr std::uint16_t kDontFragment = 0x4000;
constexpr std::uint16_t kFragmentMask = 0x3fff;  // more fragments, and the offset

void write_ipv4(const DatagramPath& path, std::span<std::byte> ip, std::size_t bytes) {
  // In the words that the checksum reads: see address.h.
  store_be<std::uint32_t>(ip, 0, 0x45000000U | std::uint32_t{path.dscp} << 18 | static_cast<std::uint16_t>(bytes));
  store_be<std::uint32_t>(ip, 4, kDontFragment);
  store_be<std::uint32_t>(ip, 8, std::uint32_t{kTimeToLive} << 24 | std::uint32_t{kProtocolUdp} << 16);
  store_ip(ip, 12, path.source.address);
  store_ip(ip, 16, path.destination.address);
  store_be<std::uint16_t>(ip, 10, internet_checksum(checksum_add(0, ip.first(kIpv4Bytes))));
}

void write_ipv6(const DatagramPath& path, std::span<std::byte> ip) {
  store_be<std::uint32_t>(ip, 0, 0x60000000U | std::uint32_t{path.dscp} << 22);
  store_be<std::uint16_t>(ip, 4, static_cast<std::uint16_t>(ip.size() - kIpv6Bytes));
  store_be<std::uint8_t>(ip, 6, kProtocolUdp);
  store_be<std::uint8_t>(ip, 7, kTimeToLive);
  store_ip(ip, 8, path.source.address);
  store_ip(ip, 24, path.destination.address);
}

/// Nothing is wrong, or the first broken rule.
using Broken = std::optional<DatagramReject>;

/// Afterwards the view's payload is the UDP datagram, without Ethernet's padding.
Broken parse_ipv4(std::span<std::byte> ip, ChecksumCheck check, DatagramView& view) {
  if (ip.size() < kIpv4Bytes) {
    return DatagramReject::kTooShort;
  }
  const auto version_length = load_be<std::uint8_t>(ip, 0);
  if (version_length >> 4 != 4) {
    return DatagramReject::kIpVersion;
  }
  if ((version_length & 0x0f) != kIpv4Bytes / 4) {
    return DatagramReject::kIpHeaderLength;
  }
  const auto length = load_be<std::uint16_t>(ip, 2);
  if (length < kIpv4Bytes || length > ip.size()) {
    return DatagramReject::kIpLength;
  }
  if (check == ChecksumCheck::kVerify && internet_checksum(checksum_add(0, ip.first(kIpv4Bytes))) != 0) {
    return DatagramReject::kIpChecksum;
  }
  if ((load_be<std::uint16_t>(ip, 6) & kFragmentMask) != 0) {
    return DatagramReject::kIpFragment;
  }
  if (load_be<std::uint8_t>(ip, 9) != kProtocolUdp) {
    return DatagramReject::kNotUdp;
  }
  load_ip(ip, 12, IpFamily::kV4, view.source.address);
  load_ip(ip, 16, IpFamily::kV4, view.destination.address);
  view.payload = ip.subspan(kIpv4Bytes, length - kIpv4Bytes);
  return std::nullopt;
}

Broken parse_ipv6(std::span<std::byte> ip, DatagramView& view) {
  if (ip.size() < kIpv6Bytes) {
    return DatagramReject::kTooShort;
  }
  if (load_be<std::uint8_t>(ip, 0) >> 4 != 6) {
    return DatagramReject::kIpVersion;
  }
  const auto length = load_be<std::uint16_t>(ip, 4);
  if (length > ip.size() - kIpv6Bytes) {
    return DatagramReject::kIpLength;
  }
  if (load_be<std::uint8_t>(ip, 6) != kProtocolUdp) {
    return DatagramReject::kNotUdp;
  }
  load_ip(ip, 8, IpFamily::kV6, view.source.address);
  load_ip(ip, 24, IpFamily::kV6, view.destination.address);
  view.payload = ip.subspan(kIpv6Bytes, length);
  return std::nullopt;
}

bool udp_checksum_holds(std::span<const std::byte> udp, const DatagramView& view) {
  const bool v4 = view.source.address.family == IpFamily::kV4;
  if (load_be<std::uint16_t>(udp, 6) == 0) {
    return v4;  // RFC 768: none; RFC 8200 §8.1: forbidden over IPv6
  }
  const auto length = static_cast<std::uint32_t>(udp.size());
  const std::uint64_t pseudo = pseudo_header_sum(view.source.address, view.destination.address, kProtocolUdp, length);
  return internet_checksum(checksum_add(pseudo, udp)) == 0;
}

Broken parse_into(std::span<std::byte> frame, ChecksumCheck check, DatagramView& view) {
  if (frame.size() < kEthernetBytes) {
    return DatagramReject::kTooShort;
  }
  view.destination_mac = load_mac(frame, 0);
  view.source_mac = load_mac(frame, 6);
  const std::span<std::byte> ip = frame.subspan(kEthernetBytes);
  Broken broken;
  switch (load_be<std::uint16_t>(frame, kAtEtherType)) {
    case kEtherTypeIpv4:
      broken = parse_ipv4(ip, check, view);
      break;
    case kEtherTypeIpv6:
      broken = parse_ipv6(ip, view);
      break;
    default:
      return DatagramReject::kNotIp;
  }
  if (broken) {
    return broken;
  }
  const std::span<std::byte> udp = view.payload;
  if (udp.size() < kUdpBytes || load_be<std::uint16_t>(udp, 4) != udp.size()) {
    return DatagramReject::kUdpLength;
  }
  if (check == ChecksumCheck::kVerify && !udp_checksum_holds(udp, view)) {
    return DatagramReject::kUdpChecksum;
  }
  view.source.port = load_be<std::uint16_t>(udp, 0);
  view.destination.port = load_be<std::uint16_t>(udp, 2);
  view.payload = udp.subspan(kUdpBytes);
  return std::nullopt;
}

}  // namespace

std::string_view to_string(DatagramReject reject) {
  switch (reject) {
    case DatagramReject::kTooShort:
      return "too_short";
    case DatagramReject::kNotIp:
      return "not_ip";
    case DatagramReject::kIpVersion:
      return "ip_version";
    case DatagramReject::kIpHeaderLength:
      return "ip_header_length";
    case DatagramReject::kIpLength:
      return "ip_length";
    case DatagramReject::kIpChecksum:
      return "ip_checksum";
    case DatagramReject::kIpFragment:
      return "ip_fragment";
    case DatagramReject::kNotUdp:
      return "not_udp";
    case DatagramReject::kUdpLength:
      return "udp_length";
    case DatagramReject::kUdpChecksum:
      return "udp_checksum";
    case DatagramReject::kCount:
      break;
  }
  return "?";
}

FrameKind classify_frame(std::span<const std::byte> frame) {
  if (frame.size() < kEthernetBytes) {
    return FrameKind::kOther;
  }
  switch (load_be<std::uint16_t>(frame, kAtEtherType)) {
    case kEtherTypeArp:
      return FrameKind::kArp;
    case kEtherTypeIpv4:
      return frame.size() > kEthernetBytes + 9 && load_be<std::uint8_t>(frame, kEthernetBytes + 9) == kProtocolUdp
                 ? FrameKind::kUdp
                 : FrameKind::kOther;
    case kEtherTypeIpv6: {
      const std::uint8_t protocol =
          frame.size() > kEthernetBytes + 6 ? load_be<std::uint8_t>(frame, kEthernetBytes + 6) : 0;
      return protocol == kProtocolUdp      ? FrameKind::kUdp
             : protocol == kProtocolIcmpv6 ? FrameKind::kNeighbour
                                           : FrameKind::kOther;
    }
    default:
      return FrameKind::kOther;
  }
}

void write_datagram_headers(const DatagramPath& path, UdpChecksum checksum, std::span<std::byte> frame,
                            std::size_t bytes_elsewhere) {
  const IpFamily family = path.destination.address.family;
  GW_ASSERT(path.source.address.family == family && path.dscp < 64);
  GW_ASSERT(frame.size() >= datagram_header_bytes(family) &&
            frame.size() + bytes_elsewhere <= kEthernetBytes + UINT16_MAX);
  const bool v4 = family == IpFamily::kV4;
  GW_ASSERT(bytes_elsewhere == 0 || (v4 && checksum == UdpChecksum::kNone));
  write_ethernet(frame, path.destination_mac, path.source_mac, v4 ? kEtherTypeIpv4 : kEtherTypeIpv6);
  const std::span<std::byte> ip = frame.subspan(kEthernetBytes);
  v4 ? write_ipv4(path, ip, ip.size() + bytes_elsewhere) : write_ipv6(path, ip);
  const std::span<std::byte> udp = ip.subspan(v4 ? kIpv4Bytes : kIpv6Bytes);
  const auto length = static_cast<std::uint16_t>(udp.size() + bytes_elsewhere);
  store_be<std::uint16_t>(udp, 0, path.source.port);
  store_be<std::uint16_t>(udp, 2, path.destination.port);
  store_be<std::uint16_t>(udp, 4, length);
  store_be<std::uint16_t>(udp, 6, 0);
  if (!v4 || checksum == UdpChecksum::kWrite) {
    const std::uint64_t pseudo = pseudo_header_sum(path.source.address, path.destination.address, kProtocolUdp, length);
    const std::uint16_t sum = internet_checksum(checksum_add(pseudo, udp));
    store_be<std::uint16_t>(udp, 6, sum == 0 ? std::uint16_t{0xffff} : sum);  // 0 would say: none
  }
}

std::expected<DatagramView, DatagramReject> parse_datagram(std::span<std::byte> frame, ChecksumCheck check) {
  // Made where it is returned: see address.h.
  std::expected<DatagramView, DatagramReject> parsed;
  if (const auto bad = parse_into(frame, check, *parsed)) {
    parsed = std::unexpected(*bad);
  }
  return parsed;
}

std::uint64_t checksum_add(std::uint64_t sum, std::span<const std::byte> bytes) {
  // Ones' complement addition does not care for the word size nor for byte order (RFC 1071 §2): 32-bit words as they
  // lie in memory, and at 9216 bytes the 64-bit sum cannot overflow. internet_checksum() swaps back. Every piece but
  // the last has even length.
  std::size_t at = 0;
  for (; at + 4 <= bytes.size(); at += 4) {
    sum += load_le<std::uint32_t>(bytes, at);
  }
  if (at + 2 <= bytes.size()) {
    sum += load_le<std::uint16_t>(bytes, at);
    at += 2;
  }
  if (at < bytes.size()) {
    sum += load_le<std::uint8_t>(bytes, at);
  }
  return sum;
}

std::uint16_t internet_checksum(std::uint64_t sum) {
  while (sum > 0xffff) {
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return static_cast<std::uint16_t>(~swap_bytes(static_cast<std::uint16_t>(sum)));
}

std::uint64_t pseudo_header_sum(const IpAddress& source, const IpAddress& destination, std::uint8_t protocol,
                                std::uint32_t length) {
  std::array<std::byte, 40> pseudo{};
  if (source.family == IpFamily::kV4) {
    store_ip(pseudo, 0, source);
    store_ip(pseudo, 4, destination);
    store_be<std::uint16_t>(pseudo, 8, protocol);
    store_be<std::uint16_t>(pseudo, 10, static_cast<std::uint16_t>(length));
  } else {
    store_ip(pseudo, 0, source);
    store_ip(pseudo, 16, destination);
    store_be<std::uint32_t>(pseudo, 32, length);
    store_be<std::uint32_t>(pseudo, 36, protocol);
  }
  return checksum_add(0, pseudo);
}

}  // namespace godwit::wire
