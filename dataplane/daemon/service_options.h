#pragma once
// What a Service is given, and what any flow of it is made from. Values; control thread.

#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <vector>

#include "base/uuid.h"
#include "dataplane/daemon/flow_lanes.h"
#include "dataplane/daemon/requests.h"
#include "dataplane/memory/victim_policy.h"
#include "dataplane/port/neighbours.h"

namespace godwit::daemon {

struct ServiceOptions {
  std::string run_dir;
  std::string memory_dir;   // of retained images, told to the bridge
  std::string missing_dir;  // of what guests lack; on tmpfs, or this host is no destination of post-copy
  std::string address;      // told to peers
  std::uint16_t udp_port = 0;
  std::uint32_t mtu_bytes = 1500;
  std::uint16_t bulk_lanes = 1;
  std::optional<wire::ReceiveSpread> receive_spread;  // told to peers
  bool takes_super_frames = false;                    // told to peers
  std::uint32_t credit_packets = 256;
  Duration peer_timeout = milliseconds(3000);
  Duration base_rtt = microseconds(500);
  Duration rtt_granularity = milliseconds(2);
  std::optional<memory::TrackerKind> tracker;  // when the bridge has no wish
  std::vector<port::LocalAddress> addresses;
  memory::EvictionOrder eviction_order = memory::EvictionOrder::kColdestFirst;
  bool allow_clear_text = false;
  port::Lender* lender = nullptr;  // of the port; null: pages in clear text are always copied
  std::string config_file;         // where that stands
  Id128 host_boot_id;
  Id128 daemon_boot_id;

  /// Where a flow of this id comes.
  void describe(std::uint32_t flow_id, api::Endpoint& endpoint) const;
  /// Why a flow may not go in clear text, if that is what is asked for.
  [[nodiscard]] std::optional<ApiError> refuse_clear_text(transport::Cipher cipher) const;
};

/// This end of a flow.
struct NewFlow {
  std::uint32_t flow_id = 0;
  transport::Cipher cipher = transport::Cipher::kAes128Gcm;
  bool initiator = false;  // source of a migration, main host of a split VM
};
/// Its figures are of no migration, VM nor role yet.
[[nodiscard]] FlowConfig flow_config(const ServiceOptions& options, const NewFlow& flow, const Start& start,
                                     const wire::IpAddress& local, std::uint16_t lcores);
/// From where packets to that peer go; an error where there is no such address.
[[nodiscard]] std::expected<wire::IpAddress, ApiError> source_address(const ServiceOptions& options,
                                                                      const PeerEndpoint& peer);

}  // namespace godwit::daemon
