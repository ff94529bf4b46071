#include "qemu-bridge/device-state/stream_frame.h"

#include "base/check.h"

namespace godwit::bridge {
namespace {

constexpr std::uint8_t kKindData = 1;
constexpr std::uint8_t kKindLive = 2;
constexpr std::size_t kLiveBytes = 8;

void append_little_endian(std::string& out, std::uint64_t value, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    out.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
  }
}

std::uint64_t read_little_endian(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) {
    value = (value << 8) | std::to_integer<std::uint64_t>(bytes[i]);
  }
  return value;
}

}  // namespace

std::string encode_data_frame(std::span<const std::byte> bytes) {
  GW_ASSERT(!bytes.empty() && bytes.size() <= kDataBytesMax);
  std::string out;
  out.reserve(kFrameHeaderBytes + bytes.size());
  out.push_back(static_cast<char>(kKindData));
  append_little_endian(out, bytes.size(), 4);
  out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return out;
}

std::string encode_live_frame(std::uint64_t count) {
  std::string out;
  out.push_back(static_cast<char>(kKindLive));
  append_little_endian(out, kLiveBytes, 4);
  append_little_endian(out, count, kLiveBytes);
  return out;
}

std::expected<void, FrameParser::Error> FrameParser::consume(std::span<const std::byte> bytes) {
  if (failed_) {
    return std::unexpected(*failed_);
  }
  std::vector<std::byte> joined;
  if (!partial_.empty()) {
    joined = std::move(partial_);
    joined.insert(joined.end(), bytes.begin(), bytes.end());
    bytes = joined;
    partial_.clear();
  }
  while (!bytes.empty()) {
    const auto used = parse_one(bytes);
    if (!used) {
      failed_ = used.error();
      return std::unexpected(used.error());
    }
    if (*used == 0) {
      break;
    }
    bytes = bytes.subspan(*used);
  }
  partial_.assign(bytes.begin(), bytes.end());
  return {};
}

/// Bytes used by the frame at the front, 0 when it is not whole yet.
std::expected<std::size_t, FrameParser::Error> FrameParser::parse_one(std::span<const std::byte> bytes) {
  const auto kind = std::to_integer<std::uint8_t>(bytes[0]);
  if (kind != kKindData && kind != kKindLive) {
    return std::unexpected(Error::kUnknownKind);
  }
  if (bytes.size() < kFrameHeaderBytes) {
    return 0;
  }
  const std::uint64_t length = read_little_endian(bytes.subspan(1, 4));
  if (kind == kKindData ? (length == 0 || length > kDataBytesMax) : length != kLiveBytes) {
    return std::unexpected(Error::kBadLength);
  }
  if (bytes.size() < kFrameHeaderBytes + length) {
    return 0;
  }
  const auto body = bytes.subspan(kFrameHeaderBytes, length);
  if (kind == kKindData) {
    data_bytes_ += length;
    handlers_.on_data(body);
  } else {
    const std::uint64_t count = read_little_endian(body);
    if (count > data_bytes_ || count < live_count_) {
      return std::unexpected(Error::kBadLiveCount);
    }
    live_count_ = count;
    handlers_.on_live(count);
  }
  return kFrameHeaderBytes + length;
}

std::string_view text_of(FrameParser::Error error) {
  switch (error) {
    case FrameParser::Error::kUnknownKind:
      return "device state: a frame of unknown kind";
    case FrameParser::Error::kBadLength:
      return "device state: a frame of impossible length";
    case FrameParser::Error::kBadLiveCount:
      return "device state: a live mark outside of the stream";
  }
  return "device state: unknown error";
}

}  // namespace godwit::bridge
