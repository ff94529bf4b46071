#pragma once
// A flow as its home lcore drives it: lanes of this lcore, where the peer is, frames out. What goes over it is its
// derived class's: a migration (migration_flow.h), or the pages of a split VM (split_flow.h).
//
// Owned and called by the home lcore's DataPath. Failure: none of its own.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/time.h"
#include "dataplane/daemon/flow_lanes.h"
#include "dataplane/port/neighbours.h"
#include "dataplane/port/port.h"
#include "dataplane/transport/lane.h"
#include "dataplane/wire/address.h"

namespace godwit::daemon {

class Flow {
 public:
  Flow(const FlowConfig& config, bool initiator) : config_(config), lanes_(config, initiator) {}
  virtual ~Flow() = default;
  Flow(const Flow&) = delete;
  Flow& operator=(const Flow&) = delete;

  [[nodiscard]] std::uint32_t flow_id() const { return config_.local_flow_id; }
  [[nodiscard]] const wire::UdpEndpoint& peer() const { return config_.peer; }
  /// Lanes of this lcore; the first is the priority lane.
  [[nodiscard]] std::size_t lane_count() const { return lanes_.count(); }
  /// Of other lcores.
  [[nodiscard]] const std::vector<std::unique_ptr<FlowShare>>& shares() const { return shares_; }

  virtual void start(Instant now) = 0;
  /// `from`, `unseen`: Lane::on_packet.
  transport::Received on_packet(Instant now, std::uint16_t lane, std::span<std::byte> datagram, const std::byte* from,
                                Duration unseen) {
    return lanes_.on_packet(now, lane, datagram, from, unseen);
  }
  /// Each turn: looks what else there is to do; true: there was something.
  virtual bool pump(Instant now) = 0;
  /// After each receive burst that had something for this lcore.
  virtual void flush(Instant now) = 0;
  virtual void tick(Instant now) = 0;
  [[nodiscard]] virtual Instant deadline() const = 0;
  /// Once before transmit(): where the peer is.
  void resolve(Instant now, port::Neighbours& neighbours);
  /// Fills the queue with what the index-th lane may send now, at most `budget` frames; how many.
  std::size_t transmit(Instant now, std::size_t index, port::Queue& queue, const wire::MacAddress& mac,
                       std::size_t budget);

 protected:
  const FlowConfig config_;
  PeerMac peer_mac_;
  FlowLanes lanes_;
  std::vector<std::unique_ptr<FlowShare>> shares_;

 private:
  std::optional<wire::MacAddress> to_;
  Instant unresolved_since_ = kNever;
};

}  // namespace godwit::daemon
