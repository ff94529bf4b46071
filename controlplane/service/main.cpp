// godwit-controlplane: reads its configuration, opens the doors, waits for SIGINT or SIGTERM.
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include "base/log.h"
#include "config/controlplane_config.h"
#include "config/daemon_command.h"
#include "controlplane/service/server.h"
#include "controlplane/tls/grpc_log.h"

namespace {

int run(const godwit::config::ControlplaneConfig& config) {
  using godwit::controlplane::Server;
  godwit::start_logging("godwit-controlplane", config.log.level);
  godwit::controlplane::route_grpc_log();
  umask(0077);  // who may connect to the unix socket rules the cluster
  // Blocked before gRPC starts its threads, so that only sigwait below sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const auto server = Server::start(config);
  if (!server) {
    spdlog::error("{}", server.error());
    return 1;
  }
  for (const std::string& address : config.listen) {
    spdlog::info("cluster {}: listening on {}", config.cluster, address);
  }
  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("ending on {}", strsignal(signal));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const auto config = godwit::config::daemon_config(
      argc, argv,
      {"godwit-controlplane: who runs which VM of a cluster, and how it moves", "/etc/godwit/controlplane.toml"},
      &godwit::config::load_controlplane_config);
  if (!config) {
    return config.error();
  }
  return run(*config);
}
