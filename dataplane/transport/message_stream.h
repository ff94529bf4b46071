#pragma once
// Messages as one ordered, reliable byte stream: each is its length (u32) and its bytes. The sender keeps what is not
// acknowledged; the receiver puts chunks that come in any order together. Owner: one lane; its lcore; all memory is
// allocated at construction (and, by the kernel, when first touched).
//
// Why memory stays bounded without a window on the wire: the sender never sends kStreamWindowBytes or more beyond what
// is acknowledged, and what is acknowledged has arrived; so the receiver needs that much and one unfinished message.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "dataplane/transport/lane.h"
#include "dataplane/transport/range_set.h"

namespace godwit::transport {

inline constexpr std::size_t kMessageLengthBytes = 4;
inline constexpr std::size_t kStreamBufferBytes = std::size_t{4} << 20;
inline constexpr std::size_t kStreamWindowBytes = kStreamBufferBytes - kMessageBytesMax - kMessageLengthBytes;

struct StreamChunk {
  std::uint64_t offset = 0;
  std::uint16_t length = 0;
  bool again = false;  // was lost before
};

class MessageSender {
 public:
  /// chunks_max: how many chunks can be in flight.
  explicit MessageSender(std::size_t chunks_max);

  /// Longest message that push() takes now.
  [[nodiscard]] std::size_t room() const;
  [[nodiscard]] bool push(std::span<const std::byte> message);

  [[nodiscard]] bool has_chunk() const { return has_lost() || next_ < end_; }
  [[nodiscard]] bool has_lost() const { return lost_count_ > 0; }
  /// The next piece to send, of at most `bytes_max` bytes, lost ones first. It is in flight then, until
  /// on_acknowledged() or on_lost().
  [[nodiscard]] std::optional<StreamChunk> take(std::size_t bytes_max);
  void read(const StreamChunk& chunk, std::span<std::byte> out) const;
  void on_acknowledged(std::uint64_t offset, std::uint16_t length);
  void on_lost(std::uint64_t offset, std::uint16_t length);
  [[nodiscard]] bool all_acknowledged() const { return acknowledged_.floor() == end_; }
  [[nodiscard]] std::uint64_t backlog_bytes() const { return end_ - acknowledged_.floor(); }

 private:
  void write(std::span<const std::byte> bytes);

  std::unique_ptr<std::byte[]> buffer_;
  std::uint64_t next_ = 0;  // first byte never sent
  std::uint64_t end_ = 0;   // first byte not yet there
  RangeSet acknowledged_;
  // A ring of lost chunks.
  std::size_t lost_capacity_;
  std::unique_ptr<StreamChunk[]> lost_;
  std::size_t lost_first_ = 0;
  std::size_t lost_count_ = 0;
};

class MessageReceiver {
 public:
  explicit MessageReceiver(std::size_t chunks_max);

  /// False: beyond what the peer may send, or a message too long: the peer is broken, and nothing more is accepted.
  [[nodiscard]] bool on_chunk(std::uint64_t offset, std::span<const std::byte> bytes);
  /// The next whole message, in order; valid until release(). Sets broken() when the stream names an impossible length.
  [[nodiscard]] std::optional<std::span<const std::byte>> next();
  [[nodiscard]] bool broken() const { return broken_; }
  /// The messages given out so far may be overwritten.
  void release() { released_ = delivered_; }

 private:
  [[nodiscard]] std::uint32_t length_at(std::uint64_t offset) const;

  // One message longer than the stream's ring: a message that wraps is copied together behind the end.
  std::unique_ptr<std::byte[]> buffer_;
  RangeSet arrived_;
  std::uint64_t delivered_ = 0;
  std::uint64_t released_ = 0;
  bool broken_ = false;
};

}  // namespace godwit::transport
