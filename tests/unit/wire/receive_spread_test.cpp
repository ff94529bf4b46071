// Goal: the receive-side scaling hash is that of NICs (Microsoft's RSS verification suite), and a source port that is
// found lands on the queue that was wanted.

#include "dataplane/wire/receive_spread.h"

#include <gtest/gtest.h>

#include <set>

#include "dataplane/wire/bytes.h"
#include "dataplane/wire/headers.h"

namespace godwit::wire {
namespace {

std::vector<std::byte> verification_key() {
  constexpr std::uint8_t kKey[] = {0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3,
                                   0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3,
                                   0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa};
  std::vector<std::byte> key;
  for (const std::uint8_t byte : kKey) {
    key.push_back(std::byte{byte});
  }
  return key;
}

UdpEndpoint end(const char* address, std::uint16_t port) { return {parse_ip_address(address).value(), port}; }

struct Vector {
  const char* destination;
  std::uint16_t destination_port;
  const char* source;
  std::uint16_t source_port;
  std::uint32_t addresses_alone, with_ports;
};

// "Verifying the RSS hash calculation", Windows driver documentation.
constexpr Vector kVectors[] = {
    {"161.142.100.80", 1766, "66.9.149.187", 2794, 0x323e8fc2, 0x51ccc178},
    {"65.69.140.83", 4739, "199.92.111.2", 14230, 0xd718262a, 0xc626b0ea},
    {"12.22.207.184", 38024, "24.19.198.95", 12898, 0xd2d0a5de, 0x5c2b394a},
    {"209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xafc7327f},
    {"202.188.127.2", 1303, "153.39.163.191", 44251, 0x5d1809c5, 0x10e828a2},
    {"3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2cc18cd5, 0x40207d3d},
    {"ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0f0c461c, 0xdde51bbf},
    {"fe80::200:f8ff:fe21:67cf", 38024, "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, 0x4b61e985, 0x02d1feef},
};

TEST(ReceiveSpread, HashesAsTheVerificationSuiteSays) {
  for (const Vector& v : kVectors) {
    SCOPED_TRACE(v.source);
    const UdpEndpoint source = end(v.source, v.source_port);
    const UdpEndpoint destination = end(v.destination, v.destination_port);
    const std::size_t bytes = address_bytes(source.address.family);
    std::vector<std::byte> input(2 * bytes + 4);
    store_ip(input, 0, source.address);
    store_ip(input, bytes, destination.address);
    EXPECT_EQ(toeplitz_hash(verification_key(), std::span(input).first(2 * bytes)), v.addresses_alone);
    store_be<std::uint16_t>(input, 2 * bytes, v.source_port);
    store_be<std::uint16_t>(input, 2 * bytes + 2, v.destination_port);
    EXPECT_EQ(toeplitz_hash(verification_key(), input), v.with_ports);
  }
}

TEST(ReceiveSpread, TheQueueStandsInTheTable) {
  ReceiveSpread spread{verification_key(), std::vector<std::uint8_t>(128), 128};
  for (std::uint8_t i = 0; i < 128; ++i) {
    spread.table[i] = i;
  }
  for (const Vector& v : kVectors) {
    EXPECT_EQ(queue_of(spread, end(v.source, v.source_port), end(v.destination, v.destination_port)),
              v.with_ports % 128);
  }
}

TEST(ReceiveSpread, FindsAPortForEachQueueAndNoneTwice) {
  for (const char* const address : {"10.0.0.1", "fd00::1"}) {
    ReceiveSpread spread{verification_key(), std::vector<std::uint8_t>(512), 6};
    for (std::size_t i = 0; i < spread.table.size(); ++i) {
      spread.table[i] = static_cast<std::uint8_t>(i % 6);
    }
    const UdpEndpoint destination = end(address, 4793);
    const IpAddress source = parse_ip_address(*address == 'f' ? "fd00::2" : "10.0.0.2").value();
    std::set<std::uint16_t> found;
    for (std::uint16_t lane = 0; lane < 32; ++lane) {
      const auto queue = static_cast<std::uint8_t>(lane % 6);
      const auto first = static_cast<std::uint16_t>(65504 + lane);  // goes round the end of the range
      const auto port = find_source_port(spread, source, destination, queue, first, 32);
      ASSERT_TRUE(port);
      EXPECT_GE(*port, kDynamicPortFirst);
      EXPECT_EQ(queue_of(spread, {source, *port}, destination), queue);
      EXPECT_TRUE(found.insert(*port).second);
    }
    EXPECT_FALSE(find_source_port(spread, source, destination, 6, 49152, 32)) << "a queue that nothing lands on";
  }
}

TEST(ReceiveSpread, ValidOrNot) {
  const ReceiveSpread good{verification_key(), {0, 1, 0, 1}, 2};
  EXPECT_TRUE(is_valid(good));
  const auto with = [&good](auto change) {
    ReceiveSpread bad = good;
    change(bad);
    return bad;
  };
  EXPECT_FALSE(is_valid(with([](ReceiveSpread& s) { s.key.resize(39); })));
  EXPECT_FALSE(is_valid(with([](ReceiveSpread& s) { s.key.resize(65); })));
  EXPECT_FALSE(is_valid(with([](ReceiveSpread& s) { s.table.clear(); })));
  EXPECT_FALSE(is_valid(with([](ReceiveSpread& s) { s.table.resize(3); })));
  EXPECT_FALSE(is_valid(with([](ReceiveSpread& s) { s.table.resize(4096); })));
  EXPECT_FALSE(is_valid(with([](ReceiveSpread& s) { s.table[3] = 2; })));
  EXPECT_FALSE(is_valid(with([](ReceiveSpread& s) { s.queues = 0; })));
  EXPECT_FALSE(is_valid(with([](ReceiveSpread& s) { s.queues = 257; })));
}

}  // namespace
}  // namespace godwit::wire
