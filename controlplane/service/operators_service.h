#pragma once
// The Operators door: godwitctl and whoever automates it. Callback API; answers that need a host come when it has
// answered. Every ServiceError becomes a gRPC status in one place, with its text as the message. Each call asks the
// gate first.

#include "controlplane.grpc.pb.h"
#include "controlplane/service/coordinator.h"
#include "controlplane/tls/certificate_watch.h"
#include "controlplane/tls/gate.h"

namespace godwit::controlplane {

[[nodiscard]] grpc::StatusCode status_code_of(ServiceError::Code code);
[[nodiscard]] grpc::Status status_of(const ServiceError& error);

class OperatorsService final : public api::Operators::CallbackService {
 public:
  /// `certificate`: the control plane's own, nullptr where it has none.
  OperatorsService(Coordinator& coordinator, Gate gate, const CertificateWatch* certificate)
      : coordinator_(coordinator), gate_(gate), certificate_(certificate) {}

  using Context = grpc::CallbackServerContext;
  using Unary = grpc::ServerUnaryReactor;
  Unary* ListHosts(Context*, const api::ListHostsRequest*, api::ListHostsResponse*) override;
  Unary* ListVms(Context*, const api::ListVmsRequest*, api::ListVmsResponse*) override;
  Unary* ListImages(Context*, const api::ListImagesRequest*, api::ListImagesResponse*) override;
  Unary* DropImage(Context*, const api::DropImageRequest*, api::DropImageResponse*) override;
  Unary* StartVm(Context*, const api::StartVmRequest*, api::StartVmResponse*) override;
  Unary* AttachVm(Context*, const api::AttachVmRequest*, api::AttachVmResponse*) override;
  Unary* StopVm(Context*, const api::StopVmRequest*, api::StopVmResponse*) override;
  Unary* GetHeat(Context*, const api::GetHeatRequest*, api::GetHeatResponse*) override;
  Unary* Migrate(Context*, const api::MigrateRequest*, api::MigrateResponse*) override;
  Unary* ListMigrations(Context*, const api::ListMigrationsRequest*, api::ListMigrationsResponse*) override;
  grpc::ServerWriteReactor<api::Migration>* WatchMigration(Context*, const api::WatchMigrationRequest*) override;
  Unary* CancelMigration(Context*, const api::CancelMigrationRequest*, api::CancelMigrationResponse*) override;
  Unary* SwitchToPostcopy(Context*, const api::SwitchToPostcopyRequest*, api::SwitchToPostcopyResponse*) override;
  Unary* SplitVm(Context*, const api::SplitVmRequest*, api::SplitVmResponse*) override;
  Unary* DrainHost(Context*, const api::DrainHostRequest*, api::DrainHostResponse*) override;
  Unary* GatherVm(Context*, const api::GatherVmRequest*, api::GatherVmResponse*) override;

 private:
  /// do_it(reactor) for an operator, else the refusal.
  template <typename F>
  Unary* admitted(Context* context, const F& do_it);

  Coordinator& coordinator_;
  const Gate gate_;
  const CertificateWatch* const certificate_;
};

}  // namespace godwit::controlplane
