// Goal: headers that any IP stack accepts, and a parser that accepts nothing else. Checksums are compared with
// published vectors.

#include "dataplane/wire/datagram.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "dataplane/wire/bytes.h"
#include "dataplane/wire/neighbour.h"

namespace godwit::wire {
namespace {

using Bytes = std::vector<std::byte>;

DatagramPath path(const char* source, const char* destination) {
  return {.source_mac = *parse_mac_address("02:00:00:00:00:01"),
          .destination_mac = *parse_mac_address("02:00:00:00:00:02"),
          .source = {*parse_ip_address(source), 4789},
          .destination = {*parse_ip_address(destination), 1234},
          .dscp = 40};
}
const DatagramPath kPath4 = path("10.1.2.3", "10.1.2.4");
const DatagramPath kPath6 = path("fd00::1", "fd00::2");

Bytes datagram(const DatagramPath& p, UdpChecksum checksum, std::size_t payload = 101) {
  Bytes frame(datagram_header_bytes(p.source.address.family) + payload);
  for (std::size_t i = frame.size() - payload; i < frame.size(); ++i) {
    frame[i] = static_cast<std::byte>(i * 7);
  }
  write_datagram_headers(p, checksum, frame);
  return frame;
}

TEST(Checksum, PublishedVectors) {
  // RFC 1071 §3: the sum of these is ddf2.
  const std::uint8_t rfc1071[] = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};
  EXPECT_EQ(internet_checksum(checksum_add(0, std::as_bytes(std::span(rfc1071)))), 0xffff - 0xddf2);
  // A well-known IPv4 header, checksum b861.
  const std::uint8_t header[] = {0x45, 0, 0,    0x73, 0, 0, 0x40, 0,    0x40, 0x11,
                                 0,    0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0,    0xc7};
  EXPECT_EQ(internet_checksum(checksum_add(0, std::as_bytes(std::span(header)))), 0xb861);
  const std::uint8_t odd[] = {0x12, 0x34, 0x56};
  EXPECT_EQ(internet_checksum(checksum_add(0, std::as_bytes(std::span(odd)))), 0xffff - 0x1234 - 0x5600);
}

TEST(Datagram, RoundTrip) {
  for (const DatagramPath& p : {kPath4, kPath6}) {
    for (const UdpChecksum checksum : {UdpChecksum::kNone, UdpChecksum::kWrite}) {
      Bytes frame = datagram(p, checksum);
      EXPECT_EQ(classify_frame(frame), FrameKind::kUdp);
      frame.resize(frame.size() + 10);  // Ethernet padding
      const auto view = parse_datagram(frame, ChecksumCheck::kVerify);
      ASSERT_TRUE(view.has_value()) << to_string(view.error());
      EXPECT_EQ(view->source, p.source);
      EXPECT_EQ(view->destination, p.destination);
      EXPECT_EQ(view->source_mac, p.source_mac);
      EXPECT_EQ(view->destination_mac, p.destination_mac);
      EXPECT_EQ(view->payload.size(), 101U);
    }
  }
}

TEST(Datagram, PayloadFitsTheMtu) {
  EXPECT_EQ(payload_bytes_max(IpFamily::kV4, 1500), 1472U);
  EXPECT_EQ(payload_bytes_max(IpFamily::kV6, 9000), 8952U);
  EXPECT_EQ(payload_bytes_max(IpFamily::kV6, 40), 0U);
}

TEST(Datagram, Refusals) {
  struct Case {
    const char* description;
    DatagramPath path;
    std::size_t at;
    std::uint8_t value;
    DatagramReject expected;
  };
  constexpr std::size_t kIp = kEthernetBytes;
  const Case cases[] = {
      {"VLAN", kPath4, 12, 0x81, DatagramReject::kNotIp},
      {"IPv6 in an IPv4 frame", kPath4, kIp, 0x65, DatagramReject::kIpVersion},
      {"IPv4 options", kPath4, kIp, 0x46, DatagramReject::kIpHeaderLength},
      {"IPv4 length beyond the frame", kPath4, kIp + 2, 0x01, DatagramReject::kIpLength},
      {"IPv4 header bit", kPath4, kIp + 8, 63, DatagramReject::kIpChecksum},
      {"payload bit", kPath4, 60, 0xff, DatagramReject::kUdpChecksum},
      {"UDP length", kPath4, kIp + 25, 5, DatagramReject::kUdpLength},
      {"IPv4 in an IPv6 frame", kPath6, kIp, 0x45, DatagramReject::kIpVersion},
      {"IPv6 length beyond the frame", kPath6, kIp + 4, 1, DatagramReject::kIpLength},
      {"IPv6 extension header", kPath6, kIp + 6, 0, DatagramReject::kNotUdp},
      {"IPv6 address bit", kPath6, kIp + 20, 1, DatagramReject::kUdpChecksum},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.description);
    Bytes frame = datagram(c.path, UdpChecksum::kWrite);
    frame[c.at] = static_cast<std::byte>(c.value);
    const auto view = parse_datagram(frame, ChecksumCheck::kVerify);
    ASSERT_FALSE(view.has_value());
    EXPECT_EQ(to_string(view.error()), to_string(c.expected));
  }
  Bytes fragment = datagram(kPath4, UdpChecksum::kNone);
  fragment[kIp + 6] = std::byte{0x20};
  EXPECT_EQ(parse_datagram(fragment, ChecksumCheck::kTrust).error(), DatagramReject::kIpFragment);
  Bytes none = datagram(kPath6, UdpChecksum::kWrite);
  none[kIp + 46] = none[kIp + 47] = std::byte{0};
  EXPECT_EQ(parse_datagram(none, ChecksumCheck::kVerify).error(), DatagramReject::kUdpChecksum);
}

TEST(Datagram, EveryTruncationIsRefused) {
  for (const DatagramPath& p : {kPath4, kPath6}) {
    const Bytes whole = datagram(p, UdpChecksum::kWrite);
    for (std::size_t length = 0; length < whole.size(); ++length) {
      Bytes frame(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
      EXPECT_FALSE(parse_datagram(frame, ChecksumCheck::kTrust).has_value()) << length;
    }
  }
}

TEST(Address, Text) {
  for (const char* bad : {"", "1.2.3", "1.2.3.4.5", "1.2.3.4/24", "::g", "fe80::1%eth0", "hostname"}) {
    EXPECT_FALSE(parse_ip_address(bad).has_value()) << bad;
  }
  for (const char* bad : {"", "02:00:00:00:00", "02:00:00:00:00:0g", "02-00-00-00-00-01", "02:00:00:00:00:011"}) {
    EXPECT_FALSE(parse_mac_address(bad).has_value()) << bad;
  }
  EXPECT_EQ(to_string(*parse_ip_address("fd00::1")), "fd00::1");
  EXPECT_EQ(to_string(*parse_ip_address("10.0.0.1")), "10.0.0.1");
  EXPECT_EQ(to_string(*parse_mac_address("02:00:aB:00:00:01")), "02:00:ab:00:00:01");
}

TEST(Address, DiffersInAnyByte) {
  const auto expect_differs = [](const auto& address) {
    auto other = address;
    EXPECT_EQ(other, address);
    for (std::uint8_t& byte : other.bytes) {
      byte ^= 0x80;
      EXPECT_NE(other, address);
      byte ^= 0x80;
    }
  };
  expect_differs(*parse_ip_address("fd00:1:2:3:4:5:6:7"));
  expect_differs(*parse_mac_address("02:00:00:00:00:01"));
  EXPECT_NE((IpAddress{.family = IpFamily::kV6}), (IpAddress{.family = IpFamily::kV4}));
}

TEST(Arp, RoundTripAndRefusals) {
  const ArpMessage request{
      .sender_mac = kPath4.source_mac, .sender = kPath4.source.address, .target = kPath4.destination.address};
  Bytes frame(kNeighbourFrameBytesMax);
  frame.resize(build_arp(request, frame));
  EXPECT_EQ(frame.size(), 60U);
  EXPECT_EQ(classify_frame(frame), FrameKind::kArp);
  const auto parsed = parse_arp(frame);
  ASSERT_TRUE(parsed.has_value());
  EXPECT_TRUE(parsed->request);
  EXPECT_EQ(parsed->sender, request.sender);
  EXPECT_EQ(parsed->target, request.target);
  struct Case {
    const char* description;
    std::size_t at;
    std::uint8_t value;
    NeighbourReject expected;
  };
  const Case cases[] = {
      {"not Ethernet", 15, 2, NeighbourReject::kBadFormat},
      {"not IPv4", 16, 0x86, NeighbourReject::kBadFormat},
      {"address length", 18, 8, NeighbourReject::kBadFormat},
      {"operation 3", 21, 3, NeighbourReject::kBadOperation},
      {"group as sender", 22, 0x03, NeighbourReject::kBadAddress},
      {"EtherType", 13, 0, NeighbourReject::kNotNeighbour},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.description);
    Bytes bad = frame;
    bad[c.at] = static_cast<std::byte>(c.value);
    ASSERT_FALSE(parse_arp(bad).has_value());
    EXPECT_EQ(parse_arp(bad).error(), c.expected);
  }
  EXPECT_EQ(parse_arp(std::span(frame).first(41)).error(), NeighbourReject::kTooShort);
}

NeighbourMessage solicitation() {
  const IpAddress target = kPath6.destination.address;
  const IpAddress group = solicited_node_group(target);
  return {.source_mac = kPath6.source_mac,
          .destination_mac = multicast_mac(group),
          .source = kPath6.source.address,
          .destination = group,
          .target = target,
          .link_address = kPath6.source_mac};
}

TEST(Neighbour, RoundTrip) {
  EXPECT_EQ(to_string(solicited_node_group(*parse_ip_address("fd00::12:3456"))), "ff02::1:ff12:3456");
  Bytes frame(kNeighbourFrameBytesMax);
  frame.resize(build_neighbour(solicitation(), frame));
  EXPECT_EQ(classify_frame(frame), FrameKind::kNeighbour);
  const auto asked = parse_neighbour(frame);
  ASSERT_TRUE(asked.has_value()) << to_string(asked.error());
  EXPECT_TRUE(asked->solicitation);
  EXPECT_EQ(asked->target, kPath6.destination.address);
  EXPECT_EQ(asked->link_address, kPath6.source_mac);

  const NeighbourMessage answer{.solicitation = false,
                                .source_mac = kPath6.destination_mac,
                                .destination_mac = kPath6.source_mac,
                                .source = asked->target,
                                .destination = asked->source,
                                .target = asked->target,
                                .link_address = kPath6.destination_mac,
                                .solicited = true,
                                .override_cache = true};
  frame.resize(kNeighbourFrameBytesMax);
  frame.resize(build_neighbour(answer, frame));
  const auto told = parse_neighbour(frame);
  ASSERT_TRUE(told.has_value()) << to_string(told.error());
  EXPECT_FALSE(told->solicitation);
  EXPECT_TRUE(told->solicited && told->override_cache);
  EXPECT_EQ(told->link_address, kPath6.destination_mac);
}

TEST(Neighbour, Refusals) {
  Bytes frame(kNeighbourFrameBytesMax);
  frame.resize(build_neighbour(solicitation(), frame));
  struct Case {
    const char* description;
    std::size_t at;
    std::uint8_t value;
    NeighbourReject expected;
  };
  const Case cases[] = {
      {"forwarded", 21, 254, NeighbourReject::kHopLimit}, {"not ICMPv6", 20, 17, NeighbourReject::kNotNeighbour},
      {"length", 18, 1, NeighbourReject::kBadLength},     {"type", 54, 137, NeighbourReject::kBadOperation},
      {"code", 55, 1, NeighbourReject::kBadOperation},    {"target bit", 70, 0x55, NeighbourReject::kBadChecksum},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.description);
    Bytes bad = frame;
    bad[c.at] = static_cast<std::byte>(c.value);
    ASSERT_FALSE(parse_neighbour(bad).has_value());
    EXPECT_EQ(parse_neighbour(bad).error(), c.expected);
  }
  NeighbourMessage group_target = solicitation();
  group_target.target = group_target.destination;
  Bytes bad(kNeighbourFrameBytesMax);
  bad.resize(build_neighbour(group_target, bad));
  EXPECT_EQ(parse_neighbour(bad).error(), NeighbourReject::kBadAddress);
}

TEST(Hostile, RandomFramesNeverBreakTheParsers) {
  std::mt19937_64 random(7);
  Bytes neighbour(kNeighbourFrameBytesMax);
  build_neighbour(solicitation(), neighbour);
  const Bytes seeds[] = {datagram(kPath4, UdpChecksum::kWrite), datagram(kPath6, UdpChecksum::kWrite), neighbour};
  for (int i = 0; i < 100'000; ++i) {
    Bytes frame = seeds[random() % 3];
    for (std::uint64_t flips = random() % 5; flips > 0; --flips) {
      frame[random() % frame.size()] = static_cast<std::byte>(random());
    }
    frame.resize(random() % 2 == 0 ? frame.size() : random() % frame.size());
    static_cast<void>(classify_frame(frame));
    static_cast<void>(parse_arp(frame));
    static_cast<void>(parse_neighbour(frame));
    if (const auto view = parse_datagram(frame, ChecksumCheck::kTrust)) {
      EXPECT_LE(view->payload.size() + 42, frame.size());
    }
  }
}

}  // namespace
}  // namespace godwit::wire
