// A packet: header, then, behind the tag, the body.
// Input: one UDP payload; its last 16 bytes stand for the tag.
// Properties: an accepted header and an accepted body are what our own writers write for the same fields, byte for byte
// (so there is one encoding of each, and no byte that nobody checks); a byte less or more is refused; nothing changes.

#include "dataplane/wire/packet.h"

#include <algorithm>

#include "dataplane/wire/frames.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

constexpr std::size_t kPageBytes = 4096;

std::size_t write_content(const wire::PacketHeader& header, const wire::Body& body, std::span<std::byte> out) {
  std::size_t at = 0;
  switch (header.type) {
    case wire::PacketType::kPages:
      for (std::size_t i = 0; i < body.count; ++i) {
        at += wire::write_page_desc(body.pages[i], out.subspan(at));
      }
      for (std::size_t i = 0; i < body.count; ++i) {
        std::memcpy(out.data() + at, body.page_bytes[i].data(), body.page_bytes[i].size());
        at += body.page_bytes[i].size();
      }
      break;
    case wire::PacketType::kZeroRuns:
      for (std::size_t i = 0; i < body.count; ++i) {
        at += wire::write_zero_run(wire::zero_run(body, i), out.subspan(at));
      }
      break;
    case wire::PacketType::kMessage:
      at += wire::write_message_offset(body.message_offset, out);
      std::memcpy(out.data() + at, body.message_bytes.data(), body.message_bytes.size());
      at += body.message_bytes.size();
      break;
    case wire::PacketType::kProbe:
      std::fill_n(out.begin(), body.padding_bytes, std::byte{0});
      at += body.padding_bytes;
      break;
    case wire::PacketType::kAck:
      break;
  }
  return at;
}

std::size_t write_body(const wire::PacketHeader& header, const wire::Body& body, std::span<std::byte> out) {
  std::size_t at = body.has_ack ? wire::write_ack_block(body.ack, out) : 0;
  if (wire::is_ack_eliciting(header.type)) {
    const std::size_t length = header.type == wire::PacketType::kMessage ? body.message_bytes.size()
                               : header.type == wire::PacketType::kProbe ? body.padding_bytes
                                                                         : 0;
    const wire::Prefix prefix{.count = body.count, .length = static_cast<std::uint16_t>(length), .floor = body.floor};
    at += wire::write_prefix(prefix, header.packet_number, out.subspan(at));
    at += write_content(header, body, out.subspan(at));
  }
  return at;
}

/// What frames.h promises of an accepted body.
void check_fields(const wire::PacketHeader& header, const wire::Body& body) {
  if (body.has_ack) {
    FUZZ_CHECK(body.ack.floor <= body.ack.largest + 1 && body.ack.edge >= body.ack.largest);
    FUZZ_CHECK(body.ack.word_count <= wire::kAckWordsMax && body.ack.largest < wire::kStreamOffsetLimit);
  }
  if (!wire::is_ack_eliciting(header.type)) {
    return;
  }
  FUZZ_CHECK(body.floor <= header.packet_number);
  if (header.type == wire::PacketType::kPages) {
    for (std::size_t i = 0; i < body.count; ++i) {
      const wire::PageDesc& desc = body.pages[i];
      FUZZ_CHECK(desc.page < wire::kPageNumberLimit && desc.length > 0 && desc.offset + desc.length <= kPageBytes);
      FUZZ_CHECK(body.page_bytes[i].size() == desc.length);
      FUZZ_CHECK(body.count == 1 || desc.length == kPageBytes);
    }
  } else if (header.type == wire::PacketType::kZeroRuns) {
    for (std::size_t i = 0; i < body.count; ++i) {
      const wire::ZeroRun run = wire::zero_run(body, i);
      FUZZ_CHECK(run.count > 0 && run.first < wire::kPageNumberLimit);
      FUZZ_CHECK(run.count <= wire::kPageNumberLimit - run.first);
    }
  } else if (header.type == wire::PacketType::kMessage) {
    FUZZ_CHECK(!body.message_bytes.empty() && body.message_offset < wire::kStreamOffsetLimit);
  }
}

Seed seed(std::string name, wire::PacketHeader header, const wire::Body& body) {
  header.flags = static_cast<std::uint8_t>(header.flags | (body.has_ack ? wire::kFlagAckBlock : 0));
  std::vector<std::byte> out(wire::kDatagramBytesMaximum);
  wire::write_header(header, out);
  const std::size_t length = wire::kHeaderBytes + write_body(header, body, std::span(out).subspan(wire::kHeaderBytes));
  out.resize(length + wire::kTagBytes);
  return {std::move(name), std::move(out)};
}

}  // namespace

void run(Bytes input) {
  std::vector<std::byte> datagram(input.begin(), input.end());
  const auto packet = wire::parse_packet(datagram);
  FUZZ_CHECK(same(datagram, input));
  if (!packet) {
    return;
  }
  FUZZ_CHECK(packet->header.flow_id != 0 && packet->header.packet_number <= wire::kPacketNumberMax);
  FUZZ_CHECK(packet->body.size() + wire::kHeaderBytes + wire::kTagBytes == datagram.size());
  std::vector<std::byte> rebuilt(datagram.size() + wire::kHeaderBytes);
  wire::write_header(packet->header, rebuilt);
  FUZZ_CHECK(same(std::span(rebuilt).first(wire::kHeaderBytes), input.first(wire::kHeaderBytes)));

  wire::Body body;
  if (wire::parse_body(packet->header, packet->body, body) != wire::BadBody::kNone) {
    return;
  }
  check_fields(packet->header, body);
  const std::size_t length = write_body(packet->header, body, rebuilt);
  FUZZ_CHECK(same(std::span(rebuilt).first(length), packet->body));

  wire::Body other;
  FUZZ_CHECK(packet->body.empty() ||
             wire::parse_body(packet->header, packet->body.first(length - 1), other) != wire::BadBody::kNone);
  FUZZ_CHECK(wire::parse_body(packet->header, std::span(rebuilt).first(length + 1), other) != wire::BadBody::kNone);
}

std::vector<Seed> seeds() {
  const std::vector<std::byte> page(kPageBytes, std::byte{0x33});
  wire::Body body;
  std::vector<Seed> out;
  out.push_back(seed("probe", {.type = wire::PacketType::kProbe, .flow_id = 7, .packet_number = 3}, body));
  body.padding_bytes = 100;
  out.push_back(seed("mtu-probe", {.type = wire::PacketType::kProbe, .flow_id = 7, .packet_number = 3}, body));
  body.has_ack = true;
  body.ack = {.largest = 130, .floor = 60, .edge = 400, .ack_delay_us = 9, .word_count = 2, .words = {7, ~0ULL}};
  out.push_back(seed("ack", {.type = wire::PacketType::kAck, .lane = 1, .flow_id = 7, .packet_number = 4}, body));
  body.floor = 3;
  body.message_offset = 1000;
  body.message_bytes = std::span(page).first(100);
  out.push_back(seed("message", {.type = wire::PacketType::kMessage, .flow_id = 7, .packet_number = 5}, body));
  body.has_ack = false;
  body.count = 1;
  body.pages[0] = {.page = 5, .round = 2, .offset = 64, .length = 128};
  body.page_bytes[0] = std::span(page).first(128);
  out.push_back(seed("part", {.type = wire::PacketType::kPages, .lane = 1, .flow_id = 7, .packet_number = 6}, body));
  body.pages[0] = {.page = 5, .round = 2, .offset = 0, .length = kPageBytes};
  body.page_bytes[0] = page;
  out.push_back(seed("page", {.type = wire::PacketType::kPages, .lane = 1, .flow_id = 7, .packet_number = 6}, body));
  std::array<std::byte, 2 * wire::kZeroRunBytes> runs{};
  wire::write_zero_run({.first = 1, .count = 2, .round = 3}, runs);
  wire::write_zero_run({.first = 100, .count = 1, .round = 3}, std::span(runs).subspan(wire::kZeroRunBytes));
  body.count = 2;
  body.run_bytes = runs;
  out.push_back(seed("runs", {.type = wire::PacketType::kZeroRuns, .lane = 1, .flow_id = 7, .packet_number = 8}, body));
  return out;
}

}  // namespace godwit::fuzz
