#pragma once
// One lcore's data path: receives, finds the flow, lets it place and answer, ticks, transmits. Everything here is
// called on the lcore, except inbox() and counters(). It owns the flows that were handed to it, its queue and the
// neighbours. Failure: a datagram that is not exactly for a live flow of ours is counted by reason and dropped, never
// answered.

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "dataplane/daemon/flows.h"
#include "dataplane/daemon/inbox.h"
#include "dataplane/daemon/migration_flow.h"
#include "dataplane/port/neighbours.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/port/port.h"

namespace godwit::daemon {

enum class Drop : std::uint8_t {
  kNotForUs,
  kNotUdp,
  kMalformedIp,
  kOtherAddress,
  kOtherPort,
  kMalformedPacket,
  kUnknownFlow,
  kOtherPeer,
  kLane,
  kCount
};
std::string_view to_string(Drop drop);

struct DataPathCounters {  // one writer, the lcore; telemetry reads them as they are
  std::array<std::uint64_t, static_cast<std::size_t>(Drop::kCount)> drops{};
  std::array<std::uint64_t, static_cast<std::size_t>(transport::Received::kCount)> received{};
};

class DataPath final : public port::PollLoopUser {
 public:
  DataPath(port::Queue& queue, port::NeighboursOptions neighbours, std::uint16_t udp_port, std::function<void()> wake);

  bool turn(Instant now) override;
  [[nodiscard]] Instant deadline() const override;

  /// Commands to this lcore.
  [[nodiscard]] Inbox& inbox() { return inbox_; }
  [[nodiscard]] const DataPathCounters& counters() const { return counters_; }
  [[nodiscard]] const port::Queue& queue() const { return queue_; }

  // ---- on the lcore: from a command ----
  void add(std::unique_ptr<MigrationFlow> flow, Instant now);
  [[nodiscard]] MigrationFlow* find(std::uint32_t flow_id) const { return table_.find(flow_id); }
  /// Takes the flow away, after a last transmission of what it has to say.
  std::unique_ptr<MigrationFlow> remove(std::uint32_t flow_id, Instant now);
  [[nodiscard]] const std::vector<std::unique_ptr<MigrationFlow>>& flows() const { return flows_; }
  [[nodiscard]] const port::Neighbours& neighbours() const { return neighbours_; }

 private:
  bool receive(Instant now);
  void on_datagram(Instant now, std::span<std::byte> frame);
  void on_sealed(Instant now, const wire::UdpEndpoint& source, std::span<std::byte> payload);
  bool transmit(Instant now);
  void count(Drop drop) { ++counters_.drops[static_cast<std::size_t>(drop)]; }

  port::Queue& queue_;
  const wire::MacAddress mac_;
  const std::uint16_t udp_port_;
  port::Neighbours neighbours_;
  FlowTable<MigrationFlow> table_;
  std::vector<std::unique_ptr<MigrationFlow>> flows_;
  std::size_t first_bulk_ = 0;  // whose turn it is to fill first
  DataPathCounters counters_;
  Inbox inbox_;
};

}  // namespace godwit::daemon
