#pragma once
// Configuration of godwit-controlplane, as in config/samples/controlplane.toml; docs/configuration.md tells each key's
// meaning. Loading blocks on the file; any thread. On failure every mistake of the file comes back.

#include <filesystem>
#include <string>
#include <vector>

#include "base/time.h"
#include "config/common.h"
#include "config/diagnostic.h"

namespace godwit::config {

class Reader;

/// How long the control plane waits for what; each is positive.
struct TimeoutConfig {
  Duration host_heartbeat = milliseconds(5000);  // without a sign of life for so long a host counts as lost
  Duration command = milliseconds(30'000);       // start, attach, stop of a VM; dropping an image
  Duration prepare = milliseconds(60'000);       // PREPARING, both sides
  Duration switchover = milliseconds(30'000);    // from Switch to LOADED
  Duration cancel = milliseconds(30'000);        // from ABORTED until the guest is reported running at the source
};

struct ControlplaneConfig {
  std::vector<std::string> listen;  // "host:port" or "unix:/path", at least one
  std::filesystem::path database = "/var/lib/godwit-controlplane/controlplane.db";
  std::string cluster = "godwit";
  SecurityConfig security;
  LogConfig log;
  TimeoutConfig timeouts;
};

[[nodiscard]] Loaded<ControlplaneConfig> load_controlplane_config(const std::filesystem::path& file);
void read(Reader& reader, ControlplaneConfig& config);

}  // namespace godwit::config
