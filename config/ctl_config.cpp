#include "config/ctl_config.h"

#include <cstdlib>

#include "config/parsers.h"

namespace godwit::config {

namespace {

const pki::Identity kOperator{pki::Role::kOperator, {}};

Loaded<CtlConfig> file_config(const CtlFlags& flags, const std::filesystem::path& file) {
  std::error_code error;
  if (!flags.config && !std::filesystem::exists(file, error) && !error) {
    return CtlConfig{};
  }
  return load_ctl_config(flags.config.value_or(file));
}

Diagnostics mistake(const std::string& source, const char* key, std::string_view problem) {
  return {Diagnostic{.file = source, .key = key, .message = printable(problem)}};
}

}  // namespace

void read(Reader& reader, CtlConfig& config) {
  reader.optional("server", config.server, text(grpc_target_rule));
  // Not asked for here: --server or --insecure may still change what is needed.
  read_security(reader, config.security, false, kOperator);
}

Loaded<CtlConfig> load_ctl_config(const std::filesystem::path& file) { return load_file<CtlConfig>(file); }

Loaded<CtlConfig> find_server(const CtlFlags& flags, const std::filesystem::path& file) {
  auto config = file_config(flags, file);
  if (!config) {
    return config;
  }
  const char* variable = std::getenv("GODWIT_SERVER");
  const bool from_variable = !flags.server && variable != nullptr && *variable != '\0';
  if (flags.server || from_variable) {
    config->server = flags.server ? *flags.server : variable;
    if (const auto problem = grpc_target_rule(config->server); !problem.empty()) {
      return std::unexpected(mistake(flags.server ? "--server" : "GODWIT_SERVER", "server", problem));
    }
  }
  if (flags.insecure) {
    config->security = {.tls = std::nullopt, .insecure = true};
  }
  if (!is_unix_target(config->server) && !config->security.tls && !config->security.insecure) {
    return std::unexpected(mistake(flags.config.value_or(file).string(), "tls", unprotected_text(kOperator)));
  }
  return config;
}

}  // namespace godwit::config
