// Ethernet frames: UDP over IPv4 and IPv6, ARP, neighbour discovery.
// Input: one byte (bit 0: checksums are made right, so that what is behind them is reached), the frame.
// Properties: parsers change nothing, agree with classify_frame(), and what they accept comes back equal through our
// own builder; a trusted checksum changes no verdict but its own.

#include "dataplane/wire/bytes.h"
#include "dataplane/wire/datagram.h"
#include "dataplane/wire/headers.h"
#include "dataplane/wire/neighbour.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

using wire::load_be;
using wire::store_be;

constexpr std::size_t kIcmpChecksumAt = 2;
constexpr std::size_t kUdpChecksumAt = 6;

void repair_ipv6(std::span<std::byte> ip) {
  const auto protocol = load_be<std::uint8_t>(ip, 6);
  const std::size_t length = load_be<std::uint16_t>(ip, 4);
  const std::size_t at = protocol == wire::kProtocolUdp ? kUdpChecksumAt : kIcmpChecksumAt;
  if (length > ip.size() - wire::kIpv6Bytes || length < at + 2) {
    return;
  }
  const auto content = ip.subspan(wire::kIpv6Bytes, length);
  const auto source = wire::load_ip(ip, 8, wire::IpFamily::kV6);
  const auto destination = wire::load_ip(ip, 24, wire::IpFamily::kV6);
  store_be<std::uint16_t>(content, at, 0);
  const auto sum = wire::pseudo_header_sum(source, destination, protocol, static_cast<std::uint32_t>(length));
  store_be<std::uint16_t>(content, at, wire::internet_checksum(wire::checksum_add(sum, content)));
}

void repair_checksums(std::span<std::byte> frame) {
  if (frame.size() < wire::kEthernetBytes) {
    return;
  }
  const auto ip = frame.subspan(wire::kEthernetBytes);
  const auto type = load_be<std::uint16_t>(frame, wire::kAtEtherType);
  if (type == wire::kEtherTypeIpv4 && ip.size() >= wire::kIpv4Bytes + wire::kUdpBytes) {
    store_be<std::uint16_t>(ip, 10, 0);
    store_be<std::uint16_t>(ip, 10, wire::internet_checksum(wire::checksum_add(0, ip.first(wire::kIpv4Bytes))));
    store_be<std::uint16_t>(ip, wire::kIpv4Bytes + kUdpChecksumAt, 0);  // none
  } else if (type == wire::kEtherTypeIpv6 && ip.size() >= wire::kIpv6Bytes) {
    repair_ipv6(ip);
  }
}

bool equal(const wire::DatagramView& a, const wire::DatagramView& b) {
  return a.source_mac == b.source_mac && a.destination_mac == b.destination_mac && a.source == b.source &&
         a.destination == b.destination && same(a.payload, b.payload);
}

void check_datagram(std::span<std::byte> frame, wire::FrameKind kind) {
  const auto trusted = wire::parse_datagram(frame, wire::ChecksumCheck::kTrust);
  const auto verified = wire::parse_datagram(frame, wire::ChecksumCheck::kVerify);
  FUZZ_CHECK(!verified || (trusted && equal(*trusted, *verified)));
  if (!trusted) {
    FUZZ_CHECK(verified.error() == trusted.error() || verified.error() == wire::DatagramReject::kIpChecksum);
    return;
  }
  FUZZ_CHECK(kind == wire::FrameKind::kUdp);
  FUZZ_CHECK(trusted->source.address.family == trusted->destination.address.family);
  const std::size_t headers = wire::datagram_header_bytes(trusted->source.address.family);
  FUZZ_CHECK(trusted->payload.data() == frame.data() + headers && headers + trusted->payload.size() <= frame.size());
  std::vector<std::byte> rebuilt(headers);
  rebuilt.insert(rebuilt.end(), trusted->payload.begin(), trusted->payload.end());
  wire::write_datagram_headers(
      {trusted->source_mac, trusted->destination_mac, trusted->source, trusted->destination, 0},
      wire::UdpChecksum::kWrite, rebuilt);
  const auto again = wire::parse_datagram(rebuilt, wire::ChecksumCheck::kVerify);
  FUZZ_CHECK(again && equal(*again, *trusted));
}

void check_arp(Bytes frame, wire::FrameKind kind) {
  const auto message = wire::parse_arp(frame);
  if (!message) {
    return;
  }
  FUZZ_CHECK(kind == wire::FrameKind::kArp);
  std::array<std::byte, wire::kNeighbourFrameBytesMax> rebuilt{};
  const auto again = wire::parse_arp(std::span(rebuilt).first(wire::build_arp(*message, rebuilt)));
  FUZZ_CHECK(again && again->request == message->request && again->sender_mac == message->sender_mac &&
             again->sender == message->sender && again->target_mac == message->target_mac &&
             again->target == message->target);
}

void check_neighbour(Bytes frame, wire::FrameKind kind) {
  const auto message = wire::parse_neighbour(frame);
  if (!message) {
    return;
  }
  FUZZ_CHECK(kind == wire::FrameKind::kNeighbour);
  std::array<std::byte, wire::kNeighbourFrameBytesMax> rebuilt{};
  const auto again = wire::parse_neighbour(std::span(rebuilt).first(wire::build_neighbour(*message, rebuilt)));
  FUZZ_CHECK(again && again->solicitation == message->solicitation && again->source_mac == message->source_mac &&
             again->destination_mac == message->destination_mac && again->source == message->source &&
             again->destination == message->destination && again->target == message->target &&
             again->link_address == message->link_address && again->solicited == message->solicited &&
             again->override_cache == message->override_cache);
}

wire::IpAddress address(std::string_view text) { return *wire::parse_ip_address(text); }

Seed seed(std::string name, Bytes frame) {
  return {std::move(name), Output().number<std::uint8_t>(1).bytes(frame).take()};
}

Seed datagram_seed(std::string name, const wire::IpAddress& source, const wire::IpAddress& destination) {
  constexpr wire::MacAddress kHere{{2, 0, 0, 0, 0, 1}};
  constexpr wire::MacAddress kThere{{2, 0, 0, 0, 0, 2}};
  std::vector<std::byte> frame(wire::datagram_header_bytes(source.family) + 40, std::byte{0x5a});
  wire::write_datagram_headers({kHere, kThere, {source, 4793}, {destination, 4793}, 46}, wire::UdpChecksum::kWrite,
                               frame);
  return seed(std::move(name), frame);
}

}  // namespace

void run(Bytes bytes) {
  Input input(bytes);
  const bool repair = input.flag();
  const Bytes given = input.rest();
  std::vector<std::byte> frame(given.begin(), given.end());
  if (repair) {
    repair_checksums(frame);
  }
  const std::vector<std::byte> before = frame;
  const auto kind = wire::classify_frame(frame);
  check_datagram(frame, kind);
  check_arp(frame, kind);
  check_neighbour(frame, kind);
  FUZZ_CHECK(frame == before);
}

std::vector<Seed> seeds() {
  std::vector<Seed> out;
  out.push_back(datagram_seed("udp4", address("10.0.0.1"), address("10.0.0.2")));
  out.push_back(datagram_seed("udp6", address("fd00::1"), address("fd00::2")));
  std::array<std::byte, wire::kNeighbourFrameBytesMax> frame{};
  for (const bool request : {true, false}) {
    const wire::ArpMessage arp{.request = request,
                               .sender_mac = {{2, 0, 0, 0, 0, 1}},
                               .sender = address("10.0.0.1"),
                               .target_mac = {{2, 0, 0, 0, 0, 2}},
                               .target = address("10.0.0.2")};
    out.push_back(seed(request ? "arp-request" : "arp-reply", std::span(frame).first(wire::build_arp(arp, frame))));
    const wire::NeighbourMessage neighbour{.solicitation = request,
                                           .source_mac = {{2, 0, 0, 0, 0, 1}},
                                           .destination_mac = {{2, 0, 0, 0, 0, 2}},
                                           .source = address("fd00::1"),
                                           .destination = address("fd00::2"),
                                           .target = address("fd00::2"),
                                           .link_address = wire::MacAddress{{2, 0, 0, 0, 0, 1}},
                                           .solicited = !request,
                                           .override_cache = !request};
    out.push_back(seed(request ? "solicitation" : "advertisement",
                       std::span(frame).first(wire::build_neighbour(neighbour, frame))));
  }
  return out;
}

}  // namespace godwit::fuzz
