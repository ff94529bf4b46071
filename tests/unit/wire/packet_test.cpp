// Goal: only well-formed packets pass, each refusal names its rule, and no input makes the parsers read beyond it.

#include "dataplane/wire/packet.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace godwit::wire {
namespace {

std::vector<std::byte> valid_packet(PacketType type, std::size_t body_bytes, std::uint8_t flags = 0) {
  std::vector<std::byte> bytes(kHeaderBytes + body_bytes + kTagBytes);
  write_header({.type = type, .flags = flags, .lane = 3, .flow_id = 7, .packet_number = 0x0102030405060708}, bytes);
  return bytes;
}

TEST(Packet, HeaderBytesAreAsDocumented) {
  const auto bytes = valid_packet(PacketType::kPages, 0, kFlagAckNow);
  const std::uint8_t expected[kHeaderBytes] = {0x21, 0x02, 3, 0, 7, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1};
  for (std::size_t i = 0; i < kHeaderBytes; ++i) {
    EXPECT_EQ(static_cast<std::uint8_t>(bytes[i]), expected[i]) << i;
  }
}

TEST(Packet, RoundTrip) {
  auto bytes = valid_packet(PacketType::kMessage, 100, kFlagAckNow | kFlagChecksum);
  const auto packet = parse_packet(bytes);
  ASSERT_TRUE(packet.has_value());
  EXPECT_EQ(packet->header.type, PacketType::kMessage);
  EXPECT_EQ(packet->header.flags, kFlagAckNow | kFlagChecksum);
  EXPECT_EQ(packet->header.lane, 3);
  EXPECT_EQ(packet->header.flow_id, 7U);
  EXPECT_EQ(packet->header.packet_number, 0x0102030405060708U);
  EXPECT_EQ(packet->body.size(), 100U);
}

TEST(Packet, Refusals) {
  struct Case {
    const char* description;
    std::size_t bytes;
    std::size_t at;
    std::uint8_t value;
    Reject expected;
  };
  const Case cases[] = {
      {"empty", 0, 0, 0, Reject::kTooShort},
      {"no room for a tag", 31, 0, 0x25, Reject::kTooShort},
      {"longer than any MTU", kDatagramBytesMaximum + 1, 0, 0x25, Reject::kTooLong},
      {"version 0", 64, 0, 0x05, Reject::kVersion},
      {"version 1", 64, 0, 0x15, Reject::kVersion},
      {"type 0", 64, 0, 0x20, Reject::kType},
      {"type 3 is not in use", 64, 0, 0x23, Reject::kType},
      {"type 15", 64, 0, 0x2f, Reject::kType},
      {"unknown flag", 64, 1, 0x10, Reject::kFlags},
      {"highest flag", 64, 1, 0x80, Reject::kFlags},
      {"ack packet without ack block", 64, 0, 0x22, Reject::kFlags},
      {"flow id 0", 64, 4, 0x00, Reject::kFlowId},
      {"packet number 2^62", 64, 15, 0x40, Reject::kPacketNumber},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.description);
    std::vector<std::byte> bytes(c.bytes);
    if (bytes.size() >= kHeaderBytes) {
      write_header({.type = PacketType::kProbe, .flow_id = 1}, bytes);
      bytes[c.at] = static_cast<std::byte>(c.value);
    }
    const auto packet = parse_packet(bytes);
    ASSERT_FALSE(packet.has_value());
    EXPECT_EQ(packet.error(), c.expected);
  }
}

TEST(Packet, RandomBytesNeverBreakTheParser) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 100'000; ++i) {
    std::vector<std::byte> bytes(random() % 64);
    for (std::byte& b : bytes) {
      b = static_cast<std::byte>(random() % 4 == 0 ? random() : random() % 3);
    }
    if (const auto packet = parse_packet(bytes)) {
      EXPECT_EQ(packet->body.size() + kHeaderBytes + kTagBytes, bytes.size());
    }
  }
}

}  // namespace
}  // namespace godwit::wire
