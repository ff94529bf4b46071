#pragma once
// Flows of one bulk lane each with pages without end, from one host to another over one link: what share of the path
// does each get? Real lanes; pollers that cost time and may be scheduled away. Owner: one test or benchmark; single
// thread; virtual time, so that every figure is the same on every machine. No failure.

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "dataplane/transport/lane.h"
#include "simulation/network.h"

namespace godwit::simulation {

struct BulkPath {
  LinkConfig link;  // both ways
  std::uint32_t datagram_bytes = 8972;
  std::uint32_t credit_packets = 256;
  Duration base_rtt = microseconds(500);
  Duration rtt_granularity = milliseconds(2);
  Duration packet_cost{0};            // of a poller, for a datagram of 9000 bytes
  bool background = false;            // pages of post-copy that nobody waits for
  Duration run_max{0}, pause_max{0};  // an end runs up to run_max, then is away for up to pause_max; 0: never away
};

class BulkFlows {
 public:
  explicit BulkFlows(const BulkPath& path);
  ~BulkFlows();
  BulkFlows(const BulkFlows&) = delete;
  BulkFlows& operator=(const BulkFlows&) = delete;

  /// One more flow, from now on; its number.
  std::size_t add_flow();
  /// So much further.
  void run(Duration time);
  /// Payload acknowledged so far.
  [[nodiscard]] std::uint64_t acknowledged_bits(std::size_t flow) const;
  [[nodiscard]] const transport::Lane& source(std::size_t flow) const;
  /// Of the link from the sources.
  [[nodiscard]] const LinkCounters& link_counters() const { return network_.counters(links_[0]); }

 private:
  struct End;
  /// One turn of an end's poll loop; when it wants the next.
  Instant turn(std::size_t index);

  const BulkPath path_;
  Network network_;
  Random random_;
  Instant now_{1'000'000};
  std::array<std::size_t, 2> links_;
  std::vector<std::unique_ptr<End>> ends_;  // of flow i: source 2 i, destination 2 i + 1
  std::vector<std::byte> out_;
};

/// Jain's index of these shares: 1 when all are equal, 1/n when one has all.
[[nodiscard]] double jain_index(const std::vector<double>& shares);

}  // namespace godwit::simulation
