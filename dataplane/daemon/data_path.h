#pragma once
// One lcore's data path: receives, finds the flow, lets it place and answer, ticks, transmits. Everything here is
// called on the lcore, except join(), inbox(), counters() and nudge(). A daemon has one an lcore. The first is the home
// lcore: it alone owns flows and neighbours; the others own their shares of those flows while they are attached. A
// frame that arrives on another lcore's queue than that of its lane's owner is handed over, through a ring for each
// pair of lcores. Failure: a datagram that is not exactly for a live flow of ours is counted by reason and dropped,
// never answered.

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/single_writer.h"
#include "base/spsc_ring.h"
#include "dataplane/daemon/fault_watch.h"
#include "dataplane/daemon/flow.h"
#include "dataplane/daemon/flows.h"
#include "dataplane/daemon/inbox.h"
#include "dataplane/daemon/migration_flow.h"
#include "dataplane/port/neighbours.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/port/port.h"
#include "dataplane/port/sleep_flag.h"
#include "dataplane/wire/datagram.h"
#include "dataplane/wire/packet.h"

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
  kHandOver,
  kCount
};
std::string_view to_string(Drop drop);

struct DataPathCounters {  // one writer, the lcore; telemetry reads them as they are
  using Counter = SingleWriter<std::uint64_t>;
  std::array<Counter, static_cast<std::size_t>(Drop::kCount)> drops{};
  std::array<Counter, static_cast<std::size_t>(wire::DatagramReject::kCount)> datagram_rejects{};  // kMalformedIp
  std::array<Counter, static_cast<std::size_t>(wire::Reject::kCount)> packet_rejects{};            // kMalformedPacket
  std::array<Counter, static_cast<std::size_t>(transport::Received::kCount)> received{};           // kLane, or accepted
  Counter handed_over;                      // to the lcore that owns the lane
  Counter receive_cycles, transmit_cycles;  // where something was received or sent
};

struct DataPathOptions {
  port::NeighboursOptions neighbours;
  std::uint16_t udp_port = 0;
  std::function<void()> wake;             // this lcore, if it sleeps; any thread
  std::function<void(bool)> on_sleeping;  // before (true) and after (false); on the lcore
  /// The home lcore's: this descriptor wakes it while it is readable (true), or no more; on the lcore.
  std::function<void(int, bool)> watch;
};

class DataPath final : public port::PollLoopUser {
 public:
  DataPath(port::Queue& queue, DataPathOptions options);
  /// All lcores of the daemon in their order, this one among them. Once, before any of them runs.
  void join(const std::vector<DataPath*>& lcores);
  [[nodiscard]] std::size_t lcore_count() const { return lcores_.size(); }

  bool turn(Instant now) override;
  [[nodiscard]] Instant deadline() const override;
  void sleeping(bool asleep) override;

  // ---- any thread ----
  /// There is something for this lcore to find.
  void nudge();
  /// Commands to this lcore.
  [[nodiscard]] Inbox& inbox() { return inbox_; }
  [[nodiscard]] const DataPathCounters& counters() const { return counters_; }
  [[nodiscard]] const port::Queue& queue() const { return queue_; }
  [[nodiscard]] const port::NeighboursCounters& neighbours_counters() const { return neighbours_.counters(); }

  // ---- on the lcore: from a command ----
  void add(std::unique_ptr<Flow> flow, Instant now);
  /// `flow_id`: of a migration.
  [[nodiscard]] MigrationFlow* find(std::uint32_t flow_id) const {
    return static_cast<MigrationFlow*>(table_.find(flow_id));
  }
  /// Takes the flow away from all lcores, after a last transmission of what it has to say. `then` runs on this lcore;
  /// null: there is no such flow.
  void release(std::uint32_t flow_id, std::function<void(std::unique_ptr<Flow>)> then);
  /// The same of a migration's.
  void release_migration(std::uint32_t flow_id, const std::function<void(std::unique_ptr<MigrationFlow>)>& then);
  /// Home lcore: the faults of this guest are read each turn, flow or none, until unwatched. Twice is once.
  void watch(const std::shared_ptr<FaultWatch>& paging);
  void unwatch(const std::shared_ptr<FaultWatch>& paging);
  [[nodiscard]] const std::vector<std::unique_ptr<Flow>>& flows() const { return flows_; }
  [[nodiscard]] const port::Neighbours& neighbours() const { return neighbours_; }

 private:
  bool receive(Instant now);
  bool receive_handed_over(Instant now);
  /// Which lcore has to handle it; nothing was done if it is another one.
  std::size_t on_frame(Instant now, std::span<std::byte> frame, const std::byte* from);
  std::size_t on_datagram(Instant now, std::span<std::byte> frame, const std::byte* from);
  std::size_t on_sealed(Instant now, const wire::UdpEndpoint& source, std::span<std::byte> payload,
                        const std::byte* from);
  template <class Owner>
  void on_packet(Instant now, Owner* flow, const wire::UdpEndpoint& source, std::uint16_t lane,
                 std::span<std::byte> payload, const std::byte* from);
  void hand_over(std::size_t lcore, std::size_t index);
  void attach(FlowShare& share);
  void detach(const FlowShare& share);
  std::unique_ptr<Flow> remove(std::uint32_t flow_id);
  bool transmit(Instant now);
  std::size_t transmit_urgent(Instant now);
  std::size_t transmit_bulk(Instant now, std::size_t budget);
  void count(Drop drop) { ++counters_.drops[static_cast<std::size_t>(drop)]; }

  port::Queue& queue_;
  const wire::MacAddress mac_;
  const std::uint16_t udp_port_;
  const std::function<void()> wake_;
  const std::function<void(bool)> on_sleeping_;
  const std::function<void(int, bool)> watch_;
  std::vector<DataPath*> lcores_;
  std::size_t self_ = 0;                                                   // our place among them
  std::vector<std::unique_ptr<SpscRing<port::ReceivedFrame>>> handed_by_;  // one a lcore, ours stays empty
  std::array<port::ReceivedFrame, port::kBurst> handed_;                   // until they are flushed
  port::SleepFlag sleep_flag_;
  port::Neighbours neighbours_;
  FlowTable<Flow> table_;
  std::vector<std::unique_ptr<Flow>> flows_;
  std::vector<std::shared_ptr<FaultWatch>> pagings_;
  Instant polled_at_{};  // those
  Instant looked_at_{};  // at the queue
  Duration unseen_{};    // before the look under way
  FlowTable<FlowShare> share_table_;
  std::vector<FlowShare*> shares_;
  std::size_t first_bulk_ = 0;  // whose turn it is to fill first
  DataPathCounters counters_;
  Inbox inbox_;
};

}  // namespace godwit::daemon
