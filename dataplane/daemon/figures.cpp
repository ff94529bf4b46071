#include "dataplane/daemon/figures.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace godwit::daemon {

std::string_view to_string(FlowRole role) { return role == FlowRole::kSource ? "source" : "destination"; }

void PublishedStats::set(const transfer::Stats& stats) {
  std::array<std::uint64_t, std::tuple_size_v<decltype(words_)>> words{};
  std::memcpy(words.data(), &stats, sizeof stats);
  for (std::size_t i = 0; i < words.size(); ++i) {
    words_[i].set(words[i]);
  }
}

transfer::Stats PublishedStats::get() const {
  std::array<std::uint64_t, std::tuple_size_v<decltype(words_)>> words{};
  for (std::size_t i = 0; i < words.size(); ++i) {
    words[i] = words_[i].get();
  }
  return std::bit_cast<transfer::Stats>(words);
}

std::shared_ptr<FlowFigures> make_flow_figures(std::uint16_t bulk_lanes) {
  auto figures = std::make_shared<FlowFigures>();
  for (std::uint32_t lane = 0; lane <= bulk_lanes; ++lane) {
    figures->lanes.push_back(std::make_unique<transport::LaneCounters>());
  }
  return figures;
}

void LaneTotals::add(const transport::LaneCounters& counters) {
  packets_sent += counters.packets_sent;
  bytes_sent += counters.bytes_sent;
  packets_received += counters.packets_received;
  bytes_received += counters.bytes_received;
  pages_sent += counters.pages_sent;
  pages_retransmitted += counters.pages_retransmitted;
  pages_in_place += counters.pages_in_place;
  pages_received += counters.pages_received;
  payload_bytes_sent += counters.payload_bytes_sent;
  packets_lost += counters.packets_lost;
  probe_timeouts += counters.probe_timeouts;
  spurious_losses += counters.spurious_losses;
  mtu_black_holes += counters.mtu_black_holes;
}

void RoleTotals::add(const transfer::Stats& stats) {
  pages_sent += stats.pages_sent;
  pages_zero += stats.pages_zero;
  pages_reused += stats.pages_reused;
  wire_bytes += stats.wire_bytes;
  table_bytes += stats.table_bytes;
  device_state_bytes += stats.device_state_bytes;
  rounds += stats.round;
}

void FigureBook::add(FlowTotals& totals, const FlowFigures& flow, const transfer::Stats& stats) {
  totals.lanes.resize(std::max(totals.lanes.size(), flow.lanes.size()));
  for (std::size_t lane = 0; lane < flow.lanes.size(); ++lane) {
    totals.lanes[lane].add(*flow.lanes[lane]);
  }
  totals.roles[static_cast<std::size_t>(flow.role)].add(stats);
}

void FigureBook::begin(const Flow& flow) {
  const std::lock_guard lock(mutex_);
  flows_[flow->flow_id] = flow;
}

void FigureBook::end(std::uint32_t flow_id, const transfer::Stats& last, std::optional<bool> committed) {
  const std::lock_guard lock(mutex_);
  const auto found = flows_.find(flow_id);
  if (found == flows_.end()) {
    return;
  }
  const FlowFigures& flow = *found->second;
  add(ended_, flow, committed ? last : transfer::Stats{});
  if (committed) {
    RoleTotals& role = ended_.roles[static_cast<std::size_t>(flow.role)];
    ++(*committed ? role.committed : role.aborted);
  }
  flows_.erase(found);
}

void FigureBook::set_guests(std::vector<GuestFigures> guests) {
  const std::lock_guard lock(mutex_);
  guests_ = std::move(guests);
}

void FigureBook::set_images(const ImageFigures& images) {
  const std::lock_guard lock(mutex_);
  images_ = images;
}

ImageFigures FigureBook::images() const {
  const std::lock_guard lock(mutex_);
  return images_;
}

std::vector<FigureBook::Flow> FigureBook::flows() const {
  const std::lock_guard lock(mutex_);
  std::vector<Flow> flows;
  for (const auto& [id, flow] : flows_) {
    flows.push_back(flow);
  }
  return flows;
}

FigureBook::Flow FigureBook::flow(std::uint32_t flow_id) const {
  const std::lock_guard lock(mutex_);
  const auto found = flows_.find(flow_id);
  return found != flows_.end() ? found->second : nullptr;
}

std::vector<GuestFigures> FigureBook::guests() const {
  const std::lock_guard lock(mutex_);
  return guests_;
}

FlowTotals FigureBook::totals() const {
  const std::lock_guard lock(mutex_);
  FlowTotals totals = ended_;
  for (const auto& [id, flow] : flows_) {
    add(totals, *flow, flow->stats.get());
  }
  return totals;
}

}  // namespace godwit::daemon
