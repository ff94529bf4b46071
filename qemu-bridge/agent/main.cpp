// godwit-bridge: reads its configuration, runs the agent until SIGINT or SIGTERM. Its QEMUs live on.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <filesystem>

#include "config/bridge_config.h"
#include "controlplane/tls/grpc_log.h"
#include "qemu-bridge/agent/agent.h"

int main(int argc, char** argv) {
  CLI::App app{"godwit-bridge: drives this host's QEMUs for live migration"};
  std::string config_file = "/etc/godwit/bridge.toml";
  bool check_only = false;
  app.add_option("-c,--config", config_file, "configuration file")->capture_default_str();
  app.add_flag("--check-config", check_only, "report every mistake of the configuration file, and do no more");
  CLI11_PARSE(app, argc, argv);
  if (check_only) {
    return godwit::config::check_config(config_file, &godwit::config::load_bridge_config);
  }
  auto config = godwit::config::load_bridge_config(config_file);
  if (!config) {
    godwit::config::print_diagnostics(config.error());
    return godwit::config::exit_status(config.error());
  }
  godwit::start_logging("godwit-bridge", config->log.level);
  godwit::controlplane::route_grpc_log();

  // Blocked before any thread starts: all inherit it, and sigwait below is the only one to take them.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGINT);
  sigaddset(&ends, SIGTERM);
  sigprocmask(SIG_BLOCK, &ends, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  auto agent = godwit::bridge::Agent::start(std::move(*config));
  if (!agent) {
    spdlog::critical("{}", agent.error());
    return 1;
  }
  int number = 0;
  sigwait(&ends, &number);
  spdlog::info("signal {}: the bridge ends, its QEMUs live on", number);
  return 0;
}
