#include "dataplane/daemon/data_path.h"

#include <algorithm>
#include <utility>

#include "dataplane/wire/datagram.h"
#include "dataplane/wire/packet.h"

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
    case Drop::kCount:
      break;
  }
  return "unknown";
}

DataPath::DataPath(port::Queue& queue, port::NeighboursOptions neighbours, std::uint16_t udp_port,
                   std::function<void()> wake)
    : queue_(queue),
      mac_(neighbours.mac),
      udp_port_(udp_port),
      neighbours_(std::move(neighbours)),
      inbox_(std::move(wake)) {}

bool DataPath::turn(Instant now) {
  bool busy = inbox_.run();
  busy |= receive(now);
  for (const auto& flow : flows_) {
    if (flow->deadline() <= now) {
      flow->tick(now);
      busy = true;
    }
  }
  busy |= transmit(now);
  return busy;
}

Instant DataPath::deadline() const {
  Instant first = neighbours_.deadline();
  for (const auto& flow : flows_) {
    first = std::min(first, flow->deadline());
  }
  return first;
}

bool DataPath::receive(Instant now) {
  const auto frames = queue_.receive();
  for (const std::span<std::byte> frame : frames) {
    switch (wire::classify_frame(frame)) {
      case wire::FrameKind::kUdp:
        on_datagram(now, frame);
        break;
      case wire::FrameKind::kArp:
      case wire::FrameKind::kNeighbour:
        neighbours_.on_frame(now, frame);
        break;
      case wire::FrameKind::kOther:
        count(Drop::kNotUdp);
        break;
    }
  }
  if (!frames.empty()) {
    for (const auto& flow : flows_) {
      flow->flush(now);
    }
  }
  return !frames.empty();
}

void DataPath::on_datagram(Instant now, std::span<std::byte> frame) {
  // Checksums are not looked at: every payload carries a seal that is stronger, and the addresses are compared below.
  const auto datagram = wire::parse_datagram(frame, wire::ChecksumCheck::kTrust);
  if (!datagram) {
    count(Drop::kMalformedIp);
    return;
  }
  if (datagram->destination_mac != mac_) {
    count(Drop::kNotForUs);
    return;
  }
  if (!neighbours_.is_local(datagram->destination.address)) {
    count(Drop::kOtherAddress);
    return;
  }
  if (datagram->destination.port != udp_port_) {
    count(Drop::kOtherPort);
    return;
  }
  on_sealed(now, datagram->source, datagram->payload);
}

void DataPath::on_sealed(Instant now, const wire::UdpEndpoint& source, std::span<std::byte> payload) {
  const auto packet = wire::parse_packet(payload);
  if (!packet) {
    count(Drop::kMalformedPacket);
    return;
  }
  MigrationFlow* const flow = table_.find(packet->header.flow_id);
  if (flow == nullptr) {
    count(Drop::kUnknownFlow);
    return;
  }
  if (source.address != flow->peer().address) {
    count(Drop::kOtherPeer);
    return;
  }
  const transport::Received received = flow->on_packet(now, packet->header.lane, payload);
  ++counters_.received[static_cast<std::size_t>(received)];
  if (received == transport::Received::kAccepted) {
    neighbours_.confirm(now, source.address);
  } else {
    count(Drop::kLane);
  }
}

bool DataPath::transmit(Instant now) {
  // What the driver did not take last time goes first; while it is full, nothing new is built.
  if (!queue_.flush()) {
    return true;
  }
  std::size_t budget = port::kBurst;
  while (budget > 0) {
    const auto frame = queue_.next_frame();
    const std::size_t bytes = frame.empty() ? 0 : neighbours_.poll_transmit(now, frame);
    if (bytes == 0) {
      break;
    }
    queue_.commit(bytes);
    --budget;
  }
  for (const auto& flow : flows_) {
    budget -= flow->transmit(now, 0, queue_, neighbours_, mac_, budget);
  }
  for (std::size_t i = 0; i < flows_.size() && budget > 0; ++i) {
    MigrationFlow& flow = *flows_[(first_bulk_ + i) % flows_.size()];
    for (std::size_t lane = 1; lane < flow.lane_count(); ++lane) {
      budget -= flow.transmit(now, lane, queue_, neighbours_, mac_, budget);
    }
  }
  ++first_bulk_;
  const bool sent = budget < port::kBurst;
  queue_.flush();
  return sent;
}

void DataPath::add(std::unique_ptr<MigrationFlow> flow, Instant now) {
  table_.insert(flow->flow_id(), *flow);
  flow->start(now);
  flows_.push_back(std::move(flow));
}

std::unique_ptr<MigrationFlow> DataPath::remove(std::uint32_t flow_id, Instant now) {
  const auto found =
      std::find_if(flows_.begin(), flows_.end(), [&](const auto& flow) { return flow->flow_id() == flow_id; });
  if (found == flows_.end()) {
    return nullptr;
  }
  transmit(now);
  std::unique_ptr<MigrationFlow> flow = std::move(*found);
  flows_.erase(found);
  table_.erase(flow_id);
  return flow;
}

}  // namespace godwit::daemon
