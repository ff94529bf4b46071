#pragma once
// The whole of the control plane but its gRPC: agents' sessions on one side, operators' requests on the other. Thread:
// any; one mutex is held through each call, and in it at most one fsync of the store at a time. Calls never wait for an
// agent: answers that need one come through `done`, under that mutex, exactly once. LOADED is decided, stored and
// answered in the thread that brings it.

#include <expected>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "config/controlplane_config.h"
#include "controlplane/service/agent_link.h"
#include "controlplane/service/hosts.h"
#include "controlplane/service/migrations.h"
#include "controlplane/service/split_moves.h"
#include "controlplane/service/splits.h"
#include "controlplane/service/timers.h"
#include "controlplane/service/vms.h"

namespace godwit::controlplane {

/// How the cluster stands, for metrics.
struct ClusterFigures {
  std::map<std::string, HostView> hosts;
  std::map<api::MigrationState, std::uint64_t> active;
  MigrationFigures ended;
  std::vector<api::Migration> pulling;  // and what their VMs lack
  std::vector<api::Vm> splits;          // their uuid, host and split
};

class Coordinator {
 public:
  /// Fails when the store cannot be read; what the last run left undecided is ABORTED here, what was PULLING goes on.
  [[nodiscard]] static std::expected<std::unique_ptr<Coordinator>, StoreError> start(
      Store& store, const config::TimeoutConfig& timeouts, std::string cluster);
  Coordinator(Store& store, const config::TimeoutConfig& timeouts, std::string cluster);  // start() is for callers
  /// No session and no request may be left.
  ~Coordinator() { timers_.stop(); }
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  /// Decides nothing any more. Then sessions may be closed without the hosts counting as lost.
  void freeze();

  /// `certified_host`: the only name that the agent may register under; "" = any.
  [[nodiscard]] SessionId session_opened(std::shared_ptr<AgentLink> link, std::string certified_host);
  void received(SessionId session, const api::FromAgent& message);
  void session_closed(SessionId session);

  [[nodiscard]] std::expected<api::ListHostsResponse, ServiceError> list_hosts();
  [[nodiscard]] std::expected<api::ListVmsResponse, ServiceError> list_vms();
  [[nodiscard]] std::expected<api::ListImagesResponse, ServiceError> list_images();
  [[nodiscard]] std::expected<api::ListMigrationsResponse, ServiceError> list_migrations(bool active_only);
  [[nodiscard]] ClusterFigures figures();
  void drop_image(const std::string& host, const std::string& vm, Vms::Done done);
  void start_vm(const api::StartVmRequest& request, Vms::VmDone done);
  void attach_vm(const api::AttachVmRequest& request, Vms::VmDone done);
  void stop_vm(const std::string& vm, Vms::Done done);
  void heat(const api::GetHeatRequest& request, Vms::HeatDone done);
  void split_vm(const api::SplitVmRequest& request, const Vms::VmDone& done);
  [[nodiscard]] std::expected<api::Vm, ServiceError> gather_vm(const std::string& vm);
  [[nodiscard]] std::expected<Id128, ServiceError> migrate(const api::Plan& plan);
  using DrainDone = std::function<void(std::expected<api::DrainHostResponse, ServiceError>)>;
  /// Begins to move all that the host holds of any VM elsewhere; each refusal is in the response.
  void drain_host(const std::string& host, const DrainDone& done);
  [[nodiscard]] std::expected<void, ServiceError> cancel_migration(const std::string& migration_id);
  void switch_to_postcopy(const std::string& migration_id, Migrations::Done done);
  [[nodiscard]] std::expected<void, ServiceError> watch(const std::string& migration_id,
                                                        std::shared_ptr<MigrationWatcher> watcher);
  void unwatch(const std::string& migration_id, const MigrationWatcher* watcher);

 private:
  struct Session {
    std::shared_ptr<AgentLink> link;
    std::string certified_host;  // "" = may be any
    std::string host;            // "" until registered
    std::int64_t heard_ns = 0;
    Timers::Id silence_timer = Timers::kNone;
  };

  void register_host(SessionId id, Session& session, const api::Register& message);
  [[nodiscard]] api::Registered registered_answer(const std::string& host, const HostView& view);
  void watch_silence(SessionId id, Duration after);
  void close(SessionId id, const char* why);
  [[nodiscard]] std::expected<Id128, ServiceError> begin_migration(const api::Plan& plan);
  // host_drain.cpp
  [[nodiscard]] std::vector<std::string> destinations_from(const VmRecord& vm) const;
  [[nodiscard]] std::vector<std::vector<std::string>> sub_hosts_at(const std::string& destination,
                                                                   const VmRecord& vm) const;
  void move_away(const VmRecord& vm, api::DrainHostResponse::Part& part);
  void save_host(const std::string& name);

  std::mutex mutex_;
  Store& store_;
  const config::TimeoutConfig timeouts_;
  const std::string cluster_;
  std::unordered_map<SessionId, Session> sessions_;
  SessionId last_session_ = 0;
  Timers timers_{mutex_};
  Hosts hosts_{timers_};
  Migrations migrations_{store_, hosts_, timers_, timeouts_};
  Splits splits_{store_, hosts_, timers_, migrations_, timeouts_};
  SplitMoves moves_{store_, hosts_, timers_, migrations_, splits_};
  Vms vms_{store_, hosts_, migrations_, splits_, moves_, timeouts_};
};

}  // namespace godwit::controlplane
