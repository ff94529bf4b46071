#include "dataplane/transport/message_stream.h"

#include <algorithm>
#include <cstring>

#include "dataplane/wire/bytes.h"

namespace godwit::transport {

namespace {

static_assert((kStreamBufferBytes & (kStreamBufferBytes - 1)) == 0);

constexpr std::size_t at(std::uint64_t offset) { return offset & (kStreamBufferBytes - 1); }

void copy_in(std::byte* ring, std::uint64_t offset, std::span<const std::byte> bytes) {
  if (bytes.empty()) {
    return;  // memcpy takes no null, however little it copies
  }
  const std::size_t first = std::min(bytes.size(), kStreamBufferBytes - at(offset));
  std::memcpy(ring + at(offset), bytes.data(), first);
  std::memcpy(ring, bytes.data() + first, bytes.size() - first);
}

void copy_out(const std::byte* ring, std::uint64_t offset, std::span<std::byte> bytes) {
  const std::size_t first = std::min(bytes.size(), kStreamBufferBytes - at(offset));
  std::memcpy(bytes.data(), ring + at(offset), first);
  std::memcpy(bytes.data() + first, ring, bytes.size() - first);
}

}  // namespace

MessageSender::MessageSender(std::size_t chunks_max)
    : buffer_(std::make_unique_for_overwrite<std::byte[]>(kStreamBufferBytes)),
      acknowledged_(chunks_max),
      lost_capacity_(chunks_max),
      lost_(std::make_unique<StreamChunk[]>(chunks_max)) {}

std::size_t MessageSender::room() const {
  const std::uint64_t used = end_ - acknowledged_.floor();
  const std::uint64_t free = kStreamWindowBytes - used;
  return free > kMessageLengthBytes ? std::min<std::size_t>(free - kMessageLengthBytes, kMessageBytesMax) : 0;
}

bool MessageSender::push(std::span<const std::byte> message) {
  GW_ASSERT(message.size() <= kMessageBytesMax);
  if (kStreamWindowBytes - (end_ - acknowledged_.floor()) < message.size() + kMessageLengthBytes) {
    return false;
  }
  std::array<std::byte, kMessageLengthBytes> length;
  wire::store_le<std::uint32_t>(length, 0, static_cast<std::uint32_t>(message.size()));
  write(length);
  write(message);
  return true;
}

void MessageSender::write(std::span<const std::byte> bytes) {
  copy_in(buffer_.get(), end_, bytes);
  end_ += bytes.size();
}

std::optional<StreamChunk> MessageSender::take(std::size_t bytes_max) {
  GW_ASSERT(bytes_max > 0 && bytes_max <= UINT16_MAX);
  if (lost_count_ > 0) {
    StreamChunk& head = lost_[lost_first_];
    StreamChunk chunk = head;
    if (chunk.length > bytes_max) {
      chunk.length = static_cast<std::uint16_t>(bytes_max);
      head.offset += chunk.length;
      head.length = static_cast<std::uint16_t>(head.length - chunk.length);
      return chunk;
    }
    lost_first_ = (lost_first_ + 1) % lost_capacity_;
    --lost_count_;
    return chunk;
  }
  if (next_ == end_) {
    return std::nullopt;
  }
  const StreamChunk chunk{.offset = next_,
                          .length = static_cast<std::uint16_t>(std::min<std::uint64_t>(end_ - next_, bytes_max))};
  next_ += chunk.length;
  return chunk;
}

void MessageSender::read(const StreamChunk& chunk, std::span<std::byte> out) const {
  GW_ASSERT(out.size() == chunk.length);
  copy_out(buffer_.get(), chunk.offset, out);
}

void MessageSender::on_acknowledged(std::uint64_t offset, std::uint16_t length) {
  // Ranges are apart only where chunks in flight or lost lie between: never more than chunks_max.
  const bool inserted = acknowledged_.insert(offset, offset + length);
  GW_ASSERT(inserted);
}

void MessageSender::on_lost(std::uint64_t offset, std::uint16_t length) {
  GW_ASSERT(lost_count_ < lost_capacity_);
  lost_[(lost_first_ + lost_count_) % lost_capacity_] = {.offset = offset, .length = length, .again = true};
  ++lost_count_;
}

MessageReceiver::MessageReceiver(std::size_t chunks_max)
    : buffer_(std::make_unique_for_overwrite<std::byte[]>(kStreamBufferBytes + kMessageBytesMax)),
      arrived_(chunks_max) {}

bool MessageReceiver::on_chunk(std::uint64_t offset, std::span<const std::byte> bytes) {
  GW_ASSERT(!bytes.empty());
  const std::uint64_t end = offset + bytes.size();
  if (broken_ || end > released_ + kStreamBufferBytes) {
    broken_ = true;
    return false;
  }
  if (end <= arrived_.floor()) {
    return true;
  }
  // What has arrived may have been given out already: it is not written again.
  const std::uint64_t known = arrived_.floor() > offset ? arrived_.floor() - offset : 0;
  if (!arrived_.insert(offset, end)) {
    broken_ = true;
    return false;
  }
  copy_in(buffer_.get(), offset + known, bytes.subspan(known));
  return true;
}

std::uint32_t MessageReceiver::length_at(std::uint64_t offset) const {
  std::array<std::byte, kMessageLengthBytes> bytes;
  copy_out(buffer_.get(), offset, bytes);
  return wire::load_le<std::uint32_t>(bytes, 0);
}

std::optional<std::span<const std::byte>> MessageReceiver::next() {
  const std::uint64_t ready = arrived_.floor() - delivered_;
  if (broken_ || ready < kMessageLengthBytes) {
    return std::nullopt;
  }
  const std::uint32_t length = length_at(delivered_);
  if (length > kMessageBytesMax) {
    broken_ = true;
    return std::nullopt;
  }
  if (ready < kMessageLengthBytes + length) {
    return std::nullopt;
  }
  const std::size_t begin = at(delivered_ + kMessageLengthBytes);
  if (begin + length > kStreamBufferBytes) {
    std::memcpy(buffer_.get() + kStreamBufferBytes, buffer_.get(), begin + length - kStreamBufferBytes);
  }
  delivered_ += kMessageLengthBytes + length;
  return std::span<const std::byte>(buffer_.get() + begin, length);
}

}  // namespace godwit::transport
