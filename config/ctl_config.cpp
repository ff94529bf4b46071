#include "config/ctl_config.h"

#include <cstdlib>

#include "config/parsers.h"

namespace godwit::config {

namespace {

Loaded<CtlConfig> from_text(const std::string& server, const std::string& source) {
  if (auto problem = grpc_target_rule(server); !problem.empty()) {
    return std::unexpected(Diagnostics{Diagnostic{.file = source, .key = "server", .message = printable(problem)}});
  }
  return CtlConfig{server};
}

}  // namespace

void read(Reader& reader, CtlConfig& config) { reader.optional("server", config.server, text(grpc_target_rule)); }

Loaded<CtlConfig> load_ctl_config(const std::filesystem::path& file) { return load_file<CtlConfig>(file); }

Loaded<CtlConfig> find_server(const std::optional<std::string>& flag, const std::filesystem::path& file) {
  if (flag) {
    return from_text(*flag, "--server");
  }
  if (const char* server = std::getenv("GODWIT_SERVER"); server != nullptr && *server != '\0') {
    return from_text(server, "GODWIT_SERVER");
  }
  std::error_code error;
  if (!std::filesystem::exists(file, error) && !error) {
    return CtlConfig{};
  }
  return load_ctl_config(file);
}

}  // namespace godwit::config
