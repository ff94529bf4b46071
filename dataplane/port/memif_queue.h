#pragma once
// A queue of a memif port: frames into and out of the rings that two processes share, each byte copied once. The home
// lcore's queue has two rings each way, the first for urgent frames alone.
//
// Owner: the port; its lcore calls it but for connect(), disconnect() and descriptor(), which are the control thread's.
// Whatever the peer writes into the rings: nothing outside them is read or written, no frame is longer than ours may
// be. Failure: none; what cannot be is dropped and counted.

#include <array>
#include <atomic>
#include <memory>
#include <mutex>

#include "base/unique_fd.h"
#include "dataplane/port/aligned_bytes.h"
#include "dataplane/port/bulk_turn.h"
#include "dataplane/port/event_signal.h"
#include "dataplane/port/kept_frames.h"
#include "dataplane/port/memif_link.h"
#include "dataplane/port/port.h"

namespace godwit::port::memif {

/// Our end of a ring.
class RingEnd {
 public:
  RingEnd() = default;
  RingEnd(const Link& link, const Ring& ring, bool sends);

  /// Slots that are ours now: to fill, or filled for us.
  [[nodiscard]] std::uint32_t available() const;
  struct Slot {
    std::span<std::byte> bytes;  // received: the frame; else room for one. Empty: nothing sound
    bool goes_on = false;        // received: the frame is in several
  };
  /// The next one; requires available(). `shift` (of a client that sends): its room begins so much later.
  [[nodiscard]] Slot take() const { return look(0); }
  /// The one so many after it; ours or not.
  [[nodiscard]] Slot look(std::uint16_t ahead) const;
  /// The slot taken is done with: filled with so many bytes that begin where it said, or received.
  void pass(std::size_t bytes, std::size_t shift);
  /// What was passed is the peer's.
  void publish();
  /// Rings unless the peer polls.
  void ring(const EventSignal& signal) const;
  /// Whether the peer is to ring.
  void mask(bool masked) const;
  [[nodiscard]] bool exists() const { return ring_ != nullptr; }
  [[nodiscard]] std::uint32_t passed() const { return static_cast<std::uint16_t>(next_ - published_); }

 private:
  const Link* link_ = nullptr;
  const Ring* ring_ = nullptr;
  std::atomic<std::uint16_t>* theirs_ = nullptr;
  std::atomic<std::uint16_t>* ours_ = nullptr;
  bool sends_ = false;
  std::uint16_t theirs_ahead_ = 0;  // of what they write, the last slot that is ours
  std::uint16_t ours_ahead_ = 0;    // we write more than the next slot by so much
  std::uint16_t next_ = 0;
  std::uint16_t published_ = 0;
};

class MemifQueue final : public Queue {
 public:
  /// Throws nothing; not valid() if the kernel has no more, see errno.
  MemifQueue(std::uint16_t index, std::uint32_t frame_bytes_max, KeptFrames kept);
  ~MemifQueue() override;
  MemifQueue(const MemifQueue&) = delete;
  MemifQueue& operator=(const MemifQueue&) = delete;

  // ---- the control thread ----
  [[nodiscard]] bool valid() const { return epoll_.valid() && changed_fd_.valid() && signal_.valid(); }
  void connect(std::shared_ptr<Link> link);
  void disconnect();
  /// Readable when frames arrive and interrupts are on, or the peer comes or goes.
  [[nodiscard]] int descriptor() const { return epoll_.get(); }

  // ---- its lcore ----
  void enable_interrupt(bool enable);
  std::span<const std::span<std::byte>> receive() override;
  ReceivedFrame keep(std::size_t index) override;
  std::span<std::byte> next_frame(Priority priority) override;
  void commit(Priority priority, std::size_t bytes) override;
  std::span<std::byte> room(Priority priority, std::size_t aligned_at, RoomFor use) override;
  [[nodiscard]] const std::byte* next_room(Priority priority) const override;
  void commit_around(Priority priority, std::size_t bytes, std::size_t tail_bytes, std::size_t room_bytes) override;
  [[nodiscard]] const std::byte* elsewhere(std::size_t index) const override { return elsewhere_[index]; }
  [[nodiscard]] bool can_refer() override { return false; }
  void commit_referring(Priority priority, std::size_t bytes, std::size_t tail_bytes,
                        std::span<const std::span<const std::byte>> pieces, const Loan& loan) override;
  bool flush() override;
  [[nodiscard]] const QueueCounters& counters() const override { return counters_; }

 private:
  void adopt();
  [[nodiscard]] RingEnd& sending(Priority priority);
  [[nodiscard]] const RingEnd& sending(Priority priority) const;
  void sent(RingEnd& ring, std::size_t bytes, std::size_t shift);
  void look_ahead() const;
  std::size_t receive_from(RingEnd& ring, std::size_t frames_max);
  [[nodiscard]] std::byte* private_room(std::size_t index) const { return rooms_.get() + index * room_bytes_; }

  const std::uint16_t index_;
  const std::uint32_t frame_bytes_max_;
  const KeptFrames kept_;
  UniqueFd epoll_;
  UniqueFd changed_fd_;
  EventSignal signal_;
  std::mutex mutex_;
  std::shared_ptr<Link> offered_;  // by the control thread, under mutex_
  std::atomic<bool> changed_{false};

  std::shared_ptr<Link> link_;  // what follows is of it
  std::array<RingEnd, 2> in_;   // urgent, bulk
  std::array<RingEnd, 2> out_;
  BulkTurn bulk_turn_;
  bool full_ = false;
  AlignedBytes rooms_;  // of received frames, and of the next to send
  std::size_t room_bytes_;
  std::array<std::span<std::byte>, kBurst> frames_{};
  std::array<const std::byte*, kBurst> elsewhere_{};
  std::array<std::span<const std::byte>, kBurst> slots_{};  // where each frame came from, until the next receive()
  std::span<std::byte> room_{};                             // of the frame being built: in its slot, or apart
  bool room_apart_ = false;                                 // where the peer does not see it
  std::size_t shift_ = 0;                                   // where it begins there
  QueueCounters counters_;
};

}  // namespace godwit::port::memif
