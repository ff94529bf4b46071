#include "dataplane/port/packet_queue.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace godwit::port {
namespace {

/// No frame that Linux has for us is longer; the frames' own lengths have 16 bits.
constexpr std::size_t kReceiveBytesMax = 65'536 + 64;
constexpr std::size_t kIpv4Headers = wire::datagram_header_bytes(wire::IpFamily::kV4);
/// So the first room takes the headers of any frame, however small those were that came last.
constexpr std::size_t kExpectedMin = kUdpHeadersMax - kIpv4Headers;

iovec piece(std::byte* at, std::size_t bytes) { return {at, bytes}; }
iovec piece(std::span<const std::byte> bytes) { return {const_cast<std::byte*>(bytes.data()), bytes.size()}; }

}  // namespace

PacketQueue::PacketQueue(Sockets sockets, std::uint32_t frame_bytes_max, KeptFrames kept)
    : sockets_(std::move(sockets)),
      frame_bytes_max_(frame_bytes_max),
      room_bytes_((frame_bytes_max + kLineBytes - 1) / kLineBytes * kLineBytes + kLineBytes),
      kept_(std::move(kept)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      rest_(new std::byte[kReceiveBytesMax]),
      gathered_(new std::byte[kReceiveBytesMax]),
      batch_(std::make_unique<Batch>()) {
  static_assert((kInShift + kIpv4Headers + wire::kPagesAt) % kLineBytes == 0);
  for (const UniqueFd* socket : {&sockets_.urgent, &sockets_.bulk}) {
    epoll_event event{.events = EPOLLIN | EPOLLET, .data = {}};
    if (socket->valid()) {
      epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, socket->get(), &event);
    }
  }
  in_ = make_aligned(kBurst * room_bytes_);
  out_bytes_ = make_aligned(2 * kSlots * room_bytes_);
  urgent_expected_.payload_bytes = bulk_expected_.payload_bytes = frame_bytes_max - kIpv4Headers;
  for (; free_count_ < kSlots; ++free_count_) {
    free_[free_count_] = static_cast<std::uint8_t>(free_count_);
  }
}

// ---- sending ----

std::span<std::byte> PacketQueue::next_frame(Priority priority) {
  if (out_.waiting(priority) >= (priority == Priority::kBulk ? bulk_turn_.frames() : kBurst)) {
    return {};
  }
  room_ = {};
  return {out_room(2U * free_[free_count_ - 1]), frame_bytes_max_};
}

std::span<std::byte> PacketQueue::room(Priority /*priority*/, std::size_t aligned_at, RoomFor /*use*/) {
  const std::size_t shift = (kLineBytes - aligned_at % kLineBytes) % kLineBytes;
  room_ = {out_room(2U * free_[free_count_ - 1] + 1U) + shift, frame_bytes_max_};
  return room_;
}

void PacketQueue::push(Priority priority, std::span<const std::byte> frame) {
  const std::size_t headers = allowed_ && priority == Priority::kBulk ? udp_headers(frame, frame.size()) : 0;
  const bool empty = headers == frame.size();
  out_.push(priority, {frame, free_[--free_count_], static_cast<std::uint8_t>(empty ? 0 : headers)});
}

void PacketQueue::commit(Priority priority, std::size_t bytes) {
  GW_ASSERT(bytes <= frame_bytes_max_);
  push(priority, {out_room(2U * free_[free_count_ - 1]), bytes});
}

void PacketQueue::commit_around(Priority priority, std::size_t bytes, std::size_t tail_bytes, std::size_t room_bytes) {
  GW_ASSERT(!room_.empty() && tail_bytes <= bytes && bytes + room_bytes <= frame_bytes_max_);
  const std::byte* const from = out_room(2U * free_[free_count_ - 1]);
  std::memcpy(room_.data(), from, bytes - tail_bytes);
  std::memcpy(room_.data() + bytes - tail_bytes + room_bytes, from + bytes - tail_bytes, tail_bytes);
  push(priority, room_.first(bytes + room_bytes));
}

void PacketQueue::commit_referring(Priority /*priority*/, std::size_t /*bytes*/, std::size_t /*tail_bytes*/,
                                   std::span<const std::span<const std::byte>> /*pieces*/, const Loan& /*loan*/) {
  GW_ASSERT(false);  // can_refer() says no
}

/// How many from the first on may be one super-frame; 1: it goes alone.
std::size_t PacketQueue::joinable(std::span<const Waiting> frames) const {
  const Waiting& first = frames[0];
  if (first.headers == 0 || !kernel_sends_super_frames_) {
    return 1;
  }
  std::size_t bytes = first.bytes.size();
  std::size_t count = 1;
  while (count < frames.size()) {
    const Waiting& next = frames[count];
    if (next.headers != first.headers || next.bytes.size() > first.bytes.size() ||
        bytes + next.bytes.size() - first.headers > kSuperFrameBytesMax ||
        !same_headers(first.bytes, next.bytes, first.headers)) {
      break;
    }
    bytes += next.bytes.size() - first.headers;
    ++count;
    if (next.bytes.size() < first.bytes.size()) {
      break;  // only the last may be shorter
    }
  }
  return count;
}

std::size_t PacketQueue::add_pieces(std::size_t at, std::span<const Waiting> frames) {
  Batch::Head& head = batch_->heads[batch_->count];
  const std::span<const std::byte> first = frames[0].bytes;
  head.told = {};
  batch_->pieces[at++] = {&head.told, sizeof head.told};
  if (frames.size() == 1) {
    head.told.headers_bytes =
        static_cast<std::uint16_t>(std::min(first.size(), kIpv4Headers));  // the rest in whole pages
    batch_->pieces[at++] = piece(first);
    return at;
  }
  const std::size_t headers = frames[0].headers;
  std::size_t payload_bytes = 0;
  std::memcpy(head.headers.data(), first.data(), headers);
  batch_->pieces[at++] = piece(head.headers.data(), headers);
  for (const Waiting& frame : frames) {
    batch_->pieces[at++] = piece(frame.bytes.subspan(headers));
    payload_bytes += frame.bytes.size() - headers;
  }
  head.told = make_super_frame(std::span(head.headers).first(headers), payload_bytes, first.size() - headers);
  return at;
}

void PacketQueue::fill(std::span<const Waiting> frames) {
  batch_->count = 0;
  for (std::size_t pieces = 0; !frames.empty(); ++batch_->count) {
    const std::size_t joined = joinable(frames);
    const std::size_t end = add_pieces(pieces, frames.first(joined));
    mmsghdr& message = batch_->messages[batch_->count];
    message = {};
    message.msg_hdr.msg_iov = batch_->pieces.data() + pieces;
    message.msg_hdr.msg_iovlen = end - pieces;
    batch_->frames[batch_->count] = static_cast<std::uint8_t>(joined);
    pieces = end;
    frames = frames.subspan(joined);
  }
}

void PacketQueue::count_sent(std::span<const Waiting> frames) {
  counters_.frames_sent += frames.size();
  for (const Waiting& frame : frames) {
    counters_.bytes_sent += frame.bytes.size();
  }
}

/// How many are done with; the others have to wait.
std::size_t PacketQueue::send(const UniqueFd& socket, std::span<const Waiting> frames) {
  std::size_t done = 0;
  while (done < frames.size()) {
    fill(frames.subspan(done));
    const int taken = sendmmsg(socket.get(), batch_->messages.data(), batch_->count, MSG_DONTWAIT);
    for (int i = 0; i < taken; ++i) {
      const std::size_t joined = batch_->frames[static_cast<std::size_t>(i)];
      count_sent(frames.subspan(done, joined));
      done += joined;
    }
    if (taken > 0) {
      continue;
    }
    if (errno == EAGAIN) {
      break;
    }
    if (errno == EINVAL && batch_->frames[0] > 1) {
      kernel_sends_super_frames_ = false;  // too old
      continue;
    }
    // No interface, or it is down, or smaller than its peers say, or its queue is full: lost, as on any wire.
    done += batch_->frames[0];
    transmit_errors_ += batch_->frames[0];
  }
  return done;
}

bool PacketQueue::flush() {
  if (out_.empty()) {
    return true;
  }
  const std::size_t urgent = out_.waiting(Priority::kUrgent);
  const std::span<Waiting> frames = out_.frames();
  std::size_t done =
      urgent == 0 ? 0 : send(sockets_.urgent.valid() ? sockets_.urgent : sockets_.bulk, frames.first(urgent));
  if (done == urgent && urgent < frames.size()) {
    done += send(sockets_.bulk, frames.subspan(urgent));
  }
  for (const Waiting& frame : frames.first(done)) {
    free_[free_count_++] = frame.slot;
  }
  out_.pop(done);
  counters_.transmit_waiting_frames.set(out_.frames().size());
  counters_.transmit_stalls += out_.empty() ? 0U : 1U;
  return out_.empty();
}

// ---- receiving ----

std::span<const std::span<std::byte>> PacketQueue::receive() {
  std::size_t frames = take_gathered(0);
  if (frames == 0 && sockets_.urgent.valid()) {
    frames = receive_from(sockets_.urgent, urgent_expected_, kBurst);
    bulk_turn_.on_received(frames > 0);
  }
  if (frames == 0) {
    frames = receive_from(sockets_.bulk, bulk_expected_, bulk_turn_.frames());
  }
  for (std::size_t i = 0; i < frames; ++i) {
    counters_.bytes_received += frames_[i].size();
  }
  counters_.frames_received += frames;
  return {frames_.data(), frames};
}

ReceivedFrame PacketQueue::keep(std::size_t index) { return kept_.copy(frames_[index]); }

std::size_t PacketQueue::receive_from(const UniqueFd& socket, Expected& expected, std::size_t frames_max) {
  std::size_t frames = 0;
  for (std::size_t i = 0; i < frames_max; ++i) {
    const std::size_t before = frames;
    if (!receive_one(socket, expected, frames) || frames > before + 1 || frames == kBurst) {
      break;  // after a super-frame the next would not find rooms enough
    }
  }
  return frames;
}

/// False: there is nothing. What came and cannot be used adds no frame.
bool PacketQueue::receive_one(const UniqueFd& socket, Expected& expected, std::size_t& frames) {
  OffloadHeader told{};
  std::array<iovec, kBurst + 2> pieces{};
  std::size_t count = 0;
  pieces[count++] = {&told, sizeof told};
  pieces[count++] = piece(in_room(frames), kIpv4Headers + expected.payload_bytes);
  if (expected.super_frame) {
    for (std::size_t room = frames + 1; room < kBurst; ++room) {
      pieces[count++] = piece(in_room(room) + kIpv4Headers, expected.payload_bytes);
    }
  }
  pieces[count++] = piece(rest_.get(), kReceiveBytesMax);
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = count;
  const ssize_t got = recvmsg(socket.get(), &message, MSG_DONTWAIT);
  if (got < 0 && errno != EINVAL) {
    return false;  // nothing there; or the interface went down, which is said once
  }
  if (got < static_cast<ssize_t>(sizeof told) || (message.msg_flags & MSG_TRUNC) != 0) {
    ++counters_.drops_segmented;  // too long; EINVAL: joined in a way that virtio has no word for
    return true;
  }
  const std::size_t bytes = static_cast<std::size_t>(got) - sizeof told;
  if (told.gso_type == kGsoNone) {
    take_frame(bytes, expected, frames);
  } else {
    take_super_frame(told, bytes, expected, frames);
  }
  return true;
}

/// Brings together what recvmsg() has scattered from the room `first` on.
void PacketQueue::gather(std::size_t first, const Expected& expected, std::size_t bytes) {
  std::size_t at = 0;
  const auto add = [&](const std::byte* from, std::size_t room) {
    const std::size_t part = std::min(room, bytes - at);
    std::memcpy(gathered_.get() + at, from, part);
    at += part;
  };
  add(in_room(first), kIpv4Headers + expected.payload_bytes);
  for (std::size_t room = first + 1; expected.super_frame && room < kBurst; ++room) {
    add(in_room(room) + kIpv4Headers, expected.payload_bytes);
  }
  add(rest_.get(), kReceiveBytesMax);
}

void PacketQueue::take_frame(std::size_t bytes, Expected& expected, std::size_t& frames) {
  if (bytes > frame_bytes_max_) {
    ++counters_.drops_segmented;
    return;
  }
  if (bytes > kIpv4Headers + expected.payload_bytes) {
    gather(frames, expected, bytes);
    std::memcpy(in_room(frames), gathered_.get(), bytes);
    expected = {.payload_bytes = bytes - kIpv4Headers};
  }
  if (bytes != 0) {
    frames_[frames] = {in_room(frames), bytes};
    ++frames;
  }
}

void PacketQueue::take_super_frame(const OffloadHeader& told, std::size_t bytes, Expected& expected,
                                   std::size_t& frames) {
  std::byte* const head = in_room(frames);
  const std::size_t head_bytes = std::min({bytes, kIpv4Headers + expected.payload_bytes, kUdpHeadersMax});
  const auto segments = split(told, {head, head_bytes}, bytes);
  if (!segments || segments->headers + segments->bytes > frame_bytes_max_) {
    ++counters_.drops_segmented;
    return;
  }
  if (!expected.super_frame || segments->headers != kIpv4Headers || segments->bytes != expected.payload_bytes ||
      segments->count > kBurst - frames) {
    gather(frames, expected, bytes);
    left_ = *segments;
    left_at_ = segments->headers;
    left_end_ = bytes;
    expected = {.payload_bytes = std::max(segments->bytes, kExpectedMin), .super_frame = true};
    frames = take_gathered(frames);
    return;
  }
  std::size_t left = bytes - kIpv4Headers;
  for (std::size_t i = 0; i < segments->count; ++i, ++frames) {
    const std::size_t payload = std::min(left, segments->bytes);
    if (i != 0) {
      std::memcpy(in_room(frames), head, kIpv4Headers);
    }
    frames_[frames] = {in_room(frames), kIpv4Headers + payload};
    make_segment(frames_[frames].first(kIpv4Headers), payload);
    left -= payload;
  }
}

/// Of a super-frame that did not come as expected, the next frames; how many there are now.
std::size_t PacketQueue::take_gathered(std::size_t frames) {
  for (; left_.count > 0 && frames < kBurst; --left_.count, ++frames) {
    const std::size_t payload = std::min(left_end_ - left_at_, left_.bytes);
    frames_[frames] = {in_room(frames), left_.headers + payload};
    std::memcpy(in_room(frames), gathered_.get(), left_.headers);
    std::memcpy(in_room(frames) + left_.headers, gathered_.get() + left_at_, payload);
    make_segment(frames_[frames].first(left_.headers), payload);
    left_at_ += payload;
  }
  return frames;
}

}  // namespace godwit::port
