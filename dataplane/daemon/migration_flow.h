#pragma once
// The home lcore's part of one migration: the priority lane, its part of the bulk lanes, and the Source or Destination
// behind them (a MigrationPart, which may outlive a flow that died and go on with the next one). It owns the shares of
// the other lcores too, which call them from when they are attached until they are detached. Owned and called by the
// home lcore's DataPath. Jobs run on the guest's worker and come back through that DataPath's inbox. Failure: whatever
// goes wrong reaches the owner as MigrationEvents::on_failed or on_connection_lost; the flow then only acknowledges,
// until it is taken away.

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

struct SourceRole {
  transfer::MigrationConfig config;
  transfer::Policy policy;
  transfer::SourceGuest guest;
};
struct DestinationRole {
  transfer::MigrationConfig config;
  transfer::DestinationGuest guest;
};

/// One end of a migration, with one flow or with several after each other; goes on the home lcore.
struct MigrationPart {
  MigrationPart(const SourceRole& role, Worker& worker, Inbox& lcore, transfer::MigrationEvents& events);
  MigrationPart(DestinationRole role, Worker& worker, Inbox& lcore, transfer::MigrationEvents& events);
  [[nodiscard]] transfer::Stats stats(Instant now) const;
  /// It may go on without lanes, or with others.
  [[nodiscard]] bool may_detach() const;

  WorkerExecutor executor;
  transfer::MigrationEvents& events;
  std::unique_ptr<transfer::Source> source;  // or
  std::unique_ptr<transfer::Destination> destination;
  const bool pages;  // destination: post-copy may come
};

class MigrationFlow {
 public:
  enum class Begin : std::uint8_t { kStart, kResume };

  MigrationFlow(const FlowConfig& config, std::unique_ptr<MigrationPart> part, Begin begin, Instant now);
  ~MigrationFlow();
  MigrationFlow(const MigrationFlow&) = delete;
  MigrationFlow& operator=(const MigrationFlow&) = delete;

  [[nodiscard]] std::uint32_t flow_id() const { return config_.local_flow_id; }
  [[nodiscard]] const wire::UdpEndpoint& peer() const { return config_.peer; }
  /// Lanes of this lcore; the first is the priority lane.
  [[nodiscard]] std::size_t lane_count() const { return lanes_.count(); }
  [[nodiscard]] const std::vector<std::unique_ptr<FlowShare>>& shares() const { return shares_; }
  [[nodiscard]] transfer::Source* source() { return part_->source.get(); }
  [[nodiscard]] transfer::Destination* destination() { return part_->destination.get(); }
  [[nodiscard]] const MigrationPart& part() const { return *part_; }

  void start(Instant now);
  /// Source: a piece of QEMU's stream, or its end; `done` is called when Source has taken it (true) or the migration
  /// has failed (false).
  void offer_device_state(std::string data, bool end, std::function<void(bool taken)> done);
  void cancel(Instant now, const std::string& reason);
  /// Tells everyone who waits that nothing will be taken any more.
  void refuse_device_state();
  transport::Received on_packet(Instant now, std::uint16_t lane, std::span<std::byte> datagram, const std::byte* from,
                                Duration unseen);
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
  [[nodiscard]] transfer::Stats stats(Instant now) const { return part_->stats(now); }
  [[nodiscard]] std::uint32_t epoch_next() const;
  /// Takes the part off its lanes; null if it has failed. No lcore calls the flow any more, which is good for nothing
  /// after that.
  std::unique_ptr<MigrationPart> detach(Instant now);

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
  const Begin begin_;
  std::unique_ptr<MigrationPart> part_;
  PeerMac peer_mac_;
  FlowLanes lanes_;
  std::vector<std::unique_ptr<FlowShare>> shares_;
  std::optional<wire::MacAddress> to_;
  Instant unresolved_since_ = kNever;
  std::deque<Offer> offers_;  // wait for room
  Instant publish_at_{}, progress_at_{};
};

}  // namespace godwit::daemon
