#include "dataplane/daemon/flow_lanes.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "dataplane/wire/datagram.h"
#include "dataplane/wire/frames.h"

namespace godwit::daemon {
namespace {

constexpr std::uint8_t kDscpPriority = 40;    // CS5
constexpr std::uint8_t kDscpBulk = 8;         // CS1
constexpr std::uint32_t kMtuFallback = 1500;  // of a path that drops larger packets: Ethernet's own
constexpr std::uint64_t kMacKnown = std::uint64_t{1} << 48;

constexpr std::uint16_t kPortStride = 128;  // more than a flow has lanes

/// A lane is its own UDP path, so that networks may spread lanes: each has another source port, of the dynamic range.
/// Where the peer's NIC says how it spreads them over its queues, one that lands on the queue of the lane's owner.
std::uint16_t source_port(const FlowConfig& config, std::uint16_t lane) {
  const std::uint32_t drawn = (config.local_flow_id * 2654435761U >> 8) / kPortStride * kPortStride;
  const auto port = static_cast<std::uint16_t>(wire::kDynamicPortFirst + (drawn + lane) % wire::kDynamicPortCount);
  if (!config.peer_spread || config.peer.address.family != config.local.family) {
    return port;
  }
  const auto queue = static_cast<std::uint8_t>(lcore_of_lane(lane, config.peer_spread->queues));
  return wire::find_source_port(*config.peer_spread, config.local, config.peer, queue, port, kPortStride)
      .value_or(port);
}

}  // namespace

void PeerMac::set(const std::optional<wire::MacAddress>& mac) {
  std::uint64_t word = 0;
  if (mac) {
    word = kMacKnown;
    for (std::size_t i = 0; i < mac->bytes.size(); ++i) {
      word |= std::uint64_t{mac->bytes[i]} << (8 * i);
    }
  }
  word_.store(word, std::memory_order_relaxed);
}

std::optional<wire::MacAddress> PeerMac::get() const {
  const std::uint64_t word = word_.load(std::memory_order_relaxed);
  if (word == 0) {
    return std::nullopt;
  }
  wire::MacAddress mac;
  for (std::size_t i = 0; i < mac.bytes.size(); ++i) {
    mac.bytes[i] = static_cast<std::uint8_t>(word >> (8 * i));
  }
  return mac;
}

FlowLanes::FlowLanes(const FlowConfig& config, bool initiator)
    : config_(config),
      initiator_(initiator),
      datagram_bytes_max_(wire::payload_bytes_max(config.local.family, config.mtu_bytes)) {}

void FlowLanes::add(std::uint16_t number, transport::LaneUser& user, Instant now) {
  transport::LaneConfig settings;
  settings.local_flow_id = config_.local_flow_id;
  settings.peer_flow_id = config_.peer_flow_id;
  settings.lane = number;
  settings.initiator = initiator_;
  settings.cipher = config_.cipher;
  settings.secret = config_.secret;
  settings.datagram_bytes_max = datagram_bytes_max_;
  settings.datagram_bytes_fallback = wire::payload_bytes_max(config_.local.family, kMtuFallback);
  settings.credit_packets = config_.credit_packets;
  settings.rtt_granularity = config_.rtt_granularity;
  settings.base_rtt = config_.base_rtt;
  settings.peer_timeout = config_.peer_timeout;
  settings.counters = config_.figures->lanes[number].get();
  lanes_.push_back({number, source_port(config_, number), std::make_unique<transport::Lane>(settings, user, now)});
}

transport::Received FlowLanes::on_packet(Instant now, std::uint16_t number, std::span<std::byte> datagram,
                                         const std::byte* from, Duration unseen) {
  const auto found =
      std::find_if(lanes_.begin(), lanes_.end(), [number](const Entry& e) { return e.number == number; });
  return found != lanes_.end() ? found->lane->on_packet(now, datagram, from, unseen) : transport::Received::kWrongLane;
}

void FlowLanes::tick(Instant now) {
  for (const Entry& entry : lanes_) {
    if (entry.lane->deadline() <= now) {
      entry.lane->tick(now);
    }
  }
}

Instant FlowLanes::deadline() const {
  Instant first = kNever;
  for (const Entry& entry : lanes_) {
    first = std::min(first, entry.lane->deadline());
  }
  return first;
}

std::size_t FlowLanes::transmit(Instant now, std::size_t index, port::Queue& queue, const wire::MacAddress& from,
                                const std::optional<wire::MacAddress>& to, std::size_t budget) {
  const Entry& entry = lanes_[index];
  const wire::DatagramPath path{.source_mac = from,
                                .destination_mac = to.value_or(wire::MacAddress{}),
                                .source = {config_.local, entry.source_port},
                                .destination = config_.peer,
                                .dscp = entry.number == 0 ? kDscpPriority : kDscpBulk};
  const port::Priority priority = entry.number == 0 ? port::Priority::kUrgent : port::Priority::kBulk;
  const std::size_t header = wire::datagram_header_bytes(config_.local.family);
  queue.allow_super_frames(config_.peer_takes_super_frames);
  std::size_t sent = 0;
  while (sent < budget) {
    const std::span<std::byte> frame = queue.next_frame(priority);
    if (frame.empty()) {
      break;
    }
    GW_ASSERT(frame.size() >= header + datagram_bytes_max_);
    // Over IPv6 the checksum would have to be made of what may change.
    const bool v4 = config_.local.family == wire::IpFamily::kV4;
    const bool refers = v4 && config_.loan != nullptr && config_.loan->usable() && queue.can_refer();
    // Of a packet of two pages, and nothing else, the pages are where copying is fastest.
    const auto use =
        config_.cipher == transport::Cipher::kNone ? port::RoomFor::kClearText : port::RoomFor::kCipherText;
    const std::span<std::byte> room = v4 ? queue.room(priority, header + wire::kPagesAt, use) : std::span<std::byte>();
    transport::PagesInPlace in_place;
    if (!room.empty()) {
      in_place.room = room.subspan(header, datagram_bytes_max_);
      const std::byte* const next = queue.next_room(priority);
      in_place.next_room = next != nullptr ? next + header : nullptr;
    }
    const std::size_t bytes = entry.lane->poll_transmit(now, frame.subspan(header, datagram_bytes_max_),
                                                        refers || !room.empty() ? &in_place : nullptr);
    if (bytes == 0) {
      break;
    }
    if (config_.served != nullptr && config_.served->damaged()) {
      break;  // the frame may hold zeros that are not the guest's
    }
    ++sent;
    if (to) {
      // The payload has its own seal; IPv6 insists on a checksum all the same.
      wire::write_datagram_headers(path, wire::UdpChecksum::kNone, frame.first(header + bytes), in_place.bytes);
      if (in_place.bytes == 0) {
        queue.commit(priority, header + bytes);
      } else if (in_place.count == 0) {
        queue.commit_around(priority, header + bytes, wire::kTagBytes, in_place.bytes);
      } else {
        queue.commit_referring(priority, header + bytes, wire::kTagBytes, in_place.view(), *config_.loan);
      }
    }
  }
  return sent;
}

FlowShare::FlowShare(const FlowConfig& config, bool initiator, std::unique_ptr<transfer::Share> share,
                     const std::vector<std::uint16_t>& lanes, std::size_t lcore, const PeerMac& peer_mac, Instant now)
    : flow_id_(config.local_flow_id),
      peer_(config.peer),
      lcore_(lcore),
      peer_mac_(peer_mac),
      share_(std::move(share)),
      lanes_(config, initiator) {
  for (const std::uint16_t lane : lanes) {
    lanes_.add(lane, *share_, now);
  }
}

std::size_t FlowShare::transmit(Instant now, port::Queue& queue, const wire::MacAddress& from, std::size_t budget) {
  if (behind_) {
    flush();
  }
  const auto to = peer_mac_.get();
  if (behind_ || !to) {
    return 0;
  }
  std::size_t sent = 0;
  for (std::size_t i = 0; i < lanes_.count() && sent < budget; ++i) {
    sent += lanes_.transmit(now, i, queue, from, to, budget - sent);
  }
  return sent;
}

}  // namespace godwit::daemon
