#include "dataplane/port/memif_queue.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "dataplane/pages/read_ahead.h"

namespace godwit::port::memif {
namespace {

/// Frames that are no longer are copied at once: looking at them in two places would cost more.
constexpr std::size_t kCopiedBytes = 2048;
static_assert(kCopiedBytes >= kHereBytes);

constexpr std::size_t kUrgent = 0;
constexpr std::size_t kBulk = 1;

/// Of our own: O_NONBLOCK stays, and a full counter is readable already.
void signal(int file) {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(file, &one, sizeof one);
}

/// One load: the peer may change it at any time.
template <class T>
T load(const T& shared) {
  return *static_cast<const volatile T*>(&shared);
}

}  // namespace

RingEnd::RingEnd(const Link& link, const Ring& ring, bool sends) : link_(&link), ring_(&ring), sends_(sends) {
  const bool head_is_ours = link.client;
  ours_ = head_is_ours ? &ring.head->head : &ring.head->tail;
  theirs_ = head_is_ours ? &ring.head->tail : &ring.head->head;
  const auto slots = static_cast<std::uint16_t>(ring.slots);
  theirs_ahead_ = link.client && sends ? slots : std::uint16_t{0};
  ours_ahead_ = link.client && !sends ? slots : std::uint16_t{0};
  ours_->store(ours_ahead_, std::memory_order_release);
}

std::uint32_t RingEnd::available() const {
  if (ring_ == nullptr) {
    return 0;
  }
  const std::uint16_t theirs = theirs_->load(std::memory_order_acquire);
  const auto slots = static_cast<std::uint16_t>(theirs + theirs_ahead_ - next_);
  return slots <= ring_->slots ? slots : 0;  // more than there are: the peer is wrong
}

RingEnd::Slot RingEnd::look(std::uint16_t ahead) const {
  const std::uint32_t index = (std::uint32_t{next_} + ahead) & (ring_->slots - 1);
  const Descriptor& descriptor = ring_->descriptors()[index];
  if (link_->client) {
    const std::span<std::byte> buffer =
        ring_->buffers.subspan(std::size_t{index} * link_->buffer_bytes, link_->buffer_bytes);
    if (sends_) {
      return {buffer};
    }
    const std::uint32_t length = load(descriptor.length);
    return {buffer.first(length <= buffer.size() ? length : 0), (load(descriptor.flags) & kNext) != 0};
  }
  const std::uint16_t region = load(descriptor.region);
  const std::uint32_t offset = load(descriptor.offset);
  const std::uint32_t length = load(descriptor.length);
  if (region >= link_->regions.size()) {
    return {};
  }
  const std::span<std::byte> bytes = link_->regions[region].bytes();
  if (offset > bytes.size() || length > bytes.size() - offset) {
    return {};
  }
  return {bytes.subspan(offset, length), (load(descriptor.flags) & kNext) != 0};
}

void RingEnd::pass(std::size_t bytes, std::size_t shift) {
  const std::uint32_t index = next_++ & (ring_->slots - 1);
  Descriptor& descriptor = ring_->descriptors()[index];
  if (sends_) {
    descriptor.flags = 0;
    descriptor.length = static_cast<std::uint32_t>(bytes);
    if (link_->client) {
      const std::byte* const buffer = ring_->buffers.data() + std::size_t{index} * link_->buffer_bytes;
      descriptor.region = 0;
      descriptor.offset =
          static_cast<std::uint32_t>(static_cast<std::size_t>(buffer - link_->regions[0].bytes().data()) + shift);
    }
  } else if (link_->client) {
    descriptor.length = link_->buffer_bytes;  // where it is, the server leaves alone or harms itself
  }
}

void RingEnd::publish() {
  published_ = next_;
  ours_->store(static_cast<std::uint16_t>(next_ + ours_ahead_), std::memory_order_release);
}

void RingEnd::ring(const EventSignal& signal) const {
  // The peer clears its flag, then looks once more; we publish, then look at the flag.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if ((ring_->head->flags.load(std::memory_order_relaxed) & kMaskInterrupt) == 0) {
    signal.raise(ring_->interrupt.get());
  }
}

void RingEnd::mask(bool masked) const {
  if (ring_ != nullptr) {
    ring_->head->flags.store(masked ? kMaskInterrupt : 0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
}

MemifQueue::MemifQueue(std::uint16_t index, std::uint32_t frame_bytes_max, KeptFrames kept)
    : index_(index),
      frame_bytes_max_(frame_bytes_max),
      kept_(std::move(kept)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      changed_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      room_bytes_((frame_bytes_max + kLineBytes - 1) / kLineBytes * kLineBytes + kLineBytes) {
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {}};
  epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, changed_fd_.get(), &event);
  rooms_ = make_aligned((kBurst + 2) * room_bytes_);
}

MemifQueue::~MemifQueue() { disconnect(); }

/// Rings of a queue, by what the peer has: one that has a single ring gets everything on it.
template <class Rings, class Use>
void for_rings_of(std::uint16_t index, Rings& rings, Use&& use) {
  const std::size_t bulk = index + std::size_t{1};
  if (bulk < rings.size() && rings[bulk]) {
    use(kBulk, *rings[bulk]);
  }
  if (index == 0 && rings[0]) {
    use(kUrgent, *rings[0]);
  }
}

void MemifQueue::connect(std::shared_ptr<Link> link) {
  for_rings_of(index_, link->receive, [this](std::size_t, Ring& ring) {
    epoll_event event{.events = EPOLLIN | EPOLLET, .data = {}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, ring.interrupt.get(), &event);
  });
  const std::lock_guard lock(mutex_);
  offered_ = std::move(link);
  changed_.store(true, std::memory_order_release);
  signal(changed_fd_.get());
}

void MemifQueue::disconnect() {
  const std::lock_guard lock(mutex_);
  if (offered_ == nullptr) {
    return;
  }
  for_rings_of(index_, offered_->receive, [this](std::size_t, Ring& ring) {
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, ring.interrupt.get(), nullptr);
  });
  offered_.reset();
  changed_.store(true, std::memory_order_release);
  signal(changed_fd_.get());
}

void MemifQueue::adopt() {
  const std::lock_guard lock(mutex_);
  changed_.store(false, std::memory_order_relaxed);
  in_ = {};
  out_ = {};
  link_ = offered_;
  full_ = false;
  if (link_ == nullptr) {
    return;
  }
  for_rings_of(index_, link_->receive, [this](std::size_t kind, Ring& ring) { in_[kind] = {*link_, ring, false}; });
  for_rings_of(index_, link_->send, [this](std::size_t kind, Ring& ring) { out_[kind] = {*link_, ring, true}; });
}

void MemifQueue::enable_interrupt(bool enable) {
  for (const RingEnd& ring : in_) {
    ring.mask(!enable);
  }
}

const RingEnd& MemifQueue::sending(Priority priority) const {
  const std::size_t kind = priority == Priority::kUrgent ? kUrgent : kBulk;
  return out_[out_[kind].exists() ? kind : 1 - kind];
}

RingEnd& MemifQueue::sending(Priority priority) {
  return const_cast<RingEnd&>(std::as_const(*this).sending(priority));  // *this is not const
}

std::size_t MemifQueue::receive_from(RingEnd& ring, std::size_t frames_max) {
  const std::size_t count = std::min<std::size_t>(ring.available(), frames_max);
  std::size_t frames = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const RingEnd::Slot slot = ring.take();
    ring.pass(0, 0);
    ++counters_.frames_received;
    counters_.bytes_received += slot.bytes.size();
    if (slot.goes_on || slot.bytes.size() > frame_bytes_max_) {
      ++counters_.drops_segmented;
      continue;
    }
    if (slot.bytes.empty()) {
      continue;
    }
    // As far from a cache line's begin as in the ring: what is aligned there stays so.
    std::byte* const to = private_room(frames) + reinterpret_cast<std::uintptr_t>(slot.bytes.data()) % kLineBytes;
    const bool whole = slot.bytes.size() <= kCopiedBytes;
    std::memcpy(to, slot.bytes.data(), whole ? slot.bytes.size() : kHereBytes);
    slots_[frames] = slot.bytes;
    elsewhere_[frames] = whole ? nullptr : slot.bytes.data();
    frames_[frames++] = {to, slot.bytes.size()};
  }
  return frames;
}

/// What the next receive() will most likely bring.
void MemifQueue::look_ahead() const {
  pages::ReadAhead& ahead = pages::ReadAhead::of_this_thread();
  ahead.clear();
  const RingEnd& ring = in_[kBulk];
  const std::size_t count = std::min<std::size_t>(ring.available(), bulk_turn_.frames());
  for (std::size_t i = 0; i < count; ++i) {
    const std::span<const std::byte> frame = ring.look(static_cast<std::uint16_t>(i)).bytes;
    ahead.add(frame.first(std::min<std::size_t>(frame.size(), frame_bytes_max_)));
  }
}

std::span<const std::span<std::byte>> MemifQueue::receive() {
  for (RingEnd& ring : in_) {
    if (ring.passed() != 0) {
      ring.publish();
    }
  }
  if (changed_.load(std::memory_order_acquire)) {
    adopt();
  }
  std::size_t frames = receive_from(in_[kUrgent], kBurst);
  if (in_[kUrgent].exists() && in_[kBulk].exists()) {
    bulk_turn_.on_received(frames > 0);
  }
  if (frames == 0) {
    frames = receive_from(in_[kBulk], bulk_turn_.frames());
  }
  look_ahead();
  return {frames_.data(), frames};
}

ReceivedFrame MemifQueue::keep(std::size_t index) {
  return kept_.copy(elsewhere_[index] != nullptr ? slots_[index] : std::span<const std::byte>(frames_[index]));
}

std::span<std::byte> MemifQueue::next_frame(Priority priority) {
  RingEnd& ring = sending(priority);
  if (!ring.exists() || ring.passed() >= (priority == Priority::kBulk ? bulk_turn_.frames() : kBurst)) {
    return {};
  }
  if (ring.available() == 0) {
    counters_.transmit_stalls += full_ ? 0U : 1U;
    full_ = true;
    return {};
  }
  room_ = {};
  shift_ = 0;
  return {private_room(kBurst), frame_bytes_max_};
}

std::span<std::byte> MemifQueue::room(Priority priority, std::size_t aligned_at, RoomFor use) {
  room_apart_ = use == RoomFor::kCipherText;
  if (room_apart_) {
    room_ = {private_room(kBurst + 1) + (kLineBytes - aligned_at % kLineBytes) % kLineBytes, frame_bytes_max_};
    return room_;
  }
  const RingEnd& ring = sending(priority);
  const std::span<std::byte> slot = ring.take().bytes;
  // The place of the server's frames is the client's to say.
  shift_ = link_->client ? (kLineBytes - aligned_at % kLineBytes) % kLineBytes : 0;
  room_ = slot.size() >= shift_ + frame_bytes_max_ ? slot.subspan(shift_, frame_bytes_max_) : std::span<std::byte>();
  return room_;
}

const std::byte* MemifQueue::next_room(Priority priority) const {
  const std::span<std::byte> slot = room_apart_ ? std::span<std::byte>() : sending(priority).look(1).bytes;
  return slot.size() >= shift_ + frame_bytes_max_ ? slot.data() + shift_ : nullptr;
}

void MemifQueue::commit_around(Priority priority, std::size_t bytes, std::size_t tail_bytes, std::size_t room_bytes) {
  GW_ASSERT(!room_.empty() && tail_bytes <= bytes && bytes + room_bytes <= frame_bytes_max_);
  RingEnd& ring = sending(priority);
  const std::size_t head_bytes = bytes - tail_bytes;
  std::byte* to = room_.data();
  if (room_apart_) {
    const std::span<std::byte> slot = ring.take().bytes;
    if (slot.size() < bytes + room_bytes) {
      ++counters_.drops_no_buffer;  // as in commit()
      return;
    }
    to = slot.data();
    std::memcpy(to + head_bytes, room_.data() + head_bytes, room_bytes);
  }
  const std::byte* const from = private_room(kBurst);
  std::memcpy(to, from, head_bytes);
  std::memcpy(to + head_bytes + room_bytes, from + head_bytes, tail_bytes);
  sent(ring, bytes + room_bytes, shift_);
}

void MemifQueue::sent(RingEnd& ring, std::size_t bytes, std::size_t shift) {
  ring.pass(bytes, shift);
  ++counters_.frames_sent;
  counters_.bytes_sent += bytes;
}

void MemifQueue::commit(Priority priority, std::size_t bytes) {
  RingEnd& ring = sending(priority);
  GW_ASSERT(ring.exists() && bytes <= frame_bytes_max_);
  const RingEnd::Slot slot = ring.take();
  if (slot.bytes.size() < bytes) {
    ++counters_.drops_no_buffer;  // its slot is the next frame's: passed empty, it would be a frame to the peer
    return;
  }
  std::memcpy(slot.bytes.data(), private_room(kBurst), bytes);
  sent(ring, bytes, 0);
}

void MemifQueue::commit_referring(Priority /*priority*/, std::size_t /*bytes*/, std::size_t /*tail_bytes*/,
                                  std::span<const std::span<const std::byte>> /*pieces*/, const Loan& /*loan*/) {
  GW_ASSERT(false);  // can_refer() says no
}

bool MemifQueue::flush() {
  for (RingEnd& ring : out_) {
    if (ring.exists() && ring.passed() != 0) {
      ring.publish();
      ring.ring(signal_);
    }
  }
  full_ = full_ && sending(Priority::kBulk).exists() && sending(Priority::kBulk).available() == 0;
  return !full_;
}

}  // namespace godwit::port::memif
