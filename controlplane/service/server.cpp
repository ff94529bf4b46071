#include "controlplane/service/server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/unique_fd.h"
#include "controlplane/service/agents_service.h"
#include "controlplane/service/metrics.h"
#include "controlplane/service/operators_service.h"
#include "controlplane/store/sqlite_store.h"
#include "controlplane/tls/certificate_watch.h"
#include "controlplane/tls/credentials.h"
#include "metrics/endpoint.h"

namespace godwit::controlplane {
namespace {

/// Two control planes on one store would answer correctly, but each other's agents not at all.
std::expected<UniqueFd, std::string> lock_store(const std::filesystem::path& database) {
  const std::string path = database.string() + ".lock";
  UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file.valid()) {
    return std::unexpected(fmt::format("cannot create {}: {}; make its directory", path, std::strerror(errno)));
  }
  if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    return std::unexpected(fmt::format("another control plane is using the store {}", database.string()));
  }
  return file;
}

class GrpcServer final : public Server {
 public:
  GrpcServer(UniqueFd lock, std::unique_ptr<Store> store, std::unique_ptr<Coordinator> coordinator,
             const config::SecurityConfig& security)
      : lock_(std::move(lock)), store_(std::move(store)), coordinator_(std::move(coordinator)) {
    if (security.tls) {
      certificate_ = std::make_unique<CertificateWatch>(*security.tls, pki::Identity{pki::Role::kControlplane, {}});
    }
    const Gate gate(security.tls.has_value());
    agents_ = std::make_unique<AgentsService>(*coordinator_, gate);
    operators_ = std::make_unique<OperatorsService>(*coordinator_, gate, certificate_.get());
  }
  ~GrpcServer() override {
    if (server_) {
      coordinator_->freeze();
      server_->Shutdown(std::chrono::system_clock::now());
      server_->Wait();
    }
  }

  std::expected<void, std::string> listen(const std::vector<std::string>& addresses,
                                          const config::SecurityConfig& security) {
    grpc::ServerBuilder builder;
    std::shared_ptr<grpc::ServerCredentials> remote;  // one watches the files for all
    std::vector<int> ports(addresses.size(), 0);
    for (std::size_t i = 0; i < addresses.size(); ++i) {
      if (!config::is_unix_target(addresses[i]) && !remote) {
        remote = server_credentials(security);
      }
      if (!security.tls && !stays_on_machine(addresses[i])) {
        spdlog::warn("insecure = true: whoever reaches {} rules the cluster, and reads what hosts are told",
                     addresses[i]);
      }
      builder.AddListeningPort(
          addresses[i], config::is_unix_target(addresses[i]) ? grpc::InsecureServerCredentials() : remote, &ports[i]);
    }
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.RegisterService(agents_.get());
    builder.RegisterService(operators_.get());
    server_ = builder.BuildAndStart();
    for (std::size_t i = 0; i < addresses.size(); ++i) {
      if (!server_ || ports[i] == 0) {
        return std::unexpected(
            fmt::format("cannot listen on {}: in use, or not an address of this machine", addresses[i]));
      }
    }
    return {};
  }

  std::expected<void, std::string> show_metrics(const std::string& address) {
    auto opened = metrics::Endpoint::open(address, [this] { return make_samples(coordinator_->figures()); });
    if (!opened) {
      return std::unexpected(opened.error());
    }
    metrics_ = std::move(*opened);
    return {};
  }

 private:
  UniqueFd lock_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<CertificateWatch> certificate_;
  std::unique_ptr<AgentsService> agents_;
  std::unique_ptr<OperatorsService> operators_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<metrics::Endpoint> metrics_;
};

}  // namespace

std::expected<std::unique_ptr<Server>, std::string> Server::start(const config::ControlplaneConfig& config) {
  for (const std::string& address : config.listen) {
    if (!config.security.tls && !config.security.insecure && !config::is_unix_target(address)) {
      return std::unexpected(fmt::format(
          "refusing to listen on {} in clear: give [tls] (`godwitctl pki init` makes certificates), listen on unix "
          "sockets only, or set insecure = true where the network is trusted",
          address));
    }
  }
  auto lock = lock_store(config.database);
  if (!lock) {
    return std::unexpected(lock.error());
  }
  auto store = open_sqlite_store(config.database);
  if (!store) {
    return std::unexpected(store.error().text);
  }
  auto coordinator = Coordinator::start(**store, config.timeouts, config.cluster);
  if (!coordinator) {
    return std::unexpected(coordinator.error().text);
  }
  auto server =
      std::make_unique<GrpcServer>(std::move(*lock), std::move(*store), std::move(*coordinator), config.security);
  if (auto listening = server->listen(config.listen, config.security); !listening) {
    return std::unexpected(listening.error());
  }
  if (auto shown = server->show_metrics(config.metrics.listen); !shown) {
    return std::unexpected(shown.error());
  }
  return server;
}

}  // namespace godwit::controlplane
