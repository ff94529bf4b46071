#pragma once
// A queue of a port on one of the kernel's interfaces. Pages are copied and hashed in one pass into memory of ours,
// from which the kernel takes a burst in one system call; bulk frames of one lane go as super-frames (super_frame.h),
// where whoever sends allows it. A received one is scattered so that each of its frames lies whole in a room of its
// own. The home lcore's queue has a socket each for urgent frames and for bulk, on either way.
//
// Owner: the port; its lcore calls it. Failure: none; what the kernel does not take is kept while there is no room,
// else dropped and counted.

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <memory>

#include "base/unique_fd.h"
#include "dataplane/port/aligned_bytes.h"
#include "dataplane/port/bulk_turn.h"
#include "dataplane/port/kept_frames.h"
#include "dataplane/port/port.h"
#include "dataplane/port/super_frame.h"
#include "dataplane/wire/datagram.h"
#include "dataplane/wire/frames.h"

namespace godwit::port {

class PacketQueue final : public Queue {
 public:
  struct Sockets {
    UniqueFd urgent;  // the home lcore's alone
    UniqueFd bulk;
  };
  /// descriptor() is -1 if the kernel has no more.
  PacketQueue(Sockets sockets, std::uint32_t frame_bytes_max, KeptFrames kept);

  std::span<const std::span<std::byte>> receive() override;
  ReceivedFrame keep(std::size_t index) override;
  std::span<std::byte> next_frame(Priority priority) override;
  void commit(Priority priority, std::size_t bytes) override;
  std::span<std::byte> room(Priority priority, std::size_t aligned_at, RoomFor use) override;
  void commit_around(Priority priority, std::size_t bytes, std::size_t tail_bytes, std::size_t room_bytes) override;
  void allow_super_frames(bool allowed) override { allowed_ = allowed; }
  [[nodiscard]] bool can_refer() override { return false; }
  void commit_referring(Priority priority, std::size_t bytes, std::size_t tail_bytes,
                        std::span<const std::span<const std::byte>> pieces, const Loan& loan) override;
  bool flush() override;
  [[nodiscard]] const QueueCounters& counters() const override { return counters_; }

  // ---- any thread ----
  /// Readable when frames arrive.
  [[nodiscard]] int descriptor() const { return epoll_.get(); }
  [[nodiscard]] const Sockets& sockets() const { return sockets_; }
  /// Frames that the kernel refused.
  [[nodiscard]] std::uint64_t transmit_errors() const { return transmit_errors_; }

 private:
  struct Waiting {
    std::span<const std::byte> bytes;
    std::uint8_t slot = 0;
    std::uint8_t headers = 0;  // 0: not in a super-frame
  };
  /// What one call hands to the kernel.
  struct Batch {
    struct Head {
      OffloadHeader told;
      std::array<std::byte, kUdpHeadersMax> headers;
    };
    std::array<Head, kBurst> heads;
    std::array<iovec, 3 * kBurst> pieces;
    std::array<mmsghdr, kBurst> messages;
    std::array<std::uint8_t, kBurst> frames;  // in each message
    unsigned count = 0;
  };
  /// What is expected next on a socket: who receives a stream of frames receives more like them.
  struct Expected {
    std::size_t payload_bytes = 0;
    bool super_frame = false;
  };

  void push(Priority priority, std::span<const std::byte> frame);
  [[nodiscard]] std::size_t joinable(std::span<const Waiting> frames) const;
  void fill(std::span<const Waiting> frames);
  std::size_t add_pieces(std::size_t at, std::span<const Waiting> frames);
  std::size_t send(const UniqueFd& socket, std::span<const Waiting> frames);
  void count_sent(std::span<const Waiting> frames);

  std::size_t receive_from(const UniqueFd& socket, Expected& expected, std::size_t frames_max);
  bool receive_one(const UniqueFd& socket, Expected& expected, std::size_t& frames);
  void take_frame(std::size_t bytes, Expected& expected, std::size_t& frames);
  void take_super_frame(const OffloadHeader& told, std::size_t bytes, Expected& expected, std::size_t& frames);
  void gather(std::size_t first, const Expected& expected, std::size_t bytes);
  std::size_t take_gathered(std::size_t frames);
  [[nodiscard]] std::byte* in_room(std::size_t index) const { return in_.get() + index * room_bytes_ + kInShift; }
  [[nodiscard]] std::byte* out_room(std::size_t index) const { return out_bytes_.get() + index * room_bytes_; }

  /// So much into its room a received frame begins: then pages over IPv4 begin a cache line.
  static constexpr std::size_t kInShift =
      63 - (wire::datagram_header_bytes(wire::IpFamily::kV4) + wire::kPagesAt + 63) % 64;
  static constexpr std::size_t kSlots = 2 * kBurst + 1;  // waiting, and the one being built

  const Sockets sockets_;
  const std::uint32_t frame_bytes_max_;
  const std::size_t room_bytes_;
  const KeptFrames kept_;
  UniqueFd epoll_;
  BulkTurn bulk_turn_;
  QueueCounters counters_;
  SingleWriter<std::uint64_t> transmit_errors_;

  AlignedBytes in_;                        // kBurst of them
  std::unique_ptr<std::byte[]> rest_;      // of what did not come as expected: what the rooms did not hold
  std::unique_ptr<std::byte[]> gathered_;  // all of that
  Segments left_;                          // of gathered_: not handed out yet
  std::size_t left_at_ = 0;
  std::size_t left_end_ = 0;
  Expected urgent_expected_;
  Expected bulk_expected_;
  std::array<std::span<std::byte>, kBurst> frames_{};

  AlignedBytes out_bytes_;  // two for each slot: to build in, and for room()
  SendQueue<Waiting, kBurst> out_;
  std::array<std::uint8_t, kSlots> free_{};
  std::size_t free_count_ = 0;  // of free_, the last of which is being built
  std::span<std::byte> room_{};
  bool allowed_ = false;
  bool kernel_sends_super_frames_ = true;
  std::unique_ptr<Batch> batch_;
};

}  // namespace godwit::port
