#include "dataplane/daemon/migration_flow.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace godwit::daemon {
namespace {

constexpr Duration kProgressEvery = milliseconds(200);  // as Source tells its own

}  // namespace

MigrationPart::MigrationPart(const SourceRole& role, Worker& worker, Inbox& lcore, transfer::MigrationEvents& told)
    : executor(worker, lcore),
      events(told),
      source(std::make_unique<transfer::Source>(role.config, role.policy, role.guest, executor, told)),
      pages(false) {}

MigrationPart::MigrationPart(DestinationRole role, Worker& worker, Inbox& lcore, transfer::MigrationEvents& told)
    : executor(worker, lcore), events(told), pages(role.guest.paging != nullptr) {
  destination = std::make_unique<transfer::Destination>(role.config, std::move(role.guest), executor, told);
}

transfer::Stats MigrationPart::stats(Instant now) const {
  return source ? source->stats(now) : destination->stats(now);
}

bool MigrationPart::may_detach() const { return source ? source->serves() : pages && destination->is_paging(); }

MigrationFlow::MigrationFlow(const FlowConfig& config, std::unique_ptr<MigrationPart> part, Begin begin, Instant now)
    : Flow(config, part->source != nullptr), begin_(begin), part_(std::move(part)) {
  make_lanes(now);
}

MigrationFlow::~MigrationFlow() = default;

void MigrationFlow::make_lanes(Instant now) {
  const bool initiator = part_->source != nullptr;
  std::vector<std::vector<std::uint16_t>> by_lcore(config_.lcores);
  for (std::uint16_t lane = 0; lane <= config_.bulk_lanes; ++lane) {
    by_lcore[lcore_of_lane(lane, config_.lcores)].push_back(lane);
  }
  for (const std::uint16_t lane : by_lcore[0]) {
    lanes_.add(lane, initiator ? static_cast<transport::LaneUser&>(*part_->source) : *part_->destination, now);
  }
  for (std::size_t lcore = 1; lcore < by_lcore.size() && !by_lcore[lcore].empty(); ++lcore) {
    std::unique_ptr<transfer::Share> share;
    if (initiator) {
      share = part_->source->make_share(by_lcore[lcore]);
    } else {
      share = part_->destination->make_share();
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
  if (part_->source) {
    begin_ == Begin::kStart ? part_->source->start(now, lanes) : part_->source->resume(now, lanes);
  } else {
    begin_ == Begin::kStart ? part_->destination->start(now, lanes) : part_->destination->resume(now, lanes);
  }
}

void MigrationFlow::offer_device_state(std::string data, bool end, std::function<void(bool taken)> done) {
  GW_ASSERT(part_->source != nullptr);
  offers_.push_back({std::move(data), end, std::move(done)});
}

void MigrationFlow::pump_device_state(Instant now) {
  while (!offers_.empty()) {
    Offer& offer = offers_.front();
    if (!offer.data.empty() && !part_->source->device_state(std::as_bytes(std::span(offer.data)))) {
      return;
    }
    if (offer.end) {
      part_->source->device_state_end(now);
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
  if (part_->source) {
    part_->source->cancel(now, reason);
  } else {
    part_->destination->cancel(now, reason);
  }
}

bool MigrationFlow::pump(Instant) {
  return part_->source ? !shares_.empty() && part_->source->pump() : part_->destination->pump();
}

void MigrationFlow::flush(Instant now) {
  if (part_->source) {
    part_->source->flush();
    pump_device_state(now);
  } else {
    part_->destination->flush(now);
  }
  publish(now);
}

void MigrationFlow::tick(Instant now) {
  lanes_.tick(now);
  if (part_->source) {
    part_->source->tick(now);
    pump_device_state(now);
  } else {
    part_->destination->tick(now);
  }
  publish(now);
}

void MigrationFlow::publish(Instant now) {
  if (part_->pages && part_->destination->is_paging() && now >= progress_at_) {
    part_->events.on_progress(stats(now));  // a destination tells nothing of it by itself
    progress_at_ = now + kProgressEvery;
  }
  if (now >= publish_at_) {
    config_.figures->stats.set(stats(now));
    publish_at_ = now + FlowFigures::kPublishEvery;
  }
}

Instant MigrationFlow::deadline() const {
  return std::min(part_->source ? part_->source->deadline() : part_->destination->deadline(), lanes_.deadline());
}

std::unique_ptr<MigrationPart> MigrationFlow::detach(Instant now) {
  pump(now);
  if (!part_->may_detach()) {
    return nullptr;
  }
  part_->source ? part_->source->detach(now) : part_->destination->detach(now);
  return std::move(part_);
}

std::uint32_t MigrationFlow::epoch_next() const {
  return part_->source ? part_->source->epoch_next() : part_->destination->epoch_next();
}

}  // namespace godwit::daemon
