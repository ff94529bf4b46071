#include "config/bridge_config.h"

#include "config/parsers.h"

namespace godwit::config {

void read(Reader& reader, BridgeConfig& config) {
  reader.required("host", config.host, text(name_rule));
  reader.optional("dataplane_socket", config.dataplane_socket, socket_path());
  reader.required("controlplane", config.controlplane, text(grpc_target_rule));
  reader.optional("run_dir", config.run_dir, absolute_path());
  reader.optional("state_dir", config.state_dir, absolute_path());
  reader.optional("memory_dir_tmpfs", config.memory_dir_tmpfs, absolute_path());
  reader.optional("memory_dir_hugetlbfs", config.memory_dir_hugetlbfs, absolute_path());
  reader.optional("qemu_binary", config.qemu_binary, absolute_path());
  const bool remote = !config.controlplane.empty() && !is_unix_target(config.controlplane);
  read_security(reader, config.security, remote, pki::Identity{pki::Role::kHost, config.host});
  read_log(reader, config.log);
  read_tracking(reader, config.tracking);
  reader.table("heat", [&](Reader& heat) {
    heat.optional("core_percent", config.heat.core_percent, integer<std::uint32_t>(0, 100));
    heat.optional("period", config.heat.period, duration(milliseconds(1'000), milliseconds(3'600'000)));
  });
  read_metrics(reader, config.metrics);
  reader.table("memory", [&](Reader& memory) { memory.optional("lend", config.lend_bytes, bytes(0, 1ULL << 50)); });
  if (config.memory_dir_hugetlbfs == config.memory_dir_tmpfs) {
    reader.fail("memory_dir_hugetlbfs",
                "is the same directory as memory_dir_tmpfs; each is on a file system of its own kind");
  }
}

Loaded<BridgeConfig> load_bridge_config(const std::filesystem::path& file) { return load_file<BridgeConfig>(file); }

}  // namespace godwit::config
