// Goal: what the writers write the parser reads back; every rule of a body is checked, and named when broken.

#include "dataplane/wire/frames.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <vector>

#include "dataplane/wire/bytes.h"

namespace godwit::wire {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kNumber = 1000;

PacketHeader header(PacketType type, bool ack = false) {
  return {.type = type,
          .flags = ack ? std::uint8_t{kFlagAckBlock} : std::uint8_t{0},
          .flow_id = 1,
          .packet_number = kNumber};
}

Bytes pages_body(std::vector<PageDesc> descs) {
  std::size_t payload = 0;
  for (const PageDesc& desc : descs) {
    payload += desc.length;
  }
  Bytes bytes(kPrefixBytes + descs.size() * kPageDescBytes + payload);
  std::size_t at =
      write_prefix({.count = static_cast<std::uint8_t>(descs.size()), .floor = kNumber - 5}, kNumber, bytes);
  for (const PageDesc& desc : descs) {
    at += write_page_desc(desc, std::span(bytes).subspan(at));
  }
  return bytes;
}

Bytes runs_body(std::vector<ZeroRun> runs) {
  Bytes bytes(kPrefixBytes + runs.size() * kZeroRunBytes);
  std::size_t at = write_prefix({.count = static_cast<std::uint8_t>(runs.size()), .floor = kNumber}, kNumber, bytes);
  for (const ZeroRun& run : runs) {
    at += write_zero_run(run, std::span(bytes).subspan(at));
  }
  return bytes;
}

Bytes message_body(std::uint64_t offset, std::uint16_t length) {
  Bytes bytes(kPrefixBytes + kMessageOffsetBytes + length);
  const std::size_t at = write_prefix({.length = length, .floor = kNumber}, kNumber, bytes);
  write_message_offset(offset, std::span(bytes).subspan(at));
  return bytes;
}

Bytes ack_body(const AckBlock& ack) {
  Bytes bytes(ack_block_bytes(ack.word_count));
  write_ack_block(ack, bytes);
  return bytes;
}

const AckBlock kAck{
    .largest = 130, .floor = 70, .edge = 386, .ack_delay_us = 25, .word_count = 2, .words = {0x5, 0xff00}};

TEST(Frames, AckBlockRoundTrip) {
  Body body;
  ASSERT_EQ(parse_body(header(PacketType::kAck, true), ack_body(kAck), body), BadBody::kNone);
  EXPECT_TRUE(body.has_ack);
  EXPECT_EQ(body.ack.largest, kAck.largest);
  EXPECT_EQ(body.ack.floor, kAck.floor);
  EXPECT_EQ(body.ack.edge, kAck.edge);
  EXPECT_EQ(body.ack.ack_delay_us, 25U);
  EXPECT_EQ(body.ack.word_count, 2);
  EXPECT_EQ(body.ack.words[0], 0x5U);
  EXPECT_EQ(body.ack.words[1], 0xff00U);
}

TEST(Frames, PagesRoundTripBehindAnAckBlock) {
  Bytes bytes = ack_body(kAck);
  Bytes content =
      pages_body({{.page = 5, .round = 9, .length = 4096}, {.page = kPageNumberLimit - 1, .round = 9, .length = 4096}});
  content.back() = std::byte{0x77};
  bytes.insert(bytes.end(), content.begin(), content.end());
  Body body;
  ASSERT_EQ(parse_body(header(PacketType::kPages, true), bytes, body), BadBody::kNone);
  EXPECT_EQ(body.floor, kNumber - 5);
  ASSERT_EQ(body.count, 2);
  EXPECT_EQ(body.pages[0].page, 5U);
  EXPECT_EQ(body.pages[1].page, kPageNumberLimit - 1);
  EXPECT_EQ(body.pages[1].round, 9U);
  EXPECT_EQ(body.page_bytes[0].size(), 4096U);
  EXPECT_EQ(body.page_bytes[1].back(), std::byte{0x77});
}

TEST(Frames, FragmentRunsAndMessageRoundTrip) {
  Body body;
  ASSERT_EQ(parse_body(header(PacketType::kPages), pages_body({{.page = 1, .offset = 2816, .length = 1280}}), body),
            BadBody::kNone);
  EXPECT_EQ(body.pages[0].offset, 2816);
  const Bytes runs =
      runs_body({{.first = 1, .count = 2, .round = 3}, {.first = 9, .count = 1}});  // the body points into it
  ASSERT_EQ(parse_body(header(PacketType::kZeroRuns), runs, body), BadBody::kNone);
  EXPECT_EQ(zero_run(body, 0).count, 2U);
  EXPECT_EQ(zero_run(body, 1).first, 9U);
  ASSERT_EQ(parse_body(header(PacketType::kMessage), message_body(1ULL << 40, 300), body), BadBody::kNone);
  EXPECT_EQ(body.message_offset, 1ULL << 40);
  EXPECT_EQ(body.message_bytes.size(), 300U);
}

TEST(Frames, BrokenBodies) {
  struct Case {
    const char* description;
    PacketType type;
    bool ack;
    Bytes bytes;
    std::function<void(Bytes&)> damage;
    BadBody expected;
  };
  const auto set = [](std::size_t at, std::uint8_t value) {
    return [=](Bytes& b) { b[at] = static_cast<std::byte>(value); };
  };
  const auto cut = [](std::size_t by) { return [=](Bytes& b) { b.resize(b.size() - by); }; };
  const auto add = [](Bytes& b) { b.push_back({}); };
  const Bytes one = pages_body({{.page = 1, .length = 4096}});
  const Bytes run = runs_body({{.first = 1, .count = 2}});
  const Case cases[] = {
      {"ack cut", PacketType::kAck, true, ack_body(kAck), cut(1), BadBody::kTruncated},
      {"ack fixed part cut", PacketType::kAck, true, ack_body(kAck), cut(20), BadBody::kTruncated},
      {"ack trailing", PacketType::kAck, true, ack_body(kAck), add, BadBody::kTrailing},
      {"ack reserved", PacketType::kAck, true, ack_body(kAck), set(22, 1), BadBody::kReserved},
      {"ack floor below zero", PacketType::kAck, true, ack_body(kAck), set(10, 1), BadBody::kAckRange},
      {"ack words too many", PacketType::kAck, true, ack_body(kAck), set(20, 17), BadBody::kAckWords},
      {"ack words below number 0", PacketType::kAck, true, ack_body(kAck), set(20, 4), BadBody::kAckWords},
      {"ack bit above largest", PacketType::kAck, true, ack_body(kAck), set(24, 8), BadBody::kAckWords},
      {"no prefix", PacketType::kPages, false, Bytes(7), [](Bytes&) {}, BadBody::kTruncated},
      {"prefix reserved", PacketType::kPages, false, one, set(1, 1), BadBody::kReserved},
      {"floor below zero", PacketType::kPages, false, one, set(7, 1), BadBody::kFloor},
      {"no page", PacketType::kPages, false, one, set(0, 0), BadBody::kItemCount},
      {"three pages", PacketType::kPages, false, one, set(0, 3), BadBody::kItemCount},
      {"length of pages", PacketType::kPages, false, one, set(2, 1), BadBody::kLength},
      {"page bytes cut", PacketType::kPages, false, one, cut(1), BadBody::kTruncated},
      {"page trailing", PacketType::kPages, false, one, add, BadBody::kTrailing},
      {"page reserved", PacketType::kPages, false, one, set(kPrefixBytes + 16, 1), BadBody::kReserved},
      {"page number 2^52", PacketType::kPages, false, one, set(kPrefixBytes + 14, 0x10), BadBody::kPageRange},
      {"beyond the page", PacketType::kPages, false, one, set(kPrefixBytes + 4, 64), BadBody::kFragment},
      {"empty fragment", PacketType::kPages, false, one, set(kPrefixBytes + 7, 0), BadBody::kFragment},
      {"no run", PacketType::kZeroRuns, false, run, set(0, 0), BadBody::kItemCount},
      {"33 runs", PacketType::kZeroRuns, false, run, set(0, 33), BadBody::kItemCount},
      {"runs cut", PacketType::kZeroRuns, false, run, cut(1), BadBody::kTruncated},
      {"runs trailing", PacketType::kZeroRuns, false, run, add, BadBody::kTrailing},
      {"run empty", PacketType::kZeroRuns, false, run, set(kPrefixBytes + 8, 0), BadBody::kRunRange},
      {"run too long", PacketType::kZeroRuns, false, run, set(kPrefixBytes + 14, 0x10), BadBody::kRunRange},
      {"run wraps", PacketType::kZeroRuns, false, run, set(kPrefixBytes + 15, 0xff), BadBody::kRunRange},
      {"run reserved", PacketType::kZeroRuns, false, run, set(kPrefixBytes + 20, 1), BadBody::kReserved},
      {"message cut", PacketType::kMessage, false, message_body(0, 10), cut(1), BadBody::kTruncated},
      {"message trailing", PacketType::kMessage, false, message_body(0, 10), add, BadBody::kTrailing},
      {"message empty", PacketType::kMessage, false, message_body(0, 0), [](Bytes&) {}, BadBody::kLength},
      {"message offset", PacketType::kMessage, false, message_body(1ULL << 62, 10), [](Bytes&) {},
       BadBody::kStreamRange},
      {"message with count", PacketType::kMessage, false, message_body(0, 10), set(0, 1), BadBody::kItemCount},
      {"probe with content", PacketType::kProbe, false, Bytes(9), [](Bytes&) {}, BadBody::kTrailing},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.description);
    Bytes bytes = c.bytes;
    c.damage(bytes);
    Body body;
    EXPECT_EQ(to_string(parse_body(header(c.type, c.ack), bytes, body)), to_string(c.expected));
  }
}

TEST(Frames, FragmentsTravelAlone) {
  Body body;
  const Bytes bytes = pages_body({{.page = 1, .length = 4096}, {.page = 2, .length = 64}});
  EXPECT_EQ(parse_body(header(PacketType::kPages), bytes, body), BadBody::kFragment);
}

TEST(Frames, DamagedBodiesNeverBreakTheParser) {
  std::mt19937_64 random(1);
  const std::pair<PacketType, Bytes> seeds[] = {
      {PacketType::kPages, pages_body({{.page = 1, .offset = 64, .length = 128}})},
      {PacketType::kZeroRuns,
       runs_body({{.first = 1, .count = 2}, {.first = 9, .count = 1}, {.first = 20, .count = 8}})},
      {PacketType::kMessage, message_body(77, 40)},
      {PacketType::kProbe, Bytes(kPrefixBytes)},
  };
  int accepted = 0;
  for (int i = 0; i < 200'000; ++i) {
    const auto& [type, content] = seeds[random() % 4];
    const bool ack = random() % 2 == 0;
    Bytes bytes = ack ? ack_body(kAck) : Bytes();
    bytes.insert(bytes.end(), content.begin(), content.end());
    for (std::uint64_t flips = random() % 4; flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    bytes.resize(random() % 8 == 0 ? random() % bytes.size() : bytes.size());
    Body body;
    if (parse_body(header(type, ack), bytes, body) != BadBody::kNone) {
      continue;
    }
    ++accepted;
    EXPECT_LE(body.floor, kNumber);
    for (std::size_t run = 0; type == PacketType::kZeroRuns && run < body.count; ++run) {
      EXPECT_LE(zero_run(body, run).first + zero_run(body, run).count, kPageNumberLimit);
    }
    if (type == PacketType::kPages) {
      EXPECT_LE(body.pages[0].offset + body.page_bytes[0].size(), 4096U);
    }
  }
  EXPECT_GT(accepted, 10'000);  // otherwise nothing is reached
}

}  // namespace
}  // namespace godwit::wire
