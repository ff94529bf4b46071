#include "dataplane/wire/neighbour.h"

#include <algorithm>

#include "dataplane/wire/bytes.h"
#include "dataplane/wire/datagram.h"
#include "dataplane/wire/headers.h"

namespace godwit::wire {

namespace {

constexpr std::size_t kArpBytes = 28;
constexpr std::size_t kEthernetMinimum = 60;  // without the frame check sequence
constexpr std::uint16_t kArpRequest = 1;
constexpr std::uint16_t kArpReply = 2;

constexpr std::uint8_t kSolicitation = 135;
constexpr std::uint8_t kAdvertisement = 136;
constexpr std::size_t kNeighbourBytes = 24;  // type, code, checksum, flags, target
constexpr std::size_t kOptionUnit = 8;
constexpr std::uint8_t kOptionSourceLink = 1;
constexpr std::uint8_t kOptionTargetLink = 2;
constexpr std::uint8_t kHopLimit = 255;  // RFC 4861 §7.1: proves that no router forwarded it
constexpr std::uint32_t kFlagSolicited = 0x40000000;
constexpr std::uint32_t kFlagOverride = 0x20000000;

static_assert(kEthernetBytes + kIpv6Bytes + kNeighbourBytes + kOptionUnit == kNeighbourFrameBytesMax);

bool is_multicast(const IpAddress& address) { return address.bytes[0] == 0xff; }
bool is_unspecified(const IpAddress& address) { return address == IpAddress{.family = IpFamily::kV6}; }
bool is_group(const MacAddress& mac) { return (mac.bytes[0] & 1) != 0; }

/// RFC 4861 §7.1.1 and §7.1.2: every option has a length, and all fit.
NeighbourReject parse_options(std::span<const std::byte> options, NeighbourMessage& message) {
  const std::uint8_t wanted = message.solicitation ? kOptionSourceLink : kOptionTargetLink;
  while (!options.empty()) {
    if (options.size() < kOptionUnit) {
      return NeighbourReject::kBadOption;
    }
    const std::size_t length = load_be<std::uint8_t>(options, 1) * kOptionUnit;
    if (length == 0 || length > options.size()) {
      return NeighbourReject::kBadOption;
    }
    if (load_be<std::uint8_t>(options, 0) == wanted) {
      const MacAddress mac = load_mac(options, 2);
      if (length != kOptionUnit || is_group(mac)) {
        return NeighbourReject::kBadOption;
      }
      message.link_address = mac;
    }
    options = options.subspan(length);
  }
  return NeighbourReject::kCount;
}

bool addresses_allowed(const NeighbourMessage& message) {
  if (is_multicast(message.target) || is_unspecified(message.target) || is_multicast(message.source)) {
    return false;
  }
  if (message.solicitation) {
    // Duplicate address detection: from nowhere, to the group, without a link address.
    return !is_unspecified(message.source) ||
           (!message.link_address && message.destination == solicited_node_group(message.target));
  }
  return !is_unspecified(message.source) && !(message.solicited && is_multicast(message.destination));
}

}  // namespace

std::string_view to_string(NeighbourReject reject) {
  switch (reject) {
    case NeighbourReject::kTooShort:
      return "shorter than its headers";
    case NeighbourReject::kNotNeighbour:
      return "neither ARP nor neighbour discovery";
    case NeighbourReject::kBadFormat:
      return "not IPv4 over Ethernet, or a bad IPv6 version";
    case NeighbourReject::kBadOperation:
      return "unknown operation or code";
    case NeighbourReject::kBadAddress:
      return "address not allowed here";
    case NeighbourReject::kHopLimit:
      return "hop limit below 255: it was forwarded";
    case NeighbourReject::kBadLength:
      return "length beyond the frame";
    case NeighbourReject::kBadChecksum:
      return "ICMPv6 checksum";
    case NeighbourReject::kBadOption:
      return "bad option";
    case NeighbourReject::kCount:
      break;
  }
  return "?";
}

std::size_t build_arp(const ArpMessage& message, std::span<std::byte> frame) {
  GW_ASSERT(frame.size() >= kEthernetMinimum);
  GW_ASSERT(message.sender.family == IpFamily::kV4 && message.target.family == IpFamily::kV4);
  std::fill_n(frame.begin(), kEthernetMinimum, std::byte{0});
  write_ethernet(frame, message.request ? kBroadcastMac : message.target_mac, message.sender_mac, kEtherTypeArp);
  const std::span<std::byte> arp = frame.subspan(kEthernetBytes);
  store_be<std::uint16_t>(arp, 0, 1);  // Ethernet
  store_be<std::uint16_t>(arp, 2, kEtherTypeIpv4);
  store_be<std::uint8_t>(arp, 4, 6);
  store_be<std::uint8_t>(arp, 5, 4);
  store_be<std::uint16_t>(arp, 6, message.request ? kArpRequest : kArpReply);
  store_mac(arp, 8, message.sender_mac);
  store_ip(arp, 14, message.sender);
  store_mac(arp, 18, message.target_mac);
  store_ip(arp, 24, message.target);
  return kEthernetMinimum;
}

std::expected<ArpMessage, NeighbourReject> parse_arp(std::span<const std::byte> frame) {
  if (frame.size() < kEthernetBytes + kArpBytes) {
    return std::unexpected(NeighbourReject::kTooShort);
  }
  if (load_be<std::uint16_t>(frame, kAtEtherType) != kEtherTypeArp) {
    return std::unexpected(NeighbourReject::kNotNeighbour);
  }
  const std::span<const std::byte> arp = frame.subspan(kEthernetBytes);
  if (load_be<std::uint16_t>(arp, 0) != 1 || load_be<std::uint16_t>(arp, 2) != kEtherTypeIpv4 ||
      load_be<std::uint8_t>(arp, 4) != 6 || load_be<std::uint8_t>(arp, 5) != 4) {
    return std::unexpected(NeighbourReject::kBadFormat);
  }
  const auto operation = load_be<std::uint16_t>(arp, 6);
  if (operation != kArpRequest && operation != kArpReply) {
    return std::unexpected(NeighbourReject::kBadOperation);
  }
  ArpMessage message{.request = operation == kArpRequest,
                     .sender_mac = load_mac(arp, 8),
                     .sender = load_ip(arp, 14, IpFamily::kV4),
                     .target_mac = load_mac(arp, 18),
                     .target = load_ip(arp, 24, IpFamily::kV4)};
  if (is_group(message.sender_mac) || message.sender_mac == MacAddress{}) {
    return std::unexpected(NeighbourReject::kBadAddress);
  }
  return message;
}

std::size_t build_neighbour(const NeighbourMessage& message, std::span<std::byte> frame) {
  const std::size_t icmp_bytes = kNeighbourBytes + (message.link_address ? kOptionUnit : 0);
  const std::size_t total = kEthernetBytes + kIpv6Bytes + icmp_bytes;
  GW_ASSERT(frame.size() >= total);
  GW_ASSERT(message.source.family == IpFamily::kV6 && message.destination.family == IpFamily::kV6 &&
            message.target.family == IpFamily::kV6);
  write_ethernet(frame, message.destination_mac, message.source_mac, kEtherTypeIpv6);
  const std::span<std::byte> ip = frame.subspan(kEthernetBytes, total - kEthernetBytes);
  store_be<std::uint32_t>(ip, 0, 0x60000000U);
  store_be<std::uint16_t>(ip, 4, static_cast<std::uint16_t>(icmp_bytes));
  store_be<std::uint8_t>(ip, 6, kProtocolIcmpv6);
  store_be<std::uint8_t>(ip, 7, kHopLimit);
  store_ip(ip, 8, message.source);
  store_ip(ip, 24, message.destination);
  const std::span<std::byte> icmp = ip.subspan(kIpv6Bytes);
  store_be<std::uint8_t>(icmp, 0, message.solicitation ? kSolicitation : kAdvertisement);
  store_be<std::uint8_t>(icmp, 1, 0);
  store_be<std::uint16_t>(icmp, 2, 0);
  const std::uint32_t flags = (message.solicited ? kFlagSolicited : 0) | (message.override_cache ? kFlagOverride : 0);
  store_be<std::uint32_t>(icmp, 4, message.solicitation ? 0 : flags);
  store_ip(icmp, 8, message.target);
  if (message.link_address) {
    store_be<std::uint8_t>(icmp, 24, message.solicitation ? kOptionSourceLink : kOptionTargetLink);
    store_be<std::uint8_t>(icmp, 25, 1);
    store_mac(icmp, 26, *message.link_address);
  }
  const auto length = static_cast<std::uint32_t>(icmp_bytes);
  const std::uint64_t pseudo = pseudo_header_sum(message.source, message.destination, kProtocolIcmpv6, length);
  store_be<std::uint16_t>(icmp, 2, internet_checksum(checksum_add(pseudo, icmp)));
  return total;
}

std::expected<NeighbourMessage, NeighbourReject> parse_neighbour(std::span<const std::byte> frame) {
  if (frame.size() < kEthernetBytes + kIpv6Bytes + kNeighbourBytes) {
    return std::unexpected(NeighbourReject::kTooShort);
  }
  const std::span<const std::byte> ip = frame.subspan(kEthernetBytes);
  if (load_be<std::uint16_t>(frame, kAtEtherType) != kEtherTypeIpv6 ||
      load_be<std::uint8_t>(ip, 6) != kProtocolIcmpv6) {
    return std::unexpected(NeighbourReject::kNotNeighbour);
  }
  if (load_be<std::uint8_t>(ip, 0) >> 4 != 6) {
    return std::unexpected(NeighbourReject::kBadFormat);
  }
  const std::size_t length = load_be<std::uint16_t>(ip, 4);
  if (length < kNeighbourBytes || length > ip.size() - kIpv6Bytes) {
    return std::unexpected(NeighbourReject::kBadLength);
  }
  if (load_be<std::uint8_t>(ip, 7) != kHopLimit) {
    return std::unexpected(NeighbourReject::kHopLimit);
  }
  const std::span<const std::byte> icmp = ip.subspan(kIpv6Bytes, length);
  const auto type = load_be<std::uint8_t>(icmp, 0);
  if ((type != kSolicitation && type != kAdvertisement) || load_be<std::uint8_t>(icmp, 1) != 0) {
    return std::unexpected(NeighbourReject::kBadOperation);
  }
  NeighbourMessage message{.solicitation = type == kSolicitation,
                           .source_mac = load_mac(frame, 6),
                           .destination_mac = load_mac(frame, 0),
                           .source = load_ip(ip, 8, IpFamily::kV6),
                           .destination = load_ip(ip, 24, IpFamily::kV6),
                           .target = load_ip(icmp, 8, IpFamily::kV6)};
  const std::uint64_t pseudo =
      pseudo_header_sum(message.source, message.destination, kProtocolIcmpv6, static_cast<std::uint32_t>(length));
  if (internet_checksum(checksum_add(pseudo, icmp)) != 0) {
    return std::unexpected(NeighbourReject::kBadChecksum);
  }
  if (!message.solicitation) {
    const auto flags = load_be<std::uint32_t>(icmp, 4);
    message.solicited = (flags & kFlagSolicited) != 0;
    message.override_cache = (flags & kFlagOverride) != 0;
  }
  if (const auto bad = parse_options(icmp.subspan(kNeighbourBytes), message); bad != NeighbourReject::kCount) {
    return std::unexpected(bad);
  }
  if (!addresses_allowed(message)) {
    return std::unexpected(NeighbourReject::kBadAddress);
  }
  return message;
}

}  // namespace godwit::wire
