#pragma once
// godwitctl's way to the control plane: each call blocks for an answer, at most its time limit, and gives the response
// or one line for a person. One thread; watch() may be ended from another by stop().

#include <expected>
#include <functional>
#include <memory>
#include <string>

#include "config/ctl_config.h"
#include "controlplane.pb.h"

namespace godwit::ctl {

namespace api = godwit::controlplane::v1;

class Client {
 public:
  template <typename T>
  using Result = std::expected<T, std::string>;

  explicit Client(config::CtlConfig config);
  ~Client();

  [[nodiscard]] Result<api::ListHostsResponse> list_hosts();
  [[nodiscard]] Result<api::ListVmsResponse> list_vms();
  [[nodiscard]] Result<api::ListImagesResponse> list_images();
  [[nodiscard]] Result<api::ListMigrationsResponse> list_migrations(bool active_only);
  [[nodiscard]] Result<api::DropImageResponse> drop_image(const api::DropImageRequest& request);
  [[nodiscard]] Result<api::StartVmResponse> start_vm(const api::StartVmRequest& request);
  [[nodiscard]] Result<api::AttachVmResponse> attach_vm(const api::AttachVmRequest& request);
  [[nodiscard]] Result<api::StopVmResponse> stop_vm(const api::StopVmRequest& request);
  [[nodiscard]] Result<api::GetHeatResponse> heat(const api::GetHeatRequest& request);
  [[nodiscard]] Result<api::SplitVmResponse> split_vm(const api::SplitVmRequest& request);
  [[nodiscard]] Result<api::DrainHostResponse> drain_host(const api::DrainHostRequest& request);
  [[nodiscard]] Result<api::GatherVmResponse> gather_vm(const api::GatherVmRequest& request);
  [[nodiscard]] Result<api::MigrateResponse> migrate(const api::MigrateRequest& request);
  [[nodiscard]] Result<api::CancelMigrationResponse> cancel_migration(const std::string& migration_id);
  [[nodiscard]] Result<api::SwitchToPostcopyResponse> switch_to_postcopy(const std::string& migration_id);

  /// Calls `each` with the present state and every change; gives the last. A control plane that goes away is looked for
  /// again for half a minute.
  [[nodiscard]] Result<api::Migration> watch(const std::string& migration_id,
                                             const std::function<void(const api::Migration&)>& each);
  /// Ends watch() soon; from any thread.
  void stop();

 private:
  struct Connection;
  std::unique_ptr<Connection> connection_;
};

}  // namespace godwit::ctl
