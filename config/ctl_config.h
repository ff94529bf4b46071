#pragma once
// godwitctl's own configuration: which control plane to ask, and how. First that is given: --server, the environment's
// GODWIT_SERVER, the file (config/samples/godwitctl.toml), the built-in unix socket; what protects the connection is
// the file's, or --insecure. Blocks on the files; any thread. On failure every mistake of the file, or of the value
// given, comes back.

#include <filesystem>
#include <optional>
#include <string>

#include "config/common.h"
#include "config/diagnostic.h"

namespace godwit::config {

class Reader;

inline constexpr const char* kCtlConfigFile = "/etc/godwit/godwitctl.toml";

struct CtlConfig {
  std::string server = "unix:/run/godwit-controlplane/controlplane.sock";  // gRPC target: "host:port" or "unix:/path"
  SecurityConfig security;
};

[[nodiscard]] Loaded<CtlConfig> load_ctl_config(const std::filesystem::path& file);
void read(Reader& reader, CtlConfig& config);

/// What the command line says of the control plane.
struct CtlFlags {
  std::optional<std::string> server;
  std::optional<std::filesystem::path> config;
  bool insecure = false;
};

/// What is to be used. `file` may be absent, one of the flags not.
[[nodiscard]] Loaded<CtlConfig> find_server(const CtlFlags& flags, const std::filesystem::path& file = kCtlConfigFile);

}  // namespace godwit::config
