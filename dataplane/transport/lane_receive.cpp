#include "dataplane/transport/lane_impl.h"

namespace godwit::transport {

namespace {
/// An ack block names the floor by its distance, in 32 bits: what is further away could only be acknowledged wrongly.
constexpr std::uint64_t kFloorDistanceMax = UINT32_MAX - 1;
}  // namespace

Received Lane::Impl::on_packet(Instant now, std::span<std::byte> datagram, const std::byte* from, Duration unseen) {
  const Received result = receive(now, datagram, from, unseen >= kAwayMin ? unseen : Duration{0});
  ++counters_.received[static_cast<std::size_t>(result)];
  return result;
}

/// Cheap and keyless checks first; nothing but a counter changes before the tag and the whole body are found good.
Received Lane::Impl::receive(Instant now, std::span<std::byte> datagram, const std::byte* from, Duration waited) {
  if (fault_ != LaneFault::kNone) {
    return Received::kClosed;
  }
  const auto packet = wire::parse_packet(datagram);
  if (!packet) {
    return packet.error() == wire::Reject::kVersion ? Received::kWrongVersion : Received::kMalformed;
  }
  const wire::PacketHeader& header = packet->header;
  if (const auto refused = refuse(header)) {
    return *refused;
  }
  if (const Opened opened = opener_->open(now, header, datagram, recovery_.probe_timeout(), from);
      opened != Opened::kYes) {
    if (opener_->forgeries_used_up()) {
      fault_ = LaneFault::kForgeries;
    }
    return opened == Opened::kOldKey ? Received::kOldKey : Received::kBadTag;
  }
  if (wire::parse_body(header, packet->body, body_) != wire::BadBody::kNone || !acceptable(header, body_)) {
    return Received::kBadBody;
  }
  ++counters_.packets_received;
  counters_.bytes_received += datagram.size();
  const bool eliciting = wire::is_ack_eliciting(header.type);
  // Given up by its sender: what it carried has gone out again, and may since have been overwritten by something newer.
  const bool given_up = header.packet_number < acks_.floor();
  if (body_.has_ack) {
    on_ack(now, body_.ack, waited);
  }
  const bool delivered = given_up || deliver(header, body_);
  acks_.on_received(now, header.packet_number, eliciting, (header.flags & wire::kFlagAckNow) != 0, waited);
  if (eliciting) {
    acks_.raise_floor(body_.floor);
  }
  publish();  // whatever becomes of its content: what it acknowledges counts
  if (given_up) {
    return Received::kTooOld;
  }
  return delivered ? Received::kAccepted : Received::kBadBody;
}

std::optional<Received> Lane::Impl::refuse(const wire::PacketHeader& header) const {
  if (header.flow_id != config_.local_flow_id) {
    return Received::kWrongFlow;
  }
  if (header.lane != config_.lane) {
    return Received::kWrongLane;
  }
  if (!opener_->takes(header.flags)) {
    return Received::kMalformed;  // sealed in another way than was agreed
  }
  if (header.packet_number > acks_.floor() && header.packet_number - acks_.floor() > kFloorDistanceMax) {
    return Received::kBeyondCredit;
  }
  const ReplayWindow& window = acks_.window();
  switch (window.check(header.packet_number)) {
    case ReplayWindow::Verdict::kNew:
      break;
    case ReplayWindow::Verdict::kDuplicate:
      return Received::kDuplicate;
    case ReplayWindow::Verdict::kTooOld:
      return Received::kTooOld;
  }
  if (wire::is_ack_eliciting(header.type) &&
      !credit_grant_.allows(window.any(), window.largest(), header.packet_number)) {
    return Received::kBeyondCredit;
  }
  return std::nullopt;
}

/// Rules that need the lane's state: breaking one is a bug of the peer.
bool Lane::Impl::acceptable(const wire::PacketHeader& header, const wire::Body& body) const {
  if (body.has_ack && body.ack.largest >= recovery_.next_number()) {
    return false;  // acknowledges what was never sent
  }
  switch (header.type) {
    case wire::PacketType::kMessage:
      return carries_messages() && !receiver_->broken();
    case wire::PacketType::kPages:
    case wire::PacketType::kZeroRuns:
    case wire::PacketType::kProbe:
    case wire::PacketType::kAck:
      return true;
  }
  return false;
}

void Lane::Impl::on_ack(Instant now, const wire::AckBlock& ack, Duration waited) {
  credit_use_.on_edge(ack.edge);
  sealer_->on_reported(now, ack.largest, recovery_.probe_timeout());
  const AckOutcome outcome =
      recovery_.on_ack(now, ack, waited, [this](const SentContent& content) { on_content_acknowledged(content); });
  counters_.spurious_losses += outcome.spurious;
  if (outcome.acknowledged + outcome.spurious + outcome.late > 0) {
    last_progress_ = now;
  }
  if (outcome.late_packet_bytes > 0) {
    path_mtu_.on_acknowledged(outcome.late_packet_bytes);
  }
  if (path_mtu_.rises()) {
    cut_anew(now);
  }
  if (outcome.persistent_congestion) {
    swift_.on_persistent_congestion();
  }
  if (outcome.acknowledged == 0) {
    return;
  }
  detect_lost(now);
  swift_.on_acknowledged(now, outcome.acknowledged, outcome.rtt, recovery_.reported_end(), recovery_.next_number());
}

void Lane::Impl::detect_lost(Instant now) {
  std::uint32_t mtu_probes = 0;  // their loss is no sign of congestion: RFC 8899 §3, 7.
  const std::uint32_t lost = recovery_.detect_lost(now, [&](const SentContent& content) {
    mtu_probes += content.kind == ContentKind::kMtuProbe ? 1 : 0;
    on_content_lost(now, content);
  });
  if (lost > 0) {
    counters_.packets_lost += lost;
    swift_.on_lost(lost - mtu_probes);
    watch_mtu(now);
  }
}

void Lane::Impl::on_content_acknowledged(const SentContent& content) {
  path_mtu_.on_acknowledged(content.packet_bytes);
  Work done;
  switch (content.kind) {
    case ContentKind::kNone:
      break;
    case ContentKind::kProbe:
      bare_probe_outstanding_ = false;
      break;
    case ContentKind::kMtuProbe:
      path_mtu_.on_probe_acknowledged();
      break;
    case ContentKind::kPages:
      for (const std::uint32_t slot : {content.slot, content.second}) {
        if (slot != kNoSlot && works_.on_acknowledged(slot, content.parts, done)) {
          user_.on_acknowledged(done);
        }
      }
      break;
    case ContentKind::kZeroRuns:
      for (std::uint32_t slot = content.slot; slot != kNoSlot;) {
        const std::uint32_t next = works_.at(slot).chain_next;
        if (works_.on_acknowledged(slot, content.parts, done)) {
          user_.on_acknowledged(done);
        }
        slot = next;
      }
      break;
    case ContentKind::kMessage:
      --messages_in_flight_;
      sender_->on_acknowledged(content.offset, content.length);
      break;
  }
}

void Lane::Impl::on_content_lost(Instant now, const SentContent& content) {
  if (content.kind != ContentKind::kMtuProbe && !content.in_place) {
    path_mtu_.on_lost(content.packet_bytes);
  }
  switch (content.kind) {
    case ContentKind::kNone:
      break;
    case ContentKind::kProbe:
      bare_probe_outstanding_ = false;  // the next acknowledgement, or waiting content, makes another
      break;
    case ContentKind::kMtuProbe:
      path_mtu_.on_probe_lost(now);
      break;
    case ContentKind::kPages:
      for (const std::uint32_t slot : {content.slot, content.second}) {
        if (slot != kNoSlot) {
          works_.on_lost(slot, content.parts);
        }
      }
      break;
    case ContentKind::kZeroRuns:
      for (std::uint32_t slot = content.slot; slot != kNoSlot;) {
        const std::uint32_t next = works_.at(slot).chain_next;
        works_.on_lost(slot, content.parts);
        slot = next;
      }
      break;
    case ContentKind::kMessage:
      --messages_in_flight_;
      sender_->on_lost(content.offset, content.length);
      break;
  }
}

bool Lane::Impl::deliver(const wire::PacketHeader& header, const wire::Body& body) {
  switch (header.type) {
    case wire::PacketType::kPages:
      for (std::size_t i = 0; i < body.count; ++i) {
        const wire::PageDesc& desc = body.pages[i];
        counters_.pages_received += desc.offset == 0 ? 1 : 0;
        user_.on_page(config_.lane, desc.round, desc.page, desc.offset, body.page_bytes[i]);
      }
      return true;
    case wire::PacketType::kZeroRuns:
      for (std::size_t i = 0; i < body.count; ++i) {
        const wire::ZeroRun run = wire::zero_run(body, i);
        user_.on_zero_run(config_.lane, run.round, run.first, run.count);
      }
      return true;
    case wire::PacketType::kMessage:
      if (!receiver_->on_chunk(body.message_offset, body.message_bytes)) {
        return false;
      }
      while (const auto message = receiver_->next()) {
        user_.on_message(*message);
      }
      return !receiver_->broken();
    case wire::PacketType::kProbe:
    case wire::PacketType::kAck:
      break;
  }
  return true;
}

}  // namespace godwit::transport
