#pragma once
// One port, a DPDK device or one of our own (af_packet, memif): its queues and buffers. A queue (receive and transmit
// side) belongs to one lcore, which alone may call it. Frames are Ethernet frames of at most frame_bytes_max, received
// ones never in several segments. Sizes in bytes. Failure: open() names the operation and the device; later, a frame
// that cannot be sent or buffered is dropped and counted.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/single_writer.h"
#include "dataplane/port/dma_memory.h"
#include "dataplane/port/environment.h"
#include "dataplane/port/send_queue.h"
#include "dataplane/wire/receive_spread.h"

struct rte_mbuf;

namespace godwit::port {

inline constexpr std::size_t kBurst = 32;
/// Frames that one lcore may have handed over to another and not been given back yet.
inline constexpr std::size_t kHandOverMax = 256;
inline constexpr std::uint32_t kEthernetHeaderBytes = 14;
inline constexpr std::uint32_t kMtuMin = 1280;
inline constexpr std::uint32_t kMtuMax = 9216;
inline constexpr std::size_t kReferencesMax = 2;  // of one frame
inline constexpr std::size_t kHereBytes = 512;    // see Queue::elsewhere()

/// What is made in Queue::room(). kCipherText: a cipher may read again what it has written, so nobody else may write
/// there before it is committed.
enum class RoomFor : std::uint8_t { kClearText, kCipherText };

enum class Driver : std::uint8_t { kPci, kAfPacket, kMemif, kOther };

struct PortOptions {
  Driver driver = Driver::kAfPacket;
  std::string device;     // kPci: address; kOther: devargs ("net_ring0"); others: empty
  std::string interface;  // kAfPacket: the kernel's name of it
  std::string socket;     // kMemif: path of the control socket
  bool memif_server = false;
  std::uint16_t udp_port = 0;  // kAfPacket: to which all that we want to see is sent, but for ARP and ND
  std::uint32_t mtu = 1500;    // IP packet
  std::uint16_t queues = 1;
  std::uint32_t in_flight_max =
      512;  // packets that peers may have on their way to one queue: the lanes' credit together
};

/// The --vdev argument of this port; empty for PCI, af_packet and memif. Error: an option that the driver would refuse
/// or misuse.
std::expected<std::string, PortError> device_arguments(const PortOptions& options);

struct QueueCounters {  // written by the queue's lcore, read by any thread
  using Counter = SingleWriter<std::uint64_t>;
  Counter frames_received, bytes_received, frames_sent, bytes_sent;
  Counter drops_segmented, drops_no_buffer, transmit_stalls;
  Counter transmit_waiting_frames;  // now: the driver's ring had no room for them
};

struct PortDrops {
  std::uint64_t missed = 0;  // the driver had no room, or no buffer, for received frames
  std::uint64_t receive_errors = 0, transmit_errors = 0;
};

/// A received frame that outlives the next receive(), on any lcore.
struct ReceivedFrame {
  struct Free {
    void operator()(rte_mbuf* buffer) const;
  };
  std::unique_ptr<rte_mbuf, Free> buffer;
  std::span<std::byte> bytes;
};

/// Guest RAM that frames may refer to, on all queues of one port. Kept by whoever sends from it, on any thread. When it
/// is dropped the memory stays until the driver has given back the last frame that refers to it.
class Loan {
 public:
  virtual ~Loan() = default;
  /// Frames may refer to it. Any thread.
  [[nodiscard]] virtual bool usable() const = 0;
  /// Tells the device of the memory, where it must know. Once, on a thread that may wait (dma_memory.h). The error says
  /// why the memory must be copied; then it never becomes usable.
  virtual std::expected<void, PortError> make_usable() = 0;
};

/// Control thread.
class Lender {
 public:
  virtual ~Lender() = default;
  /// For memory that frames are to refer to, and that `owner` keeps mapped. Whoever gets it calls make_usable(). The
  /// error says why it must be copied.
  virtual std::expected<std::shared_ptr<Loan>, PortError> lend(std::shared_ptr<const void> owner,
                                                               MemoryPieces memory) = 0;
  /// Lets go of what nobody sends from and no frame refers to; how many loans are left.
  virtual std::size_t end_loans() = 0;
};

class Queue {
 public:
  virtual ~Queue() = default;
  /// Up to kBurst frames, valid until the next call.
  virtual std::span<const std::span<std::byte>> receive() = 0;
  /// Where the index-th frame of the last receive() lies, of which only the first kHereBytes are in its bytes yet: a
  /// peer may write there at any time, so nothing may be read there twice. Null: all of it is in its bytes.
  [[nodiscard]] virtual const std::byte* elsewhere(std::size_t /*index*/) const { return nullptr; }
  /// Takes the index-th frame of the last receive() away from it, once.
  virtual ReceivedFrame keep(std::size_t index) = 0;
  /// Room for the next frame to send, frame_bytes_max long; empty: no more of this priority for now, flush first.
  /// kBurst frames of each may wait. Asking again gives the same room.
  virtual std::span<std::byte> next_frame(Priority priority) = 0;
  /// Takes the first `bytes` of next_frame() for sending, before all waiting frames of less priority.
  virtual void commit(Priority priority, std::size_t bytes) = 0;
  /// After next_frame(): where that frame will be sent from, if parts of it may be put there directly; its byte
  /// `aligned_at` begins a cache line where that can be had. The peer may see what is written, so never plain text of
  /// what is to be encrypted; for clear text it may write there, too. Empty: not here.
  virtual std::span<std::byte> room(Priority /*priority*/, std::size_t /*aligned_at*/, RoomFor /*use*/) { return {}; }
  /// After room(): where that of the frame after it will be, if all goes on as now; for prefetching alone. Null:
  /// unknown.
  [[nodiscard]] virtual const std::byte* next_room(Priority /*priority*/) const { return nullptr; }
  /// As commit(), of a frame that is the first `bytes` of next_frame() but for their last `tail_bytes`, then
  /// `room_bytes` that were put where they belong in room(), then those.
  virtual void commit_around(Priority /*priority*/, std::size_t /*bytes*/, std::size_t /*tail_bytes*/,
                             std::size_t /*room_bytes*/) {
    GW_ASSERT(false);  // no room() was given
  }
  /// Whether frames that are committed from now on may leave as one (super_frame.h): whoever gets them must know how to
  /// take them apart (Port::takes_super_frames()). At first not.
  virtual void allow_super_frames(bool /*allowed*/) {}
  /// Whether the next frame may refer to a loan's memory; no while too many frames do.
  [[nodiscard]] virtual bool can_refer() = 0;
  /// As commit(), of a frame that is the first `bytes` of next_frame() but for their last `tail_bytes`, then `pieces`,
  /// then those. Requires can_refer(); `pieces` are kReferencesMax at most, and of the loan.
  virtual void commit_referring(Priority priority, std::size_t bytes, std::size_t tail_bytes,
                                std::span<const std::span<const std::byte>> pieces, const Loan& loan) = 0;
  /// Hands committed frames to the driver; what it does not take stays. False: something stays.
  virtual bool flush() = 0;
  [[nodiscard]] virtual const QueueCounters& counters() const = 0;
};

class Port : public Lender {
 public:
  /// After Environment::start with device_arguments() among its vdevs (or the PCI address).
  static std::expected<std::unique_ptr<Port>, PortError> open(const PortOptions& options);
  [[nodiscard]] virtual std::array<std::uint8_t, 6> mac() const = 0;
  [[nodiscard]] virtual Queue& queue(std::uint16_t index) = 0;
  [[nodiscard]] virtual std::uint32_t frame_bytes_max() const = 0;
  /// How the NIC spreads UDP over the queues; nothing with one queue, and where the driver does not hash ports or tell.
  [[nodiscard]] virtual std::optional<wire::ReceiveSpread> receive_spread(wire::IpFamily family) const = 0;
  /// The driver's own count of frames that arrived when no buffer was free. Any thread.
  [[nodiscard]] virtual PortDrops drops() const = 0;
  /// Whether several frames may come to it as one, where a path carries that whole.
  [[nodiscard]] virtual bool takes_super_frames() const { return false; }
  /// True while the link is up; memif: while the peer is connected. Any thread.
  [[nodiscard]] virtual bool link_up() const = 0;
  /// A descriptor that becomes readable when frames arrive; -1: none, use timed sleeps.
  [[nodiscard]] virtual int receive_interrupt(std::uint16_t queue) = 0;
  /// Before sleeping (true) and after (false). Poll once more after enabling: a frame may have come before.
  virtual void enable_receive_interrupt(std::uint16_t queue, bool enable) = 0;
};

}  // namespace godwit::port
