#pragma once
// The messages that the two ends of a migration exchange on the priority lane, and their bytes.
//
// Pure; any thread. Little-endian, first byte the type, each at most kMessageBytesMax, nothing after its last field.
// decode_message() is the edge: it takes hostile bytes and gives either a message whose every field is in its
// documented range, or one line that says which field of which message is not. Spans in a decoded message point into
// the bytes that were given.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "dataplane/pages/page_digest.h"

namespace godwit::wire {

inline constexpr std::uint16_t kTransferVersion = 1;
inline constexpr std::size_t kMessageBytesMax = 65536;
inline constexpr std::size_t kRegionsMax = 64;
inline constexpr std::size_t kRegionNameBytesMax = 255;
inline constexpr std::uint64_t kPagesMax = std::uint64_t{1} << 36;  // 256 TiB of guest
inline constexpr std::size_t kAbortTextBytesMax = 512;
inline constexpr std::size_t kChunkDigestsMax = 4000;                   // of one message: 64,000 bytes
inline constexpr std::size_t kPayloadBytesMax = kMessageBytesMax - 16;  // of DeviceState and TablePiece

/// One QEMU RAM backend as both ends must have it: they number pages through the regions in order.
struct RegionShape {
  std::string name;
  std::uint64_t pages = 0;
  bool operator==(const RegionShape&) const = default;
};

enum class VerifyLevel : std::uint8_t { kOff = 0, kSent = 1, kFull = 2 };

/// Source, first of all.
struct Hello {
  std::uint16_t version = kTransferVersion;  // any: the receiver compares
  VerifyLevel verify = VerifyLevel::kOff;
  std::array<std::byte, 16> id{};
  std::uint32_t epoch_base = 0;
  std::uint32_t epoch_count = 0;
  std::vector<RegionShape> regions;  // 1..kRegionsMax, each of 1.. pages, together at most kPagesMax
};
/// Destination's answer; the pieces of its table follow if it has one.
struct HelloReply {
  bool has_retained = false;
};
/// A piece of the sender's generation table, in order.
struct TablePiece {
  bool last = false;
  std::span<const std::byte> bytes;  // not empty
};
/// Source: pages of `round` come next, and of the round before exactly `pages_before` were sent and acknowledged.
struct RoundBegin {
  std::uint32_t round = 0;  // 1..
  std::uint64_t pages_before = 0;
};
/// Destination: takes pages of `round` and of no other from now on.
struct RoundAck {
  std::uint32_t round = 0;
};
struct DeviceState {
  std::span<const std::byte> bytes;  // not empty
};
struct DeviceStateEnd {};
/// Source: `round` is the last and has `pages` pages; then RAM is as at the source, which knows hashes of
/// `pages_checked` pages.
struct AllPlaced {
  std::uint32_t round = 0;
  std::uint64_t pages = 0;
  std::uint64_t pages_checked = 0;
  pages::PageDigest digest;
};
/// Destination: everything is placed, and what was to be compared is equal.
struct Verified {};
/// Destination, instead of Verified: digests of all its chunks, in order, so that the source sees where they differ.
struct ChunkDigests {
  bool last = false;
  std::uint64_t first_chunk = 0;
  std::vector<pages::PageDigest> digests;  // 1..kChunkDigestsMax
};
/// Either end: it has failed; nothing follows.
struct Abort {
  std::string text;  // printable, at most kAbortTextBytesMax
};
/// Source: shows that it lives while it has nothing to say.
struct Keepalive {};

using Message = std::variant<Hello, HelloReply, TablePiece, RoundBegin, RoundAck, DeviceState, DeviceStateEnd,
                             AllPlaced, Verified, ChunkDigests, Abort, Keepalive>;

/// Fields must be in range (asserted), except Abort's text, which is cut and made printable.
[[nodiscard]] std::vector<std::byte> encode_message(const Message& message);
[[nodiscard]] std::expected<Message, std::string> decode_message(std::span<const std::byte> bytes);
/// For diagnostics: "RoundBegin".
[[nodiscard]] const char* message_name(const Message& message);

}  // namespace godwit::wire
