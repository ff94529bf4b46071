#pragma once
// The lcore's half of one migration: the lanes to the peer and the Source or Destination behind them. Owned and called
// by one DataPath on its lcore; made by the control thread and handed over. Jobs run on the guest's worker and come
// back through the DataPath's inbox. Failure: whatever goes wrong reaches the owner as MigrationEvents::on_failed; the
// flow then only acknowledges, until it is taken away.

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/time.h"
#include "dataplane/daemon/worker.h"
#include "dataplane/port/neighbours.h"
#include "dataplane/port/port.h"
#include "dataplane/transfer/destination.h"
#include "dataplane/transfer/source.h"
#include "dataplane/transport/lane.h"
#include "dataplane/wire/address.h"

namespace godwit::daemon {

struct FlowConfig {
  std::uint32_t local_flow_id = 0;
  std::uint32_t peer_flow_id = 0;
  wire::IpAddress local;
  wire::UdpEndpoint peer;
  std::uint32_t mtu_bytes = 1500;  // the smaller of both ends'
  std::uint16_t bulk_lanes = 1;    // the smaller of both ends'
  transport::Secret secret{};
  std::uint32_t credit_packets = 256;
  Duration peer_timeout = milliseconds(3000);
  Duration base_rtt = microseconds(500);
  Duration rtt_granularity = milliseconds(2);
};

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
  [[nodiscard]] std::size_t lane_count() const { return lanes_.size(); }
  [[nodiscard]] const transport::Lane& lane(std::size_t index) const { return *lanes_[index]; }
  [[nodiscard]] transfer::Source* source() { return source_.get(); }
  [[nodiscard]] transfer::Destination* destination() { return destination_.get(); }

  void start(Instant now);
  /// Source: a piece of QEMU's stream, or its end; `done` is called when Source has taken it (true) or the migration
  /// has failed (false).
  void offer_device_state(std::string data, bool end, std::function<void(bool taken)> done);
  void cancel(Instant now, const std::string& reason);
  /// Tells everyone who waits that nothing will be taken any more.
  void refuse_device_state();
  transport::Received on_packet(Instant now, std::uint16_t lane, std::span<std::byte> datagram);
  /// After each receive burst that had something for this flow.
  void flush(Instant now);
  void tick(Instant now);
  [[nodiscard]] Instant deadline() const;
  /// Fills the queue with what this lane may send now, at most `budget` frames; how many.
  std::size_t transmit(Instant now, std::size_t lane, port::Queue& queue, port::Neighbours& neighbours,
                       const wire::MacAddress& mac, std::size_t budget);
  [[nodiscard]] transfer::Stats stats(Instant now) const;
  [[nodiscard]] std::uint32_t epoch_next() const;

 private:
  struct Offer {
    std::string data;
    bool end = false;
    std::function<void(bool)> done;
  };
  void make_lanes(transport::LaneUser& user, bool initiator, Instant now);
  void pump_device_state(Instant now);

  const FlowConfig config_;
  WorkerExecutor executor_;
  std::unique_ptr<transfer::Source> source_;
  std::unique_ptr<transfer::Destination> destination_;
  std::vector<std::unique_ptr<transport::Lane>> lanes_;
  std::vector<std::uint16_t> source_ports_;  // one a lane
  std::uint32_t datagram_bytes_max_ = 0;
  Instant unresolved_since_ = kNever;
  std::deque<Offer> offers_;  // wait for room
};

}  // namespace godwit::daemon
