// godwit-bridge: reads its configuration, runs the agent until SIGINT or SIGTERM. Its QEMUs live on.
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <csignal>
#include <filesystem>

#include "config/bridge_config.h"
#include "config/daemon_command.h"
#include "controlplane/tls/grpc_log.h"
#include "metrics/endpoint.h"
#include "qemu-bridge/agent/agent.h"
#include "qemu-bridge/agent/metrics.h"

int main(int argc, char** argv) {
  auto config = godwit::config::daemon_config(
      argc, argv, {"godwit-bridge: drives this host's QEMUs for live migration", "/etc/godwit/bridge.toml"},
      &godwit::config::load_bridge_config);
  if (!config) {
    return config.error();
  }
  godwit::start_logging("godwit-bridge", config->log.level);
  godwit::controlplane::route_grpc_log();

  umask(0066);  // files are ours, but a QEMU of another user must reach its own below our directories

  // Blocked before any thread starts: all inherit it, and sigwait below is the only one to take them.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGINT);
  sigaddset(&ends, SIGTERM);
  sigprocmask(SIG_BLOCK, &ends, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  const std::string metrics_address = config->metrics.listen;
  auto agent = godwit::bridge::Agent::start(std::move(*config));
  if (!agent) {
    spdlog::critical("{}", agent.error());
    return 1;
  }
  const auto endpoint = godwit::metrics::Endpoint::open(
      metrics_address, [&agent] { return godwit::bridge::make_samples((*agent)->figures()); });
  if (!endpoint) {
    spdlog::critical("{}", endpoint.error());
    return 1;
  }
  int number = 0;
  sigwait(&ends, &number);
  spdlog::info("signal {}: the bridge ends, its QEMUs live on", number);
  return 0;
}
