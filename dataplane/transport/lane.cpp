#include "dataplane/transport/lane.h"

#include <algorithm>

#include "dataplane/transport/lane_impl.h"

namespace godwit::transport {

namespace {

LaneConfig checked(LaneConfig config) {
  GW_ASSERT(config.local_flow_id != 0 && config.peer_flow_id != 0);
  config.datagram_bytes_max =
      std::min(config.datagram_bytes_max, static_cast<std::uint32_t>(wire::kDatagramBytesMaximum));
  return config;
}

SealConfig seal_config(const LaneConfig& config, bool from_initiator) {
  return {.cipher = config.cipher,
          .secret = config.secret,
          .lane = config.lane,
          .direction = from_initiator ? Direction::kFromInitiator : Direction::kFromResponder,
          .limits = config.key_limits};
}

}  // namespace

Lane::Impl::Impl(const LaneConfig& config, LaneUser& user, Instant now)
    : config_(checked(config)),
      user_(user),
      sealer_(make_sealer(seal_config(config_, config_.initiator), now)),
      opener_(make_opener(seal_config(config_, !config_.initiator))),
      recovery_(config_.rtt_granularity),
      swift_(config_.base_rtt, config_.rtt_granularity, kCreditPacketsMax),
      credit_grant_(config_.credit_packets),
      acks_(config_.lane == kPriorityLane ? AckPolicy::kImmediate : AckPolicy::kDelayed),
      path_mtu_(config_.datagram_bytes_max, config_.datagram_bytes_fallback, config_.path_mtu),
      layout_(page_layout(path_mtu_.bytes())),
      works_(config_.lane == kPriorityLane ? kPriorityWorksMax : WorkTable::kBulkSlots),
      last_progress_(now),
      waiting_since_(now),
      probing_since_(now),
      own_counters_(config_.counters == nullptr ? std::make_unique<LaneCounters>() : nullptr),
      counters_(own_counters_ ? *own_counters_ : *config_.counters) {
  config_.secret = {};  // the seals have what they need
  if (config_.lane == kPriorityLane) {
    sender_.emplace(LossRecovery::kRingPackets);
    receiver_.emplace(LossRecovery::kRingPackets);
  }
  publish();
}

Instant Lane::Impl::deadline() const {
  if (fault_ != LaneFault::kNone) {
    return kNever;
  }
  return std::min({acks_.deadline(), recovery_.loss_deadline(), recovery_.early_probe_deadline(),
                   recovery_.probe_deadline(), opener_->deadline()});
}

void Lane::Impl::publish() {
  if (recovery_.rtt().sampled()) {
    counters_.smoothed_rtt_ns.set(static_cast<std::uint64_t>(recovery_.rtt().smoothed().ns));
  }
  counters_.window_packets.set(swift_.window());
  counters_.in_flight_packets.set(recovery_.outstanding());
  const std::uint64_t next = recovery_.next_number();
  counters_.credit_left_packets.set(credit_use_.allows(next) ? credit_use_.edge() - next + 1 : 0);
  if (carries_messages()) {
    counters_.stream_backlog_bytes.set(sender_->backlog_bytes());
  }
  counters_.works_in_hand.set(works_.used());
  // What was probed for before the lane fell quiet says nothing of the peer: the next content has its own time.
  waiting_ = waiting_ && !quiet();
  const bool suspected = recovery_.probe_count() >= kProbesBeforeDead && waiting_;
  const Instant asked_since = probing_since_ + Duration{-config_.peer_timeout.ns / 2};
  silent_since_ns_.set(suspected ? std::max({last_progress_, waiting_since_, asked_since}).ns : kNever.ns);
}

void Lane::Impl::tick(Instant now) {
  if (fault_ != LaneFault::kNone) {
    return;
  }
  opener_->tick(now);
  if (recovery_.loss_deadline() <= now) {
    detect_lost(now);
    return;
  }
  if (recovery_.probe_deadline() > now) {
    if (recovery_.early_probe_deadline() <= now) {
      recovery_.on_early_probe();
      early_probe_wanted_ = true;
    }
    return;
  }
  // One probe carries real data: the oldest in flight goes out anew, window and credit notwithstanding. The other is
  // small, as large packets may be what is lost.
  ++counters_.probe_timeouts;
  probing_since_ = recovery_.probe_count() == 0 ? now : probing_since_;
  recovery_.on_probe_timeout();
  probes_allowed_ = kProbesWithData;
  if (const auto content = recovery_.take_oldest()) {
    on_content_lost(now, *content);
  }
  early_probe_wanted_ = !quiet();  // a lone bare probe was lost: there is nothing that another could find out
  watch_mtu(now);
  publish();
}

void Lane::Impl::watch_mtu(Instant now) {
  if (path_mtu_.falls(now)) {
    ++counters_.mtu_black_holes;
    cut_anew(now);
  } else if (path_mtu_.is_too_narrow(now, config_.peer_timeout)) {
    fault_ = LaneFault::kPathTooNarrow;
  }
}

void Lane::Impl::cut_anew(Instant now) {
  while (const auto content = recovery_.take_oldest()) {
    on_content_lost(now, *content);
  }
  layout_ = page_layout(path_mtu_.bytes());
  works_.begin_again(layout_.all_parts());
}

bool Lane::Impl::send_message(std::span<const std::byte> message) {
  GW_ASSERT(carries_messages());
  return sender_->push(message);
}

std::size_t Lane::Impl::message_room() const { return carries_messages() ? sender_->room() : 0; }

bool Lane::Impl::quiet() const { return works_.empty() && (!carries_messages() || sender_->all_acknowledged()); }

bool Lane::Impl::peer_dead(Instant now) const {
  const Instant since{silent_since_ns_};
  return since != kNever && now - since >= config_.peer_timeout;
}

std::string_view to_string(Received received) {
  switch (received) {
    case Received::kAccepted:
      return "accepted";
    case Received::kDuplicate:
      return "duplicate";
    case Received::kTooOld:
      return "too_old";
    case Received::kBeyondCredit:
      return "beyond_credit";
    case Received::kMalformed:
      return "malformed";
    case Received::kWrongVersion:
      return "wrong_version";
    case Received::kWrongLane:
      return "wrong_lane";
    case Received::kWrongFlow:
      return "wrong_flow";
    case Received::kOldKey:
      return "old_key";
    case Received::kBadTag:
      return "bad_tag";
    case Received::kBadBody:
      return "bad_body";
    case Received::kClosed:
      return "closed";
    case Received::kCount:
      break;
  }
  return "unknown";
}

std::string_view to_string(LaneFault fault) {
  switch (fault) {
    case LaneFault::kNone:
      return "no fault";
    case LaneFault::kForgeries:
      return "so many forged packets came that the next one might pass: somebody in the network attacks this migration";
    case LaneFault::kKeyUsedUp:
      return "a key has served as long as it may, and the peer has never confirmed it";
    case LaneFault::kNumbersUsedUp:
      return "all packet numbers are used up";
    case LaneFault::kPathTooNarrow:
      return "packets of 1280 bytes do not get through, but small ones do: every link between the two hosts must carry "
             "1280 bytes at least";
  }
  return "unknown";
}

Lane::Lane(const LaneConfig& config, LaneUser& user, Instant now) : impl_(std::make_unique<Impl>(config, user, now)) {}
Lane::~Lane() = default;

Received Lane::on_packet(Instant now, std::span<std::byte> datagram, const std::byte* from, Duration unseen) {
  return impl_->on_packet(now, datagram, from, unseen);
}
std::size_t Lane::poll_transmit(Instant now, std::span<std::byte> out, PagesInPlace* in_place) {
  return impl_->poll_transmit(now, out, in_place);
}
Instant Lane::deadline() const { return impl_->deadline(); }
void Lane::tick(Instant now) { impl_->tick(now); }
bool Lane::send_message(std::span<const std::byte> message) { return impl_->send_message(message); }
std::size_t Lane::message_room() const { return impl_->message_room(); }
bool Lane::quiet() const { return impl_->quiet(); }
bool Lane::peer_dead(Instant now) const { return impl_->peer_dead(now); }
LaneFault Lane::fault() const { return impl_->fault(); }
const LaneCounters& Lane::counters() const { return impl_->counters(); }
Duration Lane::smoothed_rtt() const { return impl_->smoothed_rtt(); }
std::uint32_t Lane::congestion_window_packets() const { return impl_->window(); }
std::uint32_t Lane::in_flight_packets() const { return impl_->in_flight(); }

}  // namespace godwit::transport
