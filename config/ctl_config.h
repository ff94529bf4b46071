#pragma once
// godwitctl's own configuration: which control plane to ask. First that is given: --server, the environment's
// GODWIT_SERVER, the file (config/samples/godwitctl.toml), the built-in unix socket. Blocks on the file; any thread. On
// failure every mistake of the file, or of the value given, comes back.

#include <filesystem>
#include <optional>
#include <string>

#include "config/diagnostic.h"

namespace godwit::config {

class Reader;

inline constexpr const char* kCtlConfigFile = "/etc/godwit/godwitctl.toml";

struct CtlConfig {
  std::string server = "unix:/run/godwit-controlplane/controlplane.sock";  // gRPC target: "host:port" or "unix:/path"
};

[[nodiscard]] Loaded<CtlConfig> load_ctl_config(const std::filesystem::path& file);
void read(Reader& reader, CtlConfig& config);

/// `flag` is the value of --server if given. The file may be absent.
[[nodiscard]] Loaded<CtlConfig> find_server(const std::optional<std::string>& flag,
                                            const std::filesystem::path& file = kCtlConfigFile);

}  // namespace godwit::config
