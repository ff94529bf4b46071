#include "dataplane/daemon/migration_flow.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace godwit::daemon {
namespace {

/// How long packets wait for the peer's Ethernet address; after that they count as lost on the way.
constexpr Duration kUnresolvedGrace = milliseconds(500);

}  // namespace

MigrationFlow::MigrationFlow(const FlowConfig& config, SourceRole role, Worker& worker, Inbox& lcore,
                             transfer::MigrationEvents& events, Instant now)
    : config_(config), executor_(worker, lcore), lanes_(config, true) {
  source_ = std::make_unique<transfer::Source>(role.config, role.policy, role.guest, executor_, events);
  make_lanes(now);
}

MigrationFlow::MigrationFlow(const FlowConfig& config, DestinationRole role, Worker& worker, Inbox& lcore,
                             transfer::MigrationEvents& events, Instant now)
    : config_(config), executor_(worker, lcore), lanes_(config, false) {
  destination_ = std::make_unique<transfer::Destination>(role.config, std::move(role.guest), executor_, events);
  make_lanes(now);
}

MigrationFlow::~MigrationFlow() = default;

void MigrationFlow::make_lanes(Instant now) {
  const bool initiator = source_ != nullptr;
  std::vector<std::vector<std::uint16_t>> by_lcore(config_.lcores);
  for (std::uint16_t lane = 0; lane <= config_.bulk_lanes; ++lane) {
    by_lcore[lcore_of_lane(lane, config_.lcores)].push_back(lane);
  }
  for (const std::uint16_t lane : by_lcore[0]) {
    lanes_.add(lane, initiator ? static_cast<transport::LaneUser&>(*source_) : *destination_, now);
  }
  for (std::size_t lcore = 1; lcore < by_lcore.size() && !by_lcore[lcore].empty(); ++lcore) {
    std::unique_ptr<transfer::Share> share;
    if (initiator) {
      share = source_->make_share(by_lcore[lcore]);
    } else {
      share = destination_->make_share();
    }
    shares_.push_back(
        std::make_unique<FlowShare>(config_, initiator, std::move(share), by_lcore[lcore], lcore, peer_mac_, now));
  }
}

void MigrationFlow::start(Instant now) {
  std::vector<transport::Lane*> lanes(std::size_t{config_.bulk_lanes} + 1);
  const auto put = [&lanes](const FlowLanes& some) {
    for (std::size_t i = 0; i < some.count(); ++i) {
      lanes[some.number(i)] = &some.lane(i);
    }
  };
  put(lanes_);
  for (const auto& share : shares_) {
    put(share->lanes());
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

transport::Received MigrationFlow::on_packet(Instant now, std::uint16_t lane, std::span<std::byte> datagram,
                                             const std::byte* from) {
  return lanes_.on_packet(now, lane, datagram, from);
}

bool MigrationFlow::pump() { return !shares_.empty() && (source_ ? source_->pump() : destination_->pump()); }

void MigrationFlow::flush(Instant now) {
  if (source_) {
    source_->flush();
    pump_device_state(now);
  } else {
    destination_->flush(now);
  }
  publish(now);
}

void MigrationFlow::tick(Instant now) {
  lanes_.tick(now);
  if (source_) {
    source_->tick(now);
    pump_device_state(now);
  } else {
    destination_->tick(now);
  }
  publish(now);
}

void MigrationFlow::publish(Instant now) {
  if (now >= publish_at_) {
    config_.figures->stats.set(stats(now));
    publish_at_ = now + FlowFigures::kPublishEvery;
  }
}

Instant MigrationFlow::deadline() const {
  return std::min(source_ ? source_->deadline() : destination_->deadline(), lanes_.deadline());
}

void MigrationFlow::resolve(Instant now, port::Neighbours& neighbours) {
  to_ = neighbours.resolve(now, config_.peer.address);
  unresolved_since_ = to_ ? kNever : std::min(unresolved_since_, now);
  peer_mac_.set(to_);
}

std::size_t MigrationFlow::transmit(Instant now, std::size_t index, port::Queue& queue, const wire::MacAddress& mac,
                                    std::size_t budget) {
  if (!to_ && now - unresolved_since_ < kUnresolvedGrace) {
    return 0;
  }
  return lanes_.transmit(now, index, queue, mac, to_, budget);
}

transfer::Stats MigrationFlow::stats(Instant now) const {
  return source_ ? source_->stats(now) : destination_->stats(now);
}

std::uint32_t MigrationFlow::epoch_next() const { return source_ ? source_->epoch_next() : destination_->epoch_next(); }

}  // namespace godwit::daemon
