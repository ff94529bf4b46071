#pragma once
// The Operators door: godwitctl and whoever automates it. Callback API; answers that need a host come when it has
// answered. Every ServiceError becomes a gRPC status in one place, with its text as the message.

#include "controlplane.grpc.pb.h"
#include "controlplane/service/coordinator.h"

namespace godwit::controlplane {

[[nodiscard]] grpc::StatusCode status_code_of(ServiceError::Code code);
[[nodiscard]] grpc::Status status_of(const ServiceError& error);

class OperatorsService final : public api::Operators::CallbackService {
 public:
  explicit OperatorsService(Coordinator& coordinator) : coordinator_(coordinator) {}

  using Context = grpc::CallbackServerContext;
  using Unary = grpc::ServerUnaryReactor;
  Unary* ListHosts(Context*, const api::ListHostsRequest*, api::ListHostsResponse*) override;
  Unary* ListVms(Context*, const api::ListVmsRequest*, api::ListVmsResponse*) override;
  Unary* ListImages(Context*, const api::ListImagesRequest*, api::ListImagesResponse*) override;
  Unary* DropImage(Context*, const api::DropImageRequest*, api::DropImageResponse*) override;
  Unary* StartVm(Context*, const api::StartVmRequest*, api::StartVmResponse*) override;
  Unary* AttachVm(Context*, const api::AttachVmRequest*, api::AttachVmResponse*) override;
  Unary* StopVm(Context*, const api::StopVmRequest*, api::StopVmResponse*) override;
  Unary* Migrate(Context*, const api::MigrateRequest*, api::MigrateResponse*) override;
  Unary* ListMigrations(Context*, const api::ListMigrationsRequest*, api::ListMigrationsResponse*) override;
  grpc::ServerWriteReactor<api::Migration>* WatchMigration(Context*, const api::WatchMigrationRequest*) override;
  Unary* CancelMigration(Context*, const api::CancelMigrationRequest*, api::CancelMigrationResponse*) override;

 private:
  Coordinator& coordinator_;
};

}  // namespace godwit::controlplane
