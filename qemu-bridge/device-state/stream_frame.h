#pragma once
// How the two bridges frame a QEMU device-state stream inside DeviceState chunks, which a data plane may cut anew:
//   data: kind 1, u32 length (little endian, 1 .. kDataBytesMax), the bytes
//   live: kind 2, u32 length 8, u64 count: the first `count` bytes of the stream were written while the guest still ran
// The live part holds nothing that reads guest RAM (it is setup and RAM that QEMU itself carries: ROMs, video RAM), so
// the destination loads it ahead of the switchover. Pure, any thread. What a peer sends is hostile: one bad frame and
// the parser stays failed.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace godwit::bridge {

inline constexpr std::size_t kChunkBytesMax = 65536;  // of DeviceState.data
inline constexpr std::size_t kFrameHeaderBytes = 5;
inline constexpr std::size_t kDataBytesMax = kChunkBytesMax - kFrameHeaderBytes;

/// One whole chunk holding one data frame; `bytes` is 1 .. kDataBytesMax long.
std::string encode_data_frame(std::span<const std::byte> bytes);
std::string encode_live_frame(std::uint64_t count);

class FrameParser {
 public:
  enum class Error { kUnknownKind, kBadLength, kBadLiveCount };
  struct Handlers {
    std::function<void(std::span<const std::byte>)> on_data;
    std::function<void(std::uint64_t)> on_live;
  };

  explicit FrameParser(Handlers handlers) : handlers_(std::move(handlers)) {}

  std::expected<void, Error> consume(std::span<const std::byte> bytes);
  /// False while a frame is incomplete: a stream must not end there.
  [[nodiscard]] bool at_frame_end() const { return partial_.empty(); }
  [[nodiscard]] std::uint64_t data_bytes() const { return data_bytes_; }

 private:
  std::expected<std::size_t, Error> parse_one(std::span<const std::byte> bytes);

  Handlers handlers_;
  std::vector<std::byte> partial_;  // less than one frame
  std::uint64_t data_bytes_ = 0;
  std::uint64_t live_count_ = 0;
  std::optional<Error> failed_;
};

std::string_view text_of(FrameParser::Error error);

}  // namespace godwit::bridge
