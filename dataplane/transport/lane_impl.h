#pragma once
// Internal to transport: the parts of a lane, put together. See lane.h for owner, thread and meaning.
// lane.cpp: construction, timers, status. lane_receive.cpp: on_packet. lane_transmit.cpp: poll_transmit.

#include <memory>
#include <optional>

#include "dataplane/transport/ack_ranges.h"
#include "dataplane/transport/credit.h"
#include "dataplane/transport/lane.h"
#include "dataplane/transport/loss_recovery.h"
#include "dataplane/transport/message_stream.h"
#include "dataplane/transport/page_layout.h"
#include "dataplane/transport/path_mtu.h"
#include "dataplane/transport/seal.h"
#include "dataplane/transport/swift.h"
#include "dataplane/transport/work_table.h"

namespace godwit::transport {

/// Packets with content that one probe timeout allows beyond window and credit, and an empty one beside them: two in
/// all (RFC 9002 §6.2.4).
inline constexpr std::uint32_t kProbesWithData = 1;
/// Our own pause is not the peer's death: it has been asked so often, and for half of its timeout.
inline constexpr std::uint32_t kProbesBeforeDead = 2;
/// A side that only acknowledges asks for an acknowledgement once in so many packets: to learn of credit and floor.
inline constexpr std::uint64_t kUnreportedPacketsMax = 32;

class Lane::Impl {
 public:
  Impl(const LaneConfig& config, LaneUser& user, Instant now);

  Received on_packet(Instant now, std::span<std::byte> datagram, const std::byte* from, Duration unseen);
  std::size_t poll_transmit(Instant now, std::span<std::byte> out, PagesInPlace* in_place);
  [[nodiscard]] Instant deadline() const;
  void tick(Instant now);
  [[nodiscard]] bool send_message(std::span<const std::byte> message);
  [[nodiscard]] std::size_t message_room() const;
  [[nodiscard]] bool quiet() const;
  [[nodiscard]] bool peer_dead(Instant now) const;
  [[nodiscard]] LaneFault fault() const { return fault_; }
  [[nodiscard]] const LaneCounters& counters() const { return counters_; }
  [[nodiscard]] Duration smoothed_rtt() const {
    const auto ns = static_cast<std::int64_t>(counters_.smoothed_rtt_ns.get());
    return ns != 0 ? Duration{ns} : kRttInitial;
  }
  [[nodiscard]] std::uint32_t window() const { return swift_.window(); }
  [[nodiscard]] std::uint32_t in_flight() const { return recovery_.outstanding(); }

 private:
  [[nodiscard]] bool carries_messages() const { return sender_.has_value(); }
  /// What other threads may ask for.
  void publish();

  // ---- receiving ----
  Received receive(Instant now, std::span<std::byte> datagram, const std::byte* from, Duration waited);
  [[nodiscard]] std::optional<Received> refuse(const wire::PacketHeader& header) const;
  [[nodiscard]] bool acceptable(const wire::PacketHeader& header, const wire::Body& body) const;
  void on_ack(Instant now, const wire::AckBlock& ack, Duration waited);
  void on_content_acknowledged(const SentContent& content);
  void on_content_lost(Instant now, const SentContent& content);
  void detect_lost(Instant now);
  /// After detect_lost() or a probe timeout.
  void watch_mtu(Instant now);
  /// Packets have another size from now on.
  void cut_anew(Instant now);
  [[nodiscard]] bool deliver(const wire::PacketHeader& header, const wire::Body& body);

  // ---- sending ----
  /// A packet under construction: content comes after the header and the ack block.
  struct Draft {
    std::span<std::byte> out;
    std::size_t at = 0;
    wire::PacketHeader header;
    std::size_t pages_at = 0;  // in a packet of pages, where their bytes begin
    PagesInPlace in_place;     // that follow at `at`, and are not there yet
    std::array<pages::PageHash, wire::kPagesPerPacketMax> hashes{};
    std::size_t hash_count = 0;
  };
  enum class Next : std::uint8_t { kNothing, kWork, kMessage };
  /// What would go out now, by the order that lane.h has; takes work in hand.
  [[nodiscard]] Next next_content(bool window_open);
  [[nodiscard]] bool has_work() { return works_.front() != kNoSlot || pull_work(); }
  bool pull_work();
  [[nodiscard]] Draft begin_packet(Instant now, std::span<std::byte> out, wire::PacketType type, bool with_ack);
  std::size_t finish_packet(Instant now, Draft& draft, SentContent& content);
  void record(Instant now, Draft& draft, SentContent& content);
  std::size_t seal(Draft& draft);
  void put_prefix(Draft& draft, std::uint8_t count, std::uint16_t length);
  using Lying = std::array<std::span<const std::byte>, wire::kPagesPerPacketMax>;
  [[nodiscard]] Lying find_in_place(const SentContent& content);
  void put_desc(Draft& draft, const WorkSlot& entry, std::uint32_t part);
  void read_part(pages::PageNumber page, std::uint32_t part, std::span<std::byte> out);
  void note_hash(Draft& draft, const WorkSlot& entry, std::span<const std::byte> bytes);
  void put_pages(Draft& draft, const SentContent& content, const Lying& lying);
  [[nodiscard]] bool has_room() const { return in_place_ != nullptr && !in_place_->room.empty(); }
  [[nodiscard]] bool copies_into_room(const Lying& lying) const {
    return !lying[0].empty() && has_room() && !sealer_->encrypts();
  }
  void copy_into_room(Draft& draft, const SentContent& content, const Lying& lying);
  std::size_t send_ack(Instant now, std::span<std::byte> out);
  std::size_t send_bare_probe(Instant now, std::span<std::byte> out, bool with_ack);
  std::size_t send_mtu_probe(Instant now, std::span<std::byte> out, std::uint32_t bytes, bool with_ack);
  std::size_t send_content(Instant now, std::span<std::byte> out, Next next, bool with_ack);
  std::size_t send_pages(Instant now, std::span<std::byte> out, bool with_ack);
  std::size_t send_zero_runs(Instant now, std::span<std::byte> out, bool with_ack);
  std::size_t send_message_chunk(Instant now, std::span<std::byte> out, bool with_ack);
  [[nodiscard]] std::size_t ack_room(Next next) const;

  LaneConfig config_;
  LaneUser& user_;
  std::unique_ptr<Sealer> sealer_;
  std::unique_ptr<Opener> opener_;
  LossRecovery recovery_;
  Swift swift_;
  CreditUse credit_use_;
  CreditGrant credit_grant_;
  AckRanges acks_;
  PathMtu path_mtu_;
  PageLayout layout_;
  WorkTable works_;
  std::optional<MessageSender> sender_;  // priority lane
  std::optional<MessageReceiver> receiver_;
  std::uint32_t messages_in_flight_ = 0;   // packets
  std::uint32_t page_packets_in_row_ = 0;  // since the last packet of messages
  PagesInPlace* in_place_ = nullptr;       // of the poll_transmit() under way
  std::uint32_t probes_allowed_ = 0;
  bool early_probe_wanted_ = false;
  bool bare_probe_outstanding_ = false;
  Instant last_progress_;                       // something of ours was acknowledged
  bool waiting_ = false;                        // content of ours is not acknowledged yet
  Instant waiting_since_;                       // since then without a break
  Instant probing_since_;                       // the first probe timeout of those in a row
  wire::Body body_;                             // scratch of on_packet
  std::unique_ptr<LaneCounters> own_counters_;  // null: the owner has them
  LaneCounters& counters_;
  SingleWriter<std::int64_t> silent_since_ns_{kNever.ns};  // kNever: the peer is not suspected
  SingleWriter<LaneFault> fault_{LaneFault::kNone};
};

}  // namespace godwit::transport
