#include "config/controlplane_config.h"

#include <algorithm>

#include "config/parsers.h"

namespace godwit::config {

namespace {

void read_timeouts(Reader& reader, TimeoutConfig& timeouts) {
  const auto waiting = duration(milliseconds(100), milliseconds(3'600'000));
  // Hosts report each second.
  reader.optional("host_heartbeat", timeouts.host_heartbeat, duration(milliseconds(2000), milliseconds(3'600'000)));
  reader.optional("command", timeouts.command, waiting);
  reader.optional("prepare", timeouts.prepare, waiting);
  reader.optional("switchover", timeouts.switchover, waiting);
  reader.optional("cancel", timeouts.cancel, waiting);
}

}  // namespace

void read(Reader& reader, ControlplaneConfig& config) {
  reader.required("listen", config.listen, list(text(grpc_target_rule), 1, 16));
  reader.optional("database", config.database, absolute_path());
  reader.optional("cluster", config.cluster, text(name_rule));
  const bool remote =
      std::ranges::any_of(config.listen, [](const std::string& target) { return !is_unix_target(target); });
  read_security(reader, config.security, remote, pki::Identity{pki::Role::kControlplane, {}});
  read_log(reader, config.log);
  reader.table("timeouts", [&](Reader& timeouts) { read_timeouts(timeouts, config.timeouts); });
}

Loaded<ControlplaneConfig> load_controlplane_config(const std::filesystem::path& file) {
  return load_file<ControlplaneConfig>(file);
}

}  // namespace godwit::config
