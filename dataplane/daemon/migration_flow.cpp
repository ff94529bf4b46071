#include "dataplane/daemon/migration_flow.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "dataplane/wire/datagram.h"

namespace godwit::daemon {
namespace {

constexpr std::uint8_t kDscpPriority = 40;  // CS5
constexpr std::uint8_t kDscpBulk = 8;       // CS1

/// How long packets wait for the peer's Ethernet address; after that they count as lost on the way.
constexpr Duration kUnresolvedGrace = milliseconds(500);

/// A lane is its own UDP path, so that networks and receive-side scaling may spread lanes: the source port differs,
/// dynamic range.
std::uint16_t source_port(std::uint32_t flow_id, std::size_t lane) {
  return static_cast<std::uint16_t>(49152 + ((flow_id * 2654435761U >> 8) + lane) % 16384);
}

}  // namespace

MigrationFlow::MigrationFlow(const FlowConfig& config, SourceRole role, Worker& worker, Inbox& lcore,
                             transfer::MigrationEvents& events, Instant now)
    : config_(config), executor_(worker, lcore) {
  source_ = std::make_unique<transfer::Source>(role.config, role.policy, role.guest, executor_, events);
  make_lanes(*source_, true, now);
}

MigrationFlow::MigrationFlow(const FlowConfig& config, DestinationRole role, Worker& worker, Inbox& lcore,
                             transfer::MigrationEvents& events, Instant now)
    : config_(config), executor_(worker, lcore) {
  destination_ = std::make_unique<transfer::Destination>(role.config, std::move(role.guest), executor_, events);
  make_lanes(*destination_, false, now);
}

MigrationFlow::~MigrationFlow() = default;

void MigrationFlow::make_lanes(transport::LaneUser& user, bool initiator, Instant now) {
  datagram_bytes_max_ = wire::payload_bytes_max(config_.local.family, config_.mtu_bytes);
  for (std::uint16_t lane = 0; lane <= config_.bulk_lanes; ++lane) {
    transport::LaneConfig settings;
    settings.local_flow_id = config_.local_flow_id;
    settings.peer_flow_id = config_.peer_flow_id;
    settings.lane = lane;
    settings.initiator = initiator;
    settings.secret = config_.secret;
    settings.datagram_bytes_max = datagram_bytes_max_;
    settings.credit_packets = config_.credit_packets;
    settings.rtt_granularity = config_.rtt_granularity;
    settings.base_rtt = config_.base_rtt;
    settings.peer_timeout = config_.peer_timeout;
    lanes_.push_back(std::make_unique<transport::Lane>(settings, user, now));
    source_ports_.push_back(source_port(config_.local_flow_id, lane));
  }
}

void MigrationFlow::start(Instant now) {
  std::vector<transport::Lane*> lanes;
  for (const auto& lane : lanes_) {
    lanes.push_back(lane.get());
  }
  if (source_) {
    source_->start(now, lanes);
  } else {
    destination_->start(now, lanes);
  }
}

void MigrationFlow::offer_device_state(std::string data, bool end, std::function<void(bool taken)> done) {
  GW_ASSERT(source_ != nullptr);
  offers_.push_back({std::move(data), end, std::move(done)});
}

void MigrationFlow::pump_device_state(Instant now) {
  while (!offers_.empty()) {
    Offer& offer = offers_.front();
    if (!offer.data.empty() && !source_->device_state(std::as_bytes(std::span(offer.data)))) {
      return;
    }
    if (offer.end) {
      source_->device_state_end(now);
    }
    const std::function<void(bool)> done = std::move(offer.done);
    offers_.pop_front();
    done(true);
  }
}

void MigrationFlow::refuse_device_state() {
  for (const Offer& offer : offers_) {
    offer.done(false);
  }
  offers_.clear();
}

void MigrationFlow::cancel(Instant now, const std::string& reason) {
  if (source_) {
    source_->cancel(now, reason);
  } else {
    destination_->cancel(now, reason);
  }
}

transport::Received MigrationFlow::on_packet(Instant now, std::uint16_t lane, std::span<std::byte> datagram) {
  return lane < lanes_.size() ? lanes_[lane]->on_packet(now, datagram) : transport::Received::kWrongLane;
}

void MigrationFlow::flush(Instant now) {
  if (source_) {
    source_->flush();
    pump_device_state(now);
  } else {
    destination_->flush(now);
  }
}

void MigrationFlow::tick(Instant now) {
  for (const auto& lane : lanes_) {
    if (lane->deadline() <= now) {
      lane->tick(now);
    }
  }
  if (source_) {
    source_->tick(now);
    pump_device_state(now);
  } else {
    destination_->tick(now);
  }
}

Instant MigrationFlow::deadline() const {
  Instant first = source_ ? source_->deadline() : destination_->deadline();
  for (const auto& lane : lanes_) {
    first = std::min(first, lane->deadline());
  }
  return first;
}

std::size_t MigrationFlow::transmit(Instant now, std::size_t lane, port::Queue& queue, port::Neighbours& neighbours,
                                    const wire::MacAddress& mac, std::size_t budget) {
  const auto to = neighbours.resolve(now, config_.peer.address);
  if (to) {
    unresolved_since_ = kNever;
  } else {
    unresolved_since_ = std::min(unresolved_since_, now);
    if (now - unresolved_since_ < kUnresolvedGrace) {
      return 0;
    }
  }
  const wire::DatagramPath path{.source_mac = mac,
                                .destination_mac = to.value_or(wire::MacAddress{}),
                                .source = {config_.local, source_ports_[lane]},
                                .destination = config_.peer,
                                .dscp = lane == 0 ? kDscpPriority : kDscpBulk};
  const std::size_t header = wire::datagram_header_bytes(config_.local.family);
  std::size_t sent = 0;
  while (sent < budget) {
    const std::span<std::byte> frame = queue.next_frame();
    if (frame.empty()) {
      break;
    }
    GW_ASSERT(frame.size() >= header + datagram_bytes_max_);
    const std::size_t bytes = lanes_[lane]->poll_transmit(now, frame.subspan(header, datagram_bytes_max_));
    if (bytes == 0) {
      break;
    }
    if (!to) {
      ++sent;  // built and lost: the lane's own timers find out that nobody is there
      continue;
    }
    // The payload has its own seal; IPv6 insists on a checksum all the same.
    wire::write_datagram_headers(path, wire::UdpChecksum::kNone, frame.first(header + bytes));
    queue.commit(header + bytes);
    ++sent;
  }
  return sent;
}

transfer::Stats MigrationFlow::stats(Instant now) const {
  return source_ ? source_->stats(now) : destination_->stats(now);
}

std::uint32_t MigrationFlow::epoch_next() const { return source_ ? source_->epoch_next() : destination_->epoch_next(); }

}  // namespace godwit::daemon
