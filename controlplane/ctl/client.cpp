#include "controlplane/ctl/client.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "base/log.h"
#include "controlplane.grpc.pb.h"
#include "controlplane/tls/credentials.h"
#include "controlplane/tls/failure_text.h"

namespace godwit::ctl {
namespace {

using std::chrono::seconds, std::chrono::system_clock;

constexpr seconds kListLimit{10};
constexpr seconds kCommandLimit{120};  // the control plane's own limits are shorter, and say more
constexpr int kWatchTries = 30;
constexpr std::chrono::milliseconds kWatchPause{500};

}  // namespace

struct Client::Connection {
  config::CtlConfig config;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<api::Operators::Stub> stub;
  std::mutex mutex;
  std::condition_variable stopped;
  grpc::ClientContext* watching = nullptr;
  bool stopping = false;

  [[nodiscard]] std::string error_text(const grpc::Status& status) const {
    const std::string message = printable(status.error_message());
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      const auto reason = controlplane::tls_failure_text(status.error_message(), config.server, config.security);
      if (!reason.empty()) {
        return fmt::format("control plane at {}: {}", config.server, printable(reason));
      }
    }
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE &&
        (message.starts_with("failed to connect") || message.starts_with("connections to") || message.empty())) {
      return fmt::format(
          "cannot reach the control plane at {}: is it running? (--server or GODWIT_SERVER name another)",
          config.server);
    }
    return message.empty() ? fmt::format("gRPC status {}", static_cast<int>(status.error_code())) : message;
  }

  template <typename Request, typename Response>
  using Method = grpc::Status (api::Operators::Stub::*)(grpc::ClientContext*, const Request&, Response*);

  template <typename Request, typename Response>
  Result<Response> call(Method<Request, Response> method, const Request& request, seconds limit) {
    grpc::ClientContext context;
    context.set_deadline(system_clock::now() + limit);
    Response response;
    const grpc::Status status = (stub.get()->*method)(&context, request, &response);
    if (!status.ok()) {
      return std::unexpected(error_text(status));
    }
    return response;
  }
};

Client::Client(config::CtlConfig config) : connection_(std::make_unique<Connection>()) {
  connection_->config = std::move(config);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // a cluster's control plane is never behind the web's proxy
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  const auto& [server, security] = connection_->config;
  connection_->channel =
      grpc::CreateCustomChannel(server, controlplane::channel_credentials(server, security), arguments);
  connection_->stub = api::Operators::NewStub(connection_->channel);
}

Client::~Client() = default;

using Stub = api::Operators::Stub;

Client::Result<api::ListHostsResponse> Client::list_hosts() {
  return connection_->call(&Stub::ListHosts, api::ListHostsRequest(), kListLimit);
}
Client::Result<api::ListVmsResponse> Client::list_vms() {
  return connection_->call(&Stub::ListVms, api::ListVmsRequest(), kListLimit);
}
Client::Result<api::ListImagesResponse> Client::list_images() {
  return connection_->call(&Stub::ListImages, api::ListImagesRequest(), kListLimit);
}
Client::Result<api::ListMigrationsResponse> Client::list_migrations(bool active_only) {
  api::ListMigrationsRequest request;
  request.set_active_only(active_only);
  return connection_->call(&Stub::ListMigrations, request, kListLimit);
}
Client::Result<api::DropImageResponse> Client::drop_image(const api::DropImageRequest& request) {
  return connection_->call(&Stub::DropImage, request, kCommandLimit);
}
Client::Result<api::StartVmResponse> Client::start_vm(const api::StartVmRequest& request) {
  return connection_->call(&Stub::StartVm, request, kCommandLimit);
}
Client::Result<api::AttachVmResponse> Client::attach_vm(const api::AttachVmRequest& request) {
  return connection_->call(&Stub::AttachVm, request, kCommandLimit);
}
Client::Result<api::GetHeatResponse> Client::heat(const api::GetHeatRequest& request) {
  return connection_->call(&Stub::GetHeat, request, kCommandLimit);
}
Client::Result<api::StopVmResponse> Client::stop_vm(const api::StopVmRequest& request) {
  return connection_->call(&Stub::StopVm, request, kCommandLimit);
}
Client::Result<api::SplitVmResponse> Client::split_vm(const api::SplitVmRequest& request) {
  return connection_->call(&Stub::SplitVm, request, kCommandLimit);
}
Client::Result<api::DrainHostResponse> Client::drain_host(const api::DrainHostRequest& request) {
  return connection_->call(&Stub::DrainHost, request, kCommandLimit);
}
Client::Result<api::GatherVmResponse> Client::gather_vm(const api::GatherVmRequest& request) {
  return connection_->call(&Stub::GatherVm, request, kListLimit);
}
Client::Result<api::MigrateResponse> Client::migrate(const api::MigrateRequest& request) {
  return connection_->call(&Stub::Migrate, request, kListLimit);
}
Client::Result<api::CancelMigrationResponse> Client::cancel_migration(const std::string& migration_id) {
  api::CancelMigrationRequest request;
  request.set_migration_id(migration_id);
  return connection_->call(&Stub::CancelMigration, request, kListLimit);
}

Client::Result<api::SwitchToPostcopyResponse> Client::switch_to_postcopy(const std::string& migration_id) {
  api::SwitchToPostcopyRequest request;
  request.set_migration_id(migration_id);
  return connection_->call(&Stub::SwitchToPostcopy, request, kCommandLimit);
}

Client::Result<api::Migration> Client::watch(const std::string& migration_id,
                                             const std::function<void(const api::Migration&)>& each) {
  api::WatchMigrationRequest request;
  request.set_migration_id(migration_id);
  Connection& connection = *connection_;
  for (int tries_left = kWatchTries;;) {
    grpc::ClientContext context;
    {
      const std::lock_guard lock(connection.mutex);
      if (connection.stopping) {
        return std::unexpected("stopped watching");
      }
      connection.watching = &context;
    }
    const auto reader = connection.stub->WatchMigration(&context, request);
    api::Migration migration;
    while (reader->Read(&migration)) {
      tries_left = kWatchTries;
      each(migration);
    }
    const grpc::Status status = reader->Finish();
    std::unique_lock lock(connection.mutex);
    connection.watching = nullptr;
    if (migration.ended()) {
      return migration;
    }
    const bool lost = status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                      status.error_code() == grpc::StatusCode::CANCELLED;
    if (!lost || --tries_left <= 0) {
      return std::unexpected(connection.error_text(status));
    }
    connection.stopped.wait_for(lock, kWatchPause, [&] { return connection.stopping; });
    lock.unlock();
    // gRPC moves a handshake on only while somebody waits for it; a call on a channel that has failed does not.
    (void)connection.channel->WaitForConnected(system_clock::now() + kWatchPause);
  }
}

void Client::stop() {
  const std::lock_guard lock(connection_->mutex);
  connection_->stopping = true;
  if (connection_->watching != nullptr) {
    connection_->watching->TryCancel();
  }
  connection_->stopped.notify_all();
}

}  // namespace godwit::ctl
