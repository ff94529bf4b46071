#pragma once
// Configuration of godwit-bridge, as in config/samples/bridge.toml; docs/configuration.md tells each key's meaning.
// Loading blocks on the file; any thread. On failure every mistake of the file comes back.

#include <filesystem>
#include <string>

#include "base/time.h"
#include "config/common.h"
#include "config/diagnostic.h"

namespace godwit::config {

class Reader;

/// Scans for the access history of the VMs here.
struct HeatConfig {
  std::uint32_t core_percent = 1;         // of one core, of all that the scans of one VM cost; 0: there are none
  Duration period = milliseconds(5'000);  // from scan to scan, where that costs no more
};

struct BridgeConfig {
  std::string host;  // this host's name in the cluster
  std::filesystem::path dataplane_socket = "/run/godwit/dataplane.sock";
  std::string controlplane;  // gRPC target: "host:port" or "unix:/path"
  std::filesystem::path run_dir = "/run/godwit";
  std::filesystem::path state_dir = "/var/lib/godwit";
  std::filesystem::path memory_dir_tmpfs = "/dev/shm/godwit";
  std::filesystem::path memory_dir_hugetlbfs;  // empty: this host takes no VM of hugetlbfs regions
  std::filesystem::path qemu_binary = "/usr/bin/qemu-system-x86_64";
  SecurityConfig security;
  LogConfig log;
  TrackingConfig tracking;
  HeatConfig heat;
  MetricsConfig metrics;
  std::uint64_t lend_bytes = 0;  // of this host's memory, to VMs that run on other hosts
};

[[nodiscard]] Loaded<BridgeConfig> load_bridge_config(const std::filesystem::path& file);
void read(Reader& reader, BridgeConfig& config);

}  // namespace godwit::config
