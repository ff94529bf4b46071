#include "simulation/bulk_flows.h"

#include <algorithm>
#include <utility>

#include "dataplane/wire/packet.h"
#include "simulation/endless_user.h"

namespace godwit::simulation {

namespace {

constexpr std::size_t kBurst = 32;
constexpr std::int64_t kCostBytes = 9000;

/// Of the end numbered `index`; never 0.
constexpr std::uint32_t flow_id(std::size_t index) { return static_cast<std::uint32_t>(index + 1); }

}  // namespace

struct BulkFlows::End {
  End(const BulkPath& path, std::size_t index, Instant now) : user(index % 2 == 0, path.background) {
    transport::LaneConfig config;
    config.local_flow_id = flow_id(index);
    config.peer_flow_id = flow_id(index ^ 1);
    config.lane = 1;
    config.initiator = index % 2 == 0;
    config.datagram_bytes_max = path.datagram_bytes;
    config.credit_packets = path.credit_packets;
    config.base_rtt = path.base_rtt;
    config.rtt_granularity = path.rtt_granularity;
    lane = std::make_unique<transport::Lane>(config, user, now);
  }
  EndlessUser user;
  std::unique_ptr<transport::Lane> lane;
  std::deque<std::vector<std::byte>> inbox;
  Instant free_at{};
  Instant runs_until{};
  Instant looked_at{};
};

BulkFlows::BulkFlows(const BulkPath& path)
    : path_(path),
      network_(1),
      random_(2),
      links_{network_.add_link(path.link), network_.add_link(path.link)},
      out_(path.datagram_bytes) {}

BulkFlows::~BulkFlows() = default;

std::size_t BulkFlows::add_flow() {
  for (int i = 0; i < 2; ++i) {
    ends_.push_back(std::make_unique<End>(path_, ends_.size(), now_));
  }
  return ends_.size() / 2 - 1;
}

void BulkFlows::run(Duration time) {
  const Instant end = now_ + time;
  while (now_ < end) {
    while (auto delivered = network_.receive(now_)) {
      const auto packet = wire::parse_packet(delivered->bytes);
      if (packet && packet->header.flow_id <= ends_.size()) {
        ends_[packet->header.flow_id - 1]->inbox.push_back(std::move(delivered->bytes));
      }
    }
    Instant next = network_.next_delivery();
    for (std::size_t i = 0; i < ends_.size(); ++i) {
      next = std::min(next, turn(i));
    }
    now_ = std::max(next, now_ + Duration{100});
  }
}

Instant BulkFlows::turn(std::size_t index) {
  End& end = *ends_[index];
  if (now_ < end.free_at) {
    return end.free_at;
  }
  if (path_.pause_max.ns > 0 && now_ >= end.runs_until) {
    end.free_at = now_ + random_.up_to(path_.pause_max);
    end.runs_until = end.free_at + random_.up_to(path_.run_max);
    return end.free_at;
  }
  const Duration unseen = now_ - std::exchange(end.looked_at, now_);
  std::size_t packets = 0;
  for (; packets < kBurst && !end.inbox.empty(); ++packets) {
    end.lane->on_packet(now_, end.inbox.front(), nullptr, unseen);
    network_.recycle(std::move(end.inbox.front()));
    end.inbox.pop_front();
  }
  if (end.lane->deadline() <= now_) {
    end.lane->tick(now_);
  }
  for (std::size_t sent = 0; sent < kBurst; ++sent, ++packets) {
    const std::size_t length = end.lane->poll_transmit(now_, out_);
    if (length == 0) {
      break;
    }
    network_.send(now_, links_[index % 2], std::span<const std::byte>(out_).first(length));
  }
  const std::int64_t cost_ns = static_cast<std::int64_t>(packets) * path_.packet_cost.ns *
                               static_cast<std::int64_t>(path_.datagram_bytes) / kCostBytes;
  end.free_at = now_ + Duration{cost_ns};
  return packets > 0 ? end.free_at : std::max(end.lane->deadline(), end.free_at);
}

std::uint64_t BulkFlows::acknowledged_bits(std::size_t flow) const {
  return ends_[2 * flow]->user.acknowledged * pages::kPageSize * 8;
}

const transport::Lane& BulkFlows::source(std::size_t flow) const { return *ends_[2 * flow]->lane; }

double jain_index(const std::vector<double>& shares) {
  double sum = 0;
  double squares = 0;
  for (const double share : shares) {
    sum += share;
    squares += share * share;
  }
  return squares > 0 ? sum * sum / (static_cast<double>(shares.size()) * squares) : 0;
}

}  // namespace godwit::simulation
