#pragma once
// Starting, attaching and stopping VMs, and dropping retained images, on behalf of operators. Thread: the coordinator's
// lock is held in every call and when `done` runs (exactly once, possibly before the call returns).
// A host owns a VM in the store before it hears of it, and no other host gets it while the first may still run it:
// after a command without an answer that is until the host's agent has registered anew and names no such VM.

#include <expected>
#include <functional>
#include <map>
#include <string>

#include "config/controlplane_config.h"
#include "controlplane/service/hosts.h"
#include "controlplane/service/migrations.h"
#include "controlplane/service/split_moves.h"
#include "controlplane/service/splits.h"
#include "controlplane/store/store.h"

namespace godwit::controlplane {

class Vms {
 public:
  using VmDone = std::function<void(std::expected<api::Vm, ServiceError>)>;
  using HeatDone = std::function<void(std::expected<api::GetHeatResponse, ServiceError>)>;
  using Done = std::function<void(std::expected<void, ServiceError>)>;

  Vms(Store& store, Hosts& hosts, Migrations& migrations, Splits& splits, SplitMoves& moves,
      const config::TimeoutConfig& timeouts)
      : store_(store), hosts_(hosts), migrations_(migrations), splits_(splits), moves_(moves), timeouts_(timeouts) {}

  void start(const api::StartVmRequest& request, VmDone done);
  void attach(const api::AttachVmRequest& request, VmDone done);
  void stop(const std::string& name_or_uuid, Done done);
  /// Which parts of its memory are hot, as its host knows.
  void heat(const api::GetHeatRequest& request, HeatDone done);
  void split(const api::SplitVmRequest& request, const VmDone& done);
  [[nodiscard]] std::expected<api::Vm, ServiceError> gather(const std::string& name_or_uuid);
  void drop_image(const std::string& host_name, const std::string& name_or_uuid, Done done);

  [[nodiscard]] std::expected<api::ListVmsResponse, ServiceError> list();
  [[nodiscard]] std::expected<api::ListImagesResponse, ServiceError> list_images();
  [[nodiscard]] std::expected<api::ListHostsResponse, ServiceError> list_hosts();

 private:
  /// Makes the host the owner, sends the command that `fill` makes of the new record, and settles the answer.
  void run_at(const std::string& host_name, const api::VmDefinition& definition, dpapi::Tracker tracker,
              const std::function<api::ToAgent(const VmRecord&)>& fill, VmDone done);
  void started(VmRecord vm, const std::expected<api::AgentReply, ServiceError>& answer, const VmDone& done);
  /// Why this VM may not be booted now, if so.
  [[nodiscard]] std::optional<ServiceError> start_obstacle(const VmRecord& vm);
  [[nodiscard]] std::expected<VmRecord, ServiceError> find_vm(const std::string& name_or_uuid);
  [[nodiscard]] api::Vm to_api(const VmRecord& vm);

  Store& store_;
  Hosts& hosts_;
  Migrations& migrations_;
  Splits& splits_;
  SplitMoves& moves_;
  const config::TimeoutConfig timeouts_;
  std::map<Id128, SessionId> starting_;  // commands that are, or may be, still at work in that session's host
};

[[nodiscard]] ServiceError from_store(const StoreError& error);
[[nodiscard]] ServiceError from_planner(const Refused& refused);

}  // namespace godwit::controlplane
