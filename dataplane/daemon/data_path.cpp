#include "dataplane/daemon/data_path.h"

#include <algorithm>
#include <utility>

namespace godwit::daemon {

std::string_view to_string(Drop drop) {
  switch (drop) {
    case Drop::kNotForUs:
      return "not_for_us";
    case Drop::kNotUdp:
      return "not_udp";
    case Drop::kMalformedIp:
      return "malformed_ip";
    case Drop::kOtherAddress:
      return "other_address";
    case Drop::kOtherPort:
      return "other_port";
    case Drop::kMalformedPacket:
      return "malformed_packet";
    case Drop::kUnknownFlow:
      return "unknown_flow";
    case Drop::kOtherPeer:
      return "other_peer";
    case Drop::kLane:
      return "refused_by_lane";
    case Drop::kHandOver:
      return "hand_over_full";
    case Drop::kCount:
      break;
  }
  return "unknown";
}

DataPath::DataPath(port::Queue& queue, DataPathOptions options)
    : queue_(queue),
      mac_(options.neighbours.mac),
      udp_port_(options.udp_port),
      wake_(std::move(options.wake)),
      on_sleeping_(std::move(options.on_sleeping)),
      watch_(std::move(options.watch)),
      neighbours_(std::move(options.neighbours)),
      inbox_(wake_) {}

void DataPath::join(const std::vector<DataPath*>& lcores) {
  lcores_ = lcores;
  self_ = static_cast<std::size_t>(std::find(lcores.begin(), lcores.end(), this) - lcores.begin());
  GW_ASSERT(self_ < lcores.size());
  for (const DataPath* other : lcores) {
    handed_by_.push_back(std::make_unique<SpscRing<port::ReceivedFrame>>(other == this ? 1 : port::kHandOverMax));
  }
}

bool DataPath::turn(Instant now) {
  bool busy = inbox_.run();
  const std::uint64_t receive_from = port::cycles();
  if (receive(now)) {
    busy = true;
    counters_.receive_cycles += port::cycles() - receive_from;
  }
  polled_at_ = now;
  for (const auto& paging : pagings_) {
    busy = paging->poll_faults(now) || busy;
  }
  for (const auto& flow : flows_) {
    if (flow->pump(now)) {
      busy = true;
      for (const auto& share : flow->shares()) {
        lcores_[share->lcore()]->nudge();
      }
    }
    if (flow->deadline() <= now) {
      flow->tick(now);
      busy = true;
    }
  }
  for (FlowShare* share : shares_) {
    if (share->deadline() <= now) {
      share->tick(now);
      busy = true;
    }
  }
  const std::uint64_t transmit_from = port::cycles();
  if (transmit(now)) {
    busy = true;
    counters_.transmit_cycles += port::cycles() - transmit_from;
  }
  for (FlowShare* share : shares_) {
    if (share->take_told()) {
      lcores_[0]->nudge();
    }
  }
  return busy;
}

Instant DataPath::deadline() const {
  Instant first = neighbours_.deadline();
  for (const auto& flow : flows_) {
    first = std::min(first, flow->deadline());
  }
  for (const FlowShare* share : shares_) {
    first = std::min(first, share->deadline());
  }
  for (const auto& paging : pagings_) {
    first = std::min(first, paging->deadline(polled_at_));
  }
  return first;
}

void DataPath::sleeping(bool asleep) {
  sleep_flag_.set(asleep);
  on_sleeping_(asleep);
}

void DataPath::nudge() {
  if (sleep_flag_.take()) {
    wake_();
  }
}

bool DataPath::receive(Instant now) {
  unseen_ = now - std::exchange(looked_at_, now);
  const auto frames = queue_.receive();
  for (std::size_t i = 0; i < frames.size(); ++i) {
    if (const std::size_t lcore = on_frame(now, frames[i], queue_.elsewhere(i)); lcore != self_) {
      hand_over(lcore, i);
    }
  }
  const bool found = receive_handed_over(now) || !frames.empty();
  if (found) {
    for (const auto& flow : flows_) {
      flow->flush(now);
    }
    for (FlowShare* share : shares_) {
      share->flush();
    }
  }
  return found;
}

bool DataPath::receive_handed_over(Instant now) {
  std::size_t count = 0;
  for (const auto& ring : handed_by_) {
    while (count < handed_.size() && ring->pop(handed_[count])) {
      const std::size_t lcore = on_frame(now, handed_[count].bytes, nullptr);
      GW_ASSERT(lcore == self_);
      ++count;
    }
  }
  return count != 0;
}

void DataPath::hand_over(std::size_t lcore, std::size_t index) {
  if (!lcores_[lcore]->handed_by_[self_]->push(queue_.keep(index))) {
    return count(Drop::kHandOver);
  }
  ++counters_.handed_over;
  lcores_[lcore]->nudge();
}

std::size_t DataPath::on_frame(Instant now, std::span<std::byte> frame, const std::byte* from) {
  switch (wire::classify_frame(frame)) {
    case wire::FrameKind::kUdp:
      return on_datagram(now, frame, from);
    case wire::FrameKind::kArp:
    case wire::FrameKind::kNeighbour:
      if (self_ == 0) {
        neighbours_.on_frame(now, frame);
      }
      return 0;
    case wire::FrameKind::kOther:
      count(Drop::kNotUdp);
      break;
  }
  return self_;
}

std::size_t DataPath::on_datagram(Instant now, std::span<std::byte> frame, const std::byte* from) {
  // Checksums are not looked at: every payload carries a seal that is stronger, and the addresses are compared below.
  const auto datagram = wire::parse_datagram(frame, wire::ChecksumCheck::kTrust);
  if (!datagram) {
    ++counters_.datagram_rejects[static_cast<std::size_t>(datagram.error())];
    count(Drop::kMalformedIp);
  } else if (datagram->destination_mac != mac_) {
    count(Drop::kNotForUs);
  } else if (!neighbours_.is_local(datagram->destination.address)) {
    count(Drop::kOtherAddress);
  } else if (datagram->destination.port != udp_port_) {
    count(Drop::kOtherPort);
  } else {
    const std::byte* const packet_from = from != nullptr ? from + (datagram->payload.data() - frame.data()) : nullptr;
    return on_sealed(now, datagram->source, datagram->payload, packet_from);
  }
  return self_;
}

std::size_t DataPath::on_sealed(Instant now, const wire::UdpEndpoint& source, std::span<std::byte> payload,
                                const std::byte* from) {
  const auto packet = wire::parse_packet(payload);
  if (!packet) {
    ++counters_.packet_rejects[static_cast<std::size_t>(packet.error())];
    count(Drop::kMalformedPacket);
    return self_;
  }
  const std::size_t lcore = lcore_of_lane(packet->header.lane, lcores_.size());
  if (lcore != self_) {
    return lcore;
  }
  if (lcore == 0) {
    on_packet(now, table_.find(packet->header.flow_id), source, packet->header.lane, payload, from);
  } else {
    on_packet(now, share_table_.find(packet->header.flow_id), source, packet->header.lane, payload, from);
  }
  return self_;
}

template <class Owner>
void DataPath::on_packet(Instant now, Owner* flow, const wire::UdpEndpoint& source, std::uint16_t lane,
                         std::span<std::byte> payload, const std::byte* from) {
  if (flow == nullptr) {
    return count(Drop::kUnknownFlow);
  }
  if (source.address != flow->peer().address) {
    return count(Drop::kOtherPeer);
  }
  const transport::Received received = flow->on_packet(now, lane, payload, from, unseen_);
  ++counters_.received[static_cast<std::size_t>(received)];
  if (received != transport::Received::kAccepted) {
    return count(Drop::kLane);
  }
  if (self_ == 0) {
    neighbours_.confirm(now, source.address);
  }
}

bool DataPath::transmit(Instant now) {
  // While the driver is full no bulk is built; what is urgent is, and goes before the bulk that waits.
  const bool open = queue_.flush();
  const std::size_t urgent = transmit_urgent(now);
  if (urgent > 0) {
    queue_.flush();  // before the time that building bulk takes
  }
  const std::size_t bulk = open && urgent < port::kBurst ? transmit_bulk(now, port::kBurst - urgent) : 0;
  queue_.flush();
  return !open || urgent + bulk > 0;
}

std::size_t DataPath::transmit_urgent(Instant now) {
  std::size_t sent = 0;
  while (sent < port::kBurst) {
    const auto frame = queue_.next_frame(port::Priority::kUrgent);
    const std::size_t bytes = frame.empty() ? 0 : neighbours_.poll_transmit(now, frame);
    if (bytes == 0) {
      break;
    }
    queue_.commit(port::Priority::kUrgent, bytes);
    ++sent;
  }
  for (const auto& flow : flows_) {
    flow->resolve(now, neighbours_);
    sent += flow->transmit(now, 0, queue_, mac_, port::kBurst - sent);
  }
  return sent;
}

std::size_t DataPath::transmit_bulk(Instant now, std::size_t budget) {
  std::size_t sent = 0;
  for (std::size_t i = 0; i < flows_.size() && sent < budget; ++i) {
    Flow& flow = *flows_[(first_bulk_ + i) % flows_.size()];
    for (std::size_t lane = 1; lane < flow.lane_count(); ++lane) {
      sent += flow.transmit(now, lane, queue_, mac_, budget - sent);
    }
  }
  for (std::size_t i = 0; i < shares_.size() && sent < budget; ++i) {
    sent += shares_[(first_bulk_ + i) % shares_.size()]->transmit(now, queue_, mac_, budget - sent);
  }
  ++first_bulk_;
  return sent;
}

void DataPath::add(std::unique_ptr<Flow> flow, Instant now) {
  GW_ASSERT(self_ == 0);
  table_.insert(flow->flow_id(), *flow);
  flow->start(now);
  for (const auto& share : flow->shares()) {
    DataPath* const lcore = lcores_[share->lcore()];
    lcore->inbox_.post([lcore, share = share.get()] { lcore->attach(*share); });
  }
  flows_.push_back(std::move(flow));
}

void DataPath::watch(const std::shared_ptr<FaultWatch>& paging) {
  if (std::ranges::find(pagings_, paging) != pagings_.end()) {
    return;
  }
  pagings_.push_back(paging);
  for (const int descriptor : paging->descriptors()) {
    if (watch_) {
      watch_(descriptor, true);
    }
  }
}

void DataPath::unwatch(const std::shared_ptr<FaultWatch>& paging) {
  if (std::erase(pagings_, paging) == 0 || !watch_) {
    return;
  }
  for (const int descriptor : paging->descriptors()) {
    watch_(descriptor, false);
  }
}

void DataPath::attach(FlowShare& share) {
  share_table_.insert(share.flow_id(), share);
  shares_.push_back(&share);
}

void DataPath::detach(const FlowShare& share) {
  share_table_.erase(share.flow_id());
  std::erase(shares_, &share);
}

void DataPath::release(std::uint32_t flow_id, std::function<void(std::unique_ptr<Flow>)> then) {
  Flow* const flow = table_.find(flow_id);
  if (flow == nullptr || flow->shares().empty()) {
    return then(remove(flow_id));
  }
  // Nothing of the flow may be called any more on any lcore before it is given away.
  const auto left = std::make_shared<std::size_t>(flow->shares().size());
  for (const auto& share : flow->shares()) {
    DataPath* const lcore = lcores_[share->lcore()];
    lcore->inbox_.post([this, lcore, share = share.get(), flow_id, left, then] {
      lcore->detach(*share);
      inbox_.post([this, flow_id, left, then] {
        if (--*left == 0) {
          then(remove(flow_id));
        }
      });
    });
  }
}

void DataPath::release_migration(std::uint32_t flow_id,
                                 const std::function<void(std::unique_ptr<MigrationFlow>)>& then) {
  release(flow_id, [then](std::unique_ptr<Flow> flow) {
    then(std::unique_ptr<MigrationFlow>(static_cast<MigrationFlow*>(flow.release())));
  });
}

std::unique_ptr<Flow> DataPath::remove(std::uint32_t flow_id) {
  const auto found =
      std::find_if(flows_.begin(), flows_.end(), [&](const auto& flow) { return flow->flow_id() == flow_id; });
  if (found == flows_.end()) {
    return nullptr;
  }
  transmit(port::now());
  std::unique_ptr<Flow> flow = std::move(*found);
  flows_.erase(found);
  table_.erase(flow_id);
  return flow;
}

}  // namespace godwit::daemon
