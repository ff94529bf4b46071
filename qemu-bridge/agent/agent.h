#pragma once
// Agent: the bridge of one host. Owns the connections to the data plane and to the control plane, all Vms, and two
// threads: one that beats each second, one that destroys Vms that are over. It passes commands to their Vm by uuid or
// migration, events of the data plane likewise, and tells the control plane what is here.
// Threads: run-free: everything starts in the constructor and ends in the destructor. QEMUs live on after both.

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "controlplane/tls/certificate_watch.h"
#include "qemu-bridge/agent/page_stores.h"
#include "qemu-bridge/agent/vm.h"

namespace godwit::bridge {

/// How this host's bridge stands, for metrics.
struct AgentFigures {
  bool dataplane_connected = false;
  bool controlplane_connected = false;
  std::vector<controlplane::v1::RunningVm> vms;
  std::vector<controlplane::v1::HeldStore> stores;
};

class Agent {
 public:
  /// Fails when the journal's directory cannot be used: a bridge that forgets must not start.
  static std::expected<std::unique_ptr<Agent>, std::string> start(config::BridgeConfig config);
  ~Agent();
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;
  /// Any thread.
  [[nodiscard]] AgentFigures figures() const;

 private:
  using VmPtr = std::shared_ptr<Vm>;

  explicit Agent(config::BridgeConfig config);
  void recover(std::vector<VmRecord> records);
  void beat();
  void beat_loop();
  std::uint64_t vms_version() const;
  void clear_leftovers(const dataplane::v1::Status& status, const dataplane::v1::ListImagesResult& images,
                       std::uint64_t version_before);
  void take_status(const dataplane::v1::Status* status);
  VmServices vm_services();
  VmPtr vm_of(const std::string& uuid_bytes) const;
  VmPtr vm_of_migration(const std::string& migration_bytes) const;
  std::vector<VmPtr> all_vms() const;
  std::expected<VmPtr, dataplane::v1::Error> add_vm(VmRecord record);
  void vm_gone(const Id128& uuid);

  void on_dataplane_event(const dataplane::v1::Event& event);
  void on_message(const controlplane::v1::ToAgent& message);
  void on_registered(const controlplane::v1::Registered& registered);
  void start_vm(const controlplane::v1::ToAgent& message);
  void attach_vm(const controlplane::v1::ToAgent& message);
  void prepare_destination(const controlplane::v1::ToAgent& message);
  void outcome(const controlplane::v1::Outcome& outcome, Reply reply);
  void drop_image(const controlplane::v1::ToAgent& message);
  /// What is asked of this host as a sub host; false: something else.
  bool page_store_command(const controlplane::v1::ToAgent& message);
  bool split_command(const controlplane::v1::ToAgent& message);
  void on_split_event(const dataplane::v1::Event& event);
  void with_vm(const VmPtr& vm, const controlplane::v1::ToAgent& message, const char* what,
               const std::function<void(Vm&)>& command);
  Reply reply_to(std::uint64_t id);
  void send_event_and_remember(controlplane::v1::FromAgent message, ControlSession::Delivery delivery);
  void look_after_connection();
  controlplane::v1::Register make_register();

  const config::BridgeConfig config_;
  const std::string qemu_version_;
  Journal journal_;
  PageStores page_stores_;
  std::unique_ptr<controlplane::CertificateWatch> certificate_;  // none where the connection needs none

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Id128, VmPtr> vms_;
  std::uint64_t vms_version_ = 0;  // raised when a VM comes or goes
  std::set<Id128> clearing_;       // VMs whose leftovers are being cleared: none of them may begin here
  std::map<std::string, controlplane::v1::FromAgent> last_words_;  // migration id -> RESUMED, RETIRED or BACK
  std::optional<dataplane::v1::ListImagesResult> images_;
  bool beat_now_ = false;
  bool stopping_ = false;

  SerialQueue stores_queue_;  // of page_stores_
  SerialQueue housekeeping_;  // destroys Vms, drops images, clears leftovers
  std::unique_ptr<DataplaneClient> dataplane_;
  std::unique_ptr<ControlSession> session_;
  std::thread beater_;
};

}  // namespace godwit::bridge
