#pragma once
// One lane of a flow between two data planes: the sans-IO transport. It owns packet numbers, acknowledgement, loss
// recovery, the congestion window and the credit of one UDP path; packets and a clock come in, packets and deadlines go
// out.
//
// Every lane carries pages and zero runs, in no order. Lane 0 of a flow is the priority lane: it carries ordered,
// reliable messages too (control, tables, device state), and its pages are those that somebody waits for. A page and a
// message share no packet, and neither waits for the other's loss. Lanes 1.. are bulk lanes. Each lane acknowledges on
// itself. A lane is symmetric: either end may send. Loss recovery names pages and message bytes, never packets: what is
// lost goes out again in a new packet, read anew.
//
// Order on the priority lane: lost pages, lost pieces of messages, then what is new: pages before messages, but after
// kPagePacketsInRow packets of pages one of messages. So a page waits for one packet of messages at most, and a message
// for that many of pages. The congestion window holds back messages only; pages in flight count in it, and there are at
// most kPriorityWorksMax of them in hand. One packet of messages may always be in flight, whatever the pages fill.
//
// Every packet is sealed: seal.h. Whatever is not authentic and new changes nothing but a counter, in any state.
//
// Thread: every call on the lane's own lcore, but for what any thread may ask: peer_dead(), fault(), counters(),
// smoothed_rtt(). No allocation after construction (but libcrypto's, when keys change), no system call, no clock.
// Acknowledged means placed: the owner of the receive loop calls LaneUser::flush() after a burst and before
// poll_transmit().

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/single_writer.h"
#include "base/time.h"
#include "dataplane/pages/page.h"
#include "dataplane/pages/page_digest.h"
#include "dataplane/transport/keys.h"

namespace godwit::transport {

inline constexpr std::uint16_t kPriorityLane = 0;
/// Pages and zero runs that the priority lane has in hand: a burst of demand, not a stream.
inline constexpr std::uint32_t kPriorityWorksMax = 64;
/// Packets of pages between two of messages, where both wait on the priority lane.
inline constexpr std::uint32_t kPagePacketsInRow = 4;

/// What a lane is asked to carry next: one page, or `count` pages that read as zero (count >= 1, zero = true).
struct Work {
  pages::PageNumber page = 0;
  std::uint64_t count = 1;
  std::uint32_t round = 0;
  bool zero = false;
  bool background = false;  // nobody waits for it, but somebody may for other pages: the path's queue is kept short
};

/// The lane's client, implemented by transfer. All calls come from within calls on the lane.
class LaneUser {
 public:
  virtual ~LaneUser() = default;
  // ---- sending ----
  /// The next page or zero run for this lane; false: nothing to send now. A page given is the lane's until
  /// acknowledged. The priority lane is asked too, as often as the others.
  virtual bool next_work(std::uint16_t lane, Work& out) = 0;
  /// Copies bytes of the page as they are now.
  virtual void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) = 0;
  /// The whole page where it lies, to be sent without a copy; readable for as long as the frames that refer to it are
  /// kept. It may change meanwhile: `hash_in_tag` says that the peer then drops it, because the tag is made of the hash
  /// that note_sent() is given; else what leaves may differ from it. Empty: read_page() must be used.
  virtual std::span<const std::byte> page_in_place(pages::PageNumber /*page*/, bool /*hash_in_tag*/) { return {}; }
  /// Whether note_sent() must be called for a part at this offset of the page; it may be called anyway.
  [[nodiscard]] virtual bool wants_hash(pages::PageNumber /*page*/, std::uint32_t /*offset*/) const { return false; }
  /// Each time that the page, or a part taken from this content of it, is about to leave: pages::hash_page() of it.
  virtual void note_sent(pages::PageNumber /*page*/, pages::PageHash /*hash*/) {}
  /// Every part of this work has been acknowledged.
  virtual void on_acknowledged(const Work& work) = 0;
  // ---- receiving: bytes are valid until flush() ----
  virtual void on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                       std::span<const std::byte> bytes) = 0;
  virtual void on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count) = 0;
  /// A whole message, in order; priority lane only.
  virtual void on_message(std::span<const std::byte> message) = 0;
};

/// A turn of a poller that has a burst to receive and one to send takes less than half of it (32 packets each way, 7 us
/// a packet); a slice of the scheduler's is longer (Linux: 1.4 ms and more on two CPUs). In between it did not run.
inline constexpr Duration kAwayMin = milliseconds(1);

inline constexpr std::size_t kMessageBytesMax = 65536;

/// Pages that a packet takes from where they lie. If it is in clear text it is on the wire: the buffer but for its last
/// wire::kTagBytes, then these, then those bytes. The tag covers what they held when they were hashed: if one is
/// written before it is sent, the receiver finds a bad tag and drops the packet, and the pages go out again, copied.
/// With a `room` they are copied, or encrypted, there, in the pass that makes the tag: then there are bytes and no
/// pieces.
struct PagesInPlace {
  std::span<std::byte> room{};           // given by the caller: where the packet will be sent from, as long as `out`
  const std::byte* next_room = nullptr;  // given by the caller: room of the packet after it, perhaps; a hint
  std::array<std::span<const std::byte>, 2> pieces{};  // a page each, or neighbours as one
  std::size_t count = 0;
  std::size_t bytes = 0;
  [[nodiscard]] std::span<const std::span<const std::byte>> view() const { return std::span(pieces).first(count); }
  void add(std::span<const std::byte> page) {
    bytes += page.size();
    if (count != 0 && pieces[0].data() + pieces[0].size() == page.data()) {
      pieces[0] = {pieces[0].data(), bytes};
    } else {
      pieces[count++] = page;
    }
  }
};

struct LaneCounters;

/// When a lane whose path turned out to drop larger packets tries them again: RFC 8899 §5.1.1.
struct PathMtuTimers {
  Duration probe = milliseconds(15'000);   // PROBE_TIMER: until the first, and from a lost one to the next
  Duration raise = milliseconds(600'000);  // PMTU_RAISE_TIMER: after MAX_PROBES lost in a row
};

struct LaneConfig {
  std::uint32_t local_flow_id = 0;  // what the peer puts into packets to us
  std::uint32_t peer_flow_id = 0;   // what we put into packets to the peer
  std::uint16_t lane = 0;
  bool initiator = false;  // the source's end: separates the two directions' keys
  Cipher cipher = Cipher::kAes128Gcm;
  Secret secret;  // of the flow: no other flow, and no earlier life of this one, has had it (hkdf.h: flow_secret)
  KeyLimits key_limits;
  std::uint32_t datagram_bytes_max = 1472;  // UDP payload: min(MTU of both ends) - IP and UDP headers
  // The same for a path that turns out to drop larger ones: by default an IPv6 packet of 1500 bytes. One that drops
  // these too gets wire::kDatagramBytesMinimum.
  std::uint32_t datagram_bytes_fallback = 1452;
  PathMtuTimers path_mtu;
  // What the peer may have in flight towards us, our share of receive buffers; 64..1024, taken to the nearest.
  std::uint32_t credit_packets = 256;
  Duration rtt_granularity = milliseconds(2);  // 2 ms on a shared vCPU, 100 us on pinned cores
  Duration base_rtt = microseconds(500);       // Swift base delay: 50 us NIC, 500 us vdev
  Duration peer_timeout = milliseconds(3000);  // no acknowledgement for so long while we wait for one: dead
  LaneCounters* counters = nullptr;            // where the lane counts, outlives it; null: in its own
};

/// Why a received datagram changed nothing, or that it did. Each value is a counter.
enum class Received : std::uint8_t {
  kAccepted,
  kDuplicate,
  kTooOld,
  kBeyondCredit,
  kMalformed,
  kWrongVersion,
  kWrongLane,
  kWrongFlow,
  kOldKey,  // sealed with a key that is gone: late by several probe timeouts
  kBadTag,
  kBadBody,
  kClosed,  // the lane has a fault()
  kCount,
};
[[nodiscard]] std::string_view to_string(Received received);

/// Why a lane has closed for good: it takes and sends nothing any more. Its flow must end.
enum class LaneFault : std::uint8_t {
  kNone,
  kForgeries,      // KeyLimits::forgeries_max
  kKeyUsedUp,      // KeyLimits::packets_max, and the peer has not confirmed the key, so there is no next one
  kNumbersUsedUp,  // KeyLimits::packet_number_max
  kPathTooNarrow,  // for peer_timeout no packet of the smallest size with pages got through, and small ones did
};
/// For a person: one line, without an end.
[[nodiscard]] std::string_view to_string(LaneFault fault);

/// Written by the lane's lcore, read by any thread.
struct LaneCounters {
  using Counter = SingleWriter<std::uint64_t>;
  Counter packets_sent, bytes_sent, packets_received, bytes_received;  // UDP payload bytes
  Counter pages_sent, pages_retransmitted, payload_bytes_sent, packets_lost, probe_timeouts, spurious_losses;
  Counter pages_in_place;   // sent, or encrypted, from where they lie
  Counter mtu_black_holes;  // times that larger packets were given up
  Counter pages_received;   // by their first fragments
  std::array<Counter, static_cast<std::size_t>(Received::kCount)> received{};
  // How it stands, as of the last packet accepted or probe timeout.
  Counter smoothed_rtt_ns;  // 0: not measured yet
  Counter window_packets, in_flight_packets;
  Counter credit_left_packets;   // what the peer still lets us send
  Counter works_in_hand;         // pages and zero runs not acknowledged yet
  Counter stream_backlog_bytes;  // priority lane: of messages not acknowledged yet
};

class Lane {
 public:
  Lane(const LaneConfig& config, LaneUser& user, Instant now);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  /// Takes one UDP payload (may be changed in place by decryption). Calls on_page, on_zero_run, on_message,
  /// on_acknowledged. `from`: where what is behind the first kPacketHeadBytes is still to be copied from, by the pass
  /// that checks the tag; each byte is looked at as it was copied, whoever writes there. Null: all is in `datagram`.
  /// `unseen`: for so long nobody had looked for packets. From kAwayMin on it is this host's doing and no queue of the
  /// network's: congestion control, here and at the peer, does not count it.
  Received on_packet(Instant now, std::span<std::byte> datagram, const std::byte* from = nullptr, Duration unseen = {});
  /// Builds the next packet to send into `out` (datagram_bytes_max long); returns its length there, 0 when there is
  /// nothing to send now. With `in_place`, which comes empty, pages need not be in `out`.
  std::size_t poll_transmit(Instant now, std::span<std::byte> out, PagesInPlace* in_place = nullptr);
  /// When tick() must be called at the latest; kNever when no timer runs.
  [[nodiscard]] Instant deadline() const;
  void tick(Instant now);

  /// Queues a message (at most kMessageBytesMax) on the priority lane. False when message_room() is too small: try
  /// again when it drains.
  [[nodiscard]] bool send_message(std::span<const std::byte> message);
  [[nodiscard]] std::size_t message_room() const;

  /// No page, zero run or message is in hand: all that was given and is known to this lane is acknowledged.
  [[nodiscard]] bool quiet() const;
  /// Nothing of ours has been acknowledged for peer_timeout although something waited, and probes went out: whatever
  /// else the peer says, it does not read.
  [[nodiscard]] bool peer_dead(Instant now) const;
  [[nodiscard]] LaneFault fault() const;
  [[nodiscard]] const LaneCounters& counters() const;
  [[nodiscard]] Duration smoothed_rtt() const;
  [[nodiscard]] std::uint32_t congestion_window_packets() const;
  /// Sent, and neither acknowledged nor given up.
  [[nodiscard]] std::uint32_t in_flight_packets() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace godwit::transport
