#include "dataplane/transfer/migration_end.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace godwit::transfer {
namespace {
constexpr Duration kMemoryCheckInterval = milliseconds(500);
}

MigrationEnd::MigrationEnd(const MigrationConfig& config, GuestMemory& memory, Executor& executor,
                           MigrationEvents& events)
    : config_(config), memory_(memory), executor_(executor), events_(events), page_count_(memory.page_count()) {
  totals_.pages_total = page_count_;
}

void MigrationEnd::begin(Instant now, std::span<transport::Lane* const> lanes) {
  attach_lanes(now, lanes);
  started_ = now_;
  memory_check_at_ = now + kMemoryCheckInterval;
}

void MigrationEnd::cancel(Instant now, const std::string& reason) {
  now_ = std::max(now_, now);
  before_cancel();
  fail(Failure::kCancelled, reason);
  if (!lanes_.empty()) {
    pump_outbox();
  }
  tell_failure();
}

void MigrationEnd::end_failed(Failure failure, std::string text) {
  failure_ = failure;
  failure_text_ = std::move(text);
  finished_at_ = now_;
  wake_ = true;
  outbox_.clear();
  if (failure != Failure::kPeerFailed && failure != Failure::kPeerLost) {
    outbox_.push(wire::Abort{failure_text_});
  }
}

void MigrationEnd::lose_connection(std::string text) {
  if (std::exchange(connected_, false)) {
    lost_text_ = std::move(text);
    outbox_.clear();
    wake_ = true;
  }
}

void MigrationEnd::tell_connection_lost() {
  if (!lost_text_.empty()) {
    events_.on_connection_lost(std::exchange(lost_text_, {}));
  }
}

void MigrationEnd::detach_lanes() {
  connected_ = false;
  outbox_.clear();
  lost_text_.clear();
  add_transport(totals_);
  totals_.rtt_us = totals_.window_packets = 0;
  lanes_.clear();
}

void MigrationEnd::attach_lanes(Instant now, std::span<transport::Lane* const> lanes) {
  GW_ASSERT(lanes_.empty() && lanes.size() >= 2);
  now_ = std::max(now_, now);
  lanes_.assign(lanes.begin(), lanes.end());
  connected_ = true;
  wake_ = true;
}

void MigrationEnd::tell_failure() {
  if (!std::exchange(failure_told_, true)) {
    events_.on_failed(failure_, failure_text_);
  }
}

std::string MigrationEnd::shape_mismatch(std::uint64_t table_pages) const {
  const std::uint64_t shape_pages =
      std::accumulate(config_.regions.begin(), config_.regions.end(), std::uint64_t{0},
                      [](std::uint64_t sum, const RegionShape& r) { return sum + r.pages; });
  if (page_count_ != 0 && shape_pages == page_count_ && table_pages == page_count_ &&
      config_.regions.size() <= wire::kRegionsMax) {
    return {};
  }
  return "the regions have " + std::to_string(shape_pages) + " pages, the guest's memory " +
         std::to_string(page_count_) + ", its table " + std::to_string(table_pages);
}

bool MigrationEnd::any_lane_dead() const {
  return std::ranges::any_of(lanes_, [this](const auto* lane) { return lane->peer_dead(now_); });
}

std::string MigrationEnd::closed_lane() const {
  const auto closed =
      std::ranges::find_if(lanes_, [](const auto* lane) { return lane->fault() != transport::LaneFault::kNone; });
  return closed == lanes_.end() ? "" : "the transfer is closed: " + std::string(to_string((*closed)->fault()));
}

void MigrationEnd::check_memory_if_due() {
  if (memory_.damaged() || now_ >= memory_check_at_) {
    memory_check_at_ = now_ + kMemoryCheckInterval;
    check_memory();
  }
}

bool MigrationEnd::check_memory() {
  const auto whole = memory_.check_whole();
  if (!whole) {
    fail(Failure::kGuestMemory, whole.error().text);
  }
  return whole.has_value();
}

void MigrationEnd::add_transport(Stats& stats) const {
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    const transport::LaneCounters& c = lanes_[i]->counters();
    stats.retransmitted_pages += c.pages_retransmitted;
    stats.wire_bytes +=
        c.bytes_sent + c.bytes_received + (c.packets_sent + c.packets_received) * config_.header_bytes_per_packet;
    stats.packets_sent += c.packets_sent;
    stats.packets_lost += c.packets_lost;
    stats.probe_timeouts += c.probe_timeouts;
    stats.spurious_losses += c.spurious_losses;
    if (i > 0) {
      stats.rtt_us = std::max(stats.rtt_us, c.smoothed_rtt_ns / 1000);
      stats.window_packets += c.window_packets;
    }
  }
}

}  // namespace godwit::transfer
