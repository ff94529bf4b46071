#include "dataplane/wire/packet.h"

#include <optional>

#include "dataplane/wire/bytes.h"

namespace godwit::wire {

namespace {

// Offsets in the header.
constexpr std::size_t kAtVersionType = 0;
constexpr std::size_t kAtFlags = 1;
constexpr std::size_t kAtLane = 2;
constexpr std::size_t kAtFlowId = 4;
constexpr std::size_t kAtPacketNumber = 8;
static_assert(kAtPacketNumber + sizeof(std::uint64_t) == kHeaderBytes);

constexpr bool is_known(std::uint8_t type) {
  switch (static_cast<PacketType>(type)) {
    case PacketType::kPages:
    case PacketType::kAck:
    case PacketType::kZeroRuns:
    case PacketType::kProbe:
    case PacketType::kMessage:
      return true;
  }
  return false;
}

/// Nothing: it is one.
std::optional<Reject> parse_into(std::span<std::byte> datagram, PacketView& view) {
  if (datagram.size() < kHeaderBytes + kTagBytes) {
    return Reject::kTooShort;
  }
  if (datagram.size() > kDatagramBytesMaximum) {
    return Reject::kTooLong;
  }
  const auto version_type = load_le<std::uint8_t>(datagram, kAtVersionType);
  if (version_type >> 4 != kProtocolVersion) {
    return Reject::kVersion;
  }
  const auto type = static_cast<std::uint8_t>(version_type & 0x0f);
  if (!is_known(type)) {
    return Reject::kType;
  }
  view.header.type = static_cast<PacketType>(type);
  view.header.flags = load_le<std::uint8_t>(datagram, kAtFlags);
  view.header.lane = load_le<std::uint16_t>(datagram, kAtLane);
  view.header.flow_id = load_le<std::uint32_t>(datagram, kAtFlowId);
  view.header.packet_number = load_le<std::uint64_t>(datagram, kAtPacketNumber);
  // An ack packet is its ack block.
  const bool ack_without_block = view.header.type == PacketType::kAck && (view.header.flags & kFlagAckBlock) == 0;
  if ((view.header.flags & ~kFlagsKnown) != 0 || ack_without_block) {
    return Reject::kFlags;
  }
  if (view.header.flow_id == 0) {
    return Reject::kFlowId;
  }
  if (view.header.packet_number > kPacketNumberMax) {
    return Reject::kPacketNumber;
  }
  view.body = datagram.subspan(kHeaderBytes, datagram.size() - kHeaderBytes - kTagBytes);
  return std::nullopt;
}

}  // namespace

std::string_view to_string(Reject reject) {
  switch (reject) {
    case Reject::kTooShort:
      return "too_short";
    case Reject::kTooLong:
      return "too_long";
    case Reject::kVersion:
      return "version";
    case Reject::kType:
      return "type";
    case Reject::kFlags:
      return "flags";
    case Reject::kFlowId:
      return "flow_id";
    case Reject::kPacketNumber:
      return "packet_number";
    case Reject::kCount:
      break;
  }
  return "?";
}

void write_header(const PacketHeader& header, std::span<std::byte> out) {
  const auto version_type = static_cast<std::uint8_t>(kProtocolVersion << 4 | static_cast<std::uint8_t>(header.type));
  store_le<std::uint8_t>(out, kAtVersionType, version_type);
  store_le<std::uint8_t>(out, kAtFlags, header.flags);
  store_le<std::uint16_t>(out, kAtLane, header.lane);
  store_le<std::uint32_t>(out, kAtFlowId, header.flow_id);
  store_le<std::uint64_t>(out, kAtPacketNumber, header.packet_number);
}

std::expected<PacketView, Reject> parse_packet(std::span<std::byte> datagram) {
  // Made where it is returned, in the units in which it is read.
  std::expected<PacketView, Reject> parsed;
  if (const auto bad = parse_into(datagram, *parsed)) {
    parsed = std::unexpected(*bad);
  }
  return parsed;
}

}  // namespace godwit::wire
