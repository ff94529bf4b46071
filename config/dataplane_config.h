#pragma once
// Configuration of godwit-dataplane, as in config/samples/dataplane.toml; docs/configuration.md tells each key's
// meaning. A loaded value is valid as a whole: ranges, formats and what belongs together are checked. Sizes in bytes,
// lengths of time as Duration. Loading blocks on the file; any thread. On failure every mistake of the file comes back.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ip_address.h"
#include "base/time.h"
#include "config/common.h"
#include "config/diagnostic.h"

namespace godwit::config {

class Reader;

/// One lcore of the data plane and the CPUs that its thread may run on.
struct LcoreConfig {
  std::uint32_t lcore = 0;
  std::vector<std::uint32_t> cpus;              // ascending, at least one
  [[nodiscard]] std::string cpus_text() const;  // "0,1,3"
};

struct EalConfig {
  bool hugepages = true;
  std::uint64_t memory_bytes = 512ULL << 20;  // whole MiB
  std::vector<LcoreConfig> lcores;            // empty: one lcore, on any CPU; else lcore numbers are distinct
  [[nodiscard]] std::uint64_t memory_mib() const { return memory_bytes >> 20; }
};

enum class DeviceKind : std::uint8_t { kPci, kAfPacket, kMemif, kOther };
enum class MemifRole : std::uint8_t { kServer, kClient };
enum class Idle : std::uint8_t { kAdaptive, kPoll };

inline constexpr std::uint16_t kLcoresMax = 16;
inline constexpr std::uint32_t kMtuBytesMin = 1500;
inline constexpr std::uint32_t kMtuBytesMax = 9216;

struct PortConfig {
  DeviceKind kind = DeviceKind::kOther;
  std::string device;            // "0000:01:00.0", "net_af_packet", "net_memif", other DPDK devargs
  std::string interface;         // kAfPacket: the Linux interface
  std::filesystem::path socket;  // kMemif
  MemifRole role = MemifRole::kServer;
  std::vector<IpPrefix> addresses;  // at least one; the first is the one told to peers
  std::optional<IpAddress> gateway_ipv4;
  std::optional<IpAddress> gateway_ipv6;
  std::uint32_t mtu_bytes = 1500;  // IP packet size
  std::uint16_t queues = 0;        // loaded: one an lcore
  std::uint16_t udp_port = 4793;
  Idle idle = Idle::kAdaptive;
};

/// Of one lane: what a sender may use before it has heard anything, and what one acknowledgement can report.
inline constexpr std::uint32_t kCreditPacketsMin = 64;
inline constexpr std::uint32_t kCreditPacketsMax = 1024;

struct TransportConfig {
  std::uint32_t credit_packets = 256;
  Duration peer_timeout = milliseconds(3000);
  std::uint16_t bulk_lanes = 0;  // loaded: at least one an lcore
  Duration base_rtt = microseconds(500);
  Duration rtt_granularity = milliseconds(2);
};

struct TelemetryConfig {
  bool dpdk = false;  // figures on DPDK's telemetry socket
};

enum class EvictionOrder : std::uint8_t { kColdestFirst, kHighestFirst };

struct EvictionConfig {
  EvictionOrder order = EvictionOrder::kColdestFirst;
};

struct DataplaneConfig {
  std::filesystem::path file;  // where it was loaded from
  std::filesystem::path control_socket = "/run/godwit/dataplane.sock";
  std::filesystem::path run_dir = "/run/godwit";
  std::vector<std::filesystem::path> memory_dirs;  // at least one: tmpfs and/or hugetlbfs
  std::uint64_t memory_budget_bytes = 0;           // 0 = no limit of ours
  bool allow_clear_text = false;                   // plans may say encryption = "none"
  LogConfig log;
  EalConfig eal;
  PortConfig port;
  TransportConfig transport;
  TrackingConfig tracking;
  EvictionConfig eviction;
  TelemetryConfig telemetry;
  MetricsConfig metrics;
};

[[nodiscard]] Loaded<DataplaneConfig> load_dataplane_config(const std::filesystem::path& file);
void read(Reader& reader, DataplaneConfig& config);

}  // namespace godwit::config
