#pragma once
// The home lcore's part of one migration: the priority lane, its part of the bulk lanes, and the Source or Destination
// behind them. It owns the shares of the other lcores too, which call them from when they are attached until they are
// detached. Owned and called by the home lcore's DataPath. Jobs run on the guest's worker and come back through that
// DataPath's inbox. Failure: whatever goes wrong reaches the owner as MigrationEvents::on_failed; the
// flow then only acknowledges, until it is taken away.

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/time.h"
#include "dataplane/daemon/flow_lanes.h"
#include "dataplane/daemon/worker.h"
#include "dataplane/port/neighbours.h"
#include "dataplane/port/port.h"
#include "dataplane/transfer/destination.h"
#include "dataplane/transfer/source.h"
#include "dataplane/transport/lane.h"
#include "dataplane/wire/address.h"

namespace godwit::daemon {

class MigrationFlow {
 public:
  struct SourceRole {
    transfer::MigrationConfig config;
    transfer::Policy policy;
    transfer::SourceGuest guest;
  };
  struct DestinationRole {
    transfer::MigrationConfig config;
    transfer::DestinationGuest guest;
  };

  MigrationFlow(const FlowConfig& config, SourceRole role, Worker& worker, Inbox& lcore,
                transfer::MigrationEvents& events, Instant now);
  MigrationFlow(const FlowConfig& config, DestinationRole role, Worker& worker, Inbox& lcore,
                transfer::MigrationEvents& events, Instant now);
  ~MigrationFlow();
  MigrationFlow(const MigrationFlow&) = delete;
  MigrationFlow& operator=(const MigrationFlow&) = delete;

  [[nodiscard]] std::uint32_t flow_id() const { return config_.local_flow_id; }
  [[nodiscard]] const wire::UdpEndpoint& peer() const { return config_.peer; }
  /// Lanes of this lcore; the first is the priority lane.
  [[nodiscard]] std::size_t lane_count() const { return lanes_.count(); }
  [[nodiscard]] const std::vector<std::unique_ptr<FlowShare>>& shares() const { return shares_; }
  [[nodiscard]] transfer::Source* source() { return source_.get(); }
  [[nodiscard]] transfer::Destination* destination() { return destination_.get(); }

  void start(Instant now);
  /// Source: a piece of QEMU's stream, or its end; `done` is called when Source has taken it (true) or the migration
  /// has failed (false).
  void offer_device_state(std::string data, bool end, std::function<void(bool taken)> done);
  void cancel(Instant now, const std::string& reason);
  /// Tells everyone who waits that nothing will be taken any more.
  void refuse_device_state();
  transport::Received on_packet(Instant now, std::uint16_t lane, std::span<std::byte> datagram, const std::byte* from);
  /// Looks what the shares have to tell and gives them work; true: there was something.
  bool pump();
  /// After each receive burst that had something for this flow.
  void flush(Instant now);
  void tick(Instant now);
  [[nodiscard]] Instant deadline() const;
  /// Once before transmit(): where the peer is.
  void resolve(Instant now, port::Neighbours& neighbours);
  /// Fills the queue with what the index-th lane may send now, at most `budget` frames; how many.
  std::size_t transmit(Instant now, std::size_t index, port::Queue& queue, const wire::MacAddress& mac,
                       std::size_t budget);
  [[nodiscard]] transfer::Stats stats(Instant now) const;
  [[nodiscard]] std::uint32_t epoch_next() const;

 private:
  struct Offer {
    std::string data;
    bool end = false;
    std::function<void(bool)> done;
  };
  void make_lanes(Instant now);
  void pump_device_state(Instant now);
  void publish(Instant now);

  const FlowConfig config_;
  WorkerExecutor executor_;
  std::unique_ptr<transfer::Source> source_;
  std::unique_ptr<transfer::Destination> destination_;
  PeerMac peer_mac_;
  FlowLanes lanes_;
  std::vector<std::unique_ptr<FlowShare>> shares_;
  std::optional<wire::MacAddress> to_;
  Instant unresolved_since_ = kNever;
  std::deque<Offer> offers_;  // wait for room
  Instant publish_at_{};
};

}  // namespace godwit::daemon
