#pragma once
// Split VMs: a main host that runs the VM within a resident budget, and sub hosts that hold the rest in page stores.
// Thread: the coordinator's lock is held in every call; nothing here blocks but the store (one fsync a change).
// The rules of which all follow:
//  * A page store is in our store before its host hears of it, and until that host has confirmed that it is gone.
//  * CONNECTED is stored before the main host may send a page there. From then on it is made anew by nobody: a host
//    that does not know it any more has lost its pages, and is said to have.
//  * It is dropped (RETIRING) only when nobody can need it: nothing was ever sent there; it has been drained, and the
//    main host has confirmed that it does without (DRAINING before); the main host has all pages again (gathered); or
//    the VM has ended: stopped, its QEMU's exit reported, or given to a host anew.
//  * What a host reports is compared with our store each time, and it is told what differs, again without end: the
//    budget and page stores to the main host, a new flow with a new secret where there is none, DropStore to subs.
//  * While the main part moves nothing is begun, drained or gathered, and the main host is told nothing but of flows.
//    With the commit the destination is the main host, and from then on it alone is told.
//  * Neither silence of a host nor a restart of anybody ends anything.

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "config/controlplane_config.h"
#include "controlplane/service/hosts.h"
#include "controlplane/service/migrations.h"
#include "controlplane/store/store.h"

namespace godwit::controlplane {

class Splits {
 public:
  using Done = std::function<void(std::expected<void, ServiceError>)>;
  /// What an operator asks for.
  struct Order {
    std::uint64_t budget_bytes = 0;                 // 0: as it is
    std::vector<std::string> sub_hosts;             // to be added; none: chosen, if need be
    std::vector<std::string> without;               // sub hosts that are to hold nothing of it any more
    std::optional<dpapi::Encryption> encryption{};  // of its flows; none: as it is
    std::string destination{};  // of a migration that waits for this: no obstacle, and it becomes no sub host
  };

  Splits(Store& store, Hosts& hosts, Timers& timers, const Migrations& migrations,
         const config::TimeoutConfig& timeouts)
      : store_(store), hosts_(hosts), timers_(timers), migrations_(migrations), timeouts_(timeouts) {}

  /// After a start of the control plane.
  std::expected<void, StoreError> take_up();
  void freeze();

  /// Why split() could not begin, for a VM that is not split where the record says: it is about to run there.
  [[nodiscard]] std::optional<ServiceError> obstacle(const VmRecord& vm, const Order& order) const;
  /// Splits the VM, or changes that. `done` once main host and new sub hosts have agreed; flows follow, and what is to
  /// go elsewhere goes. If one refuses, nothing has changed.
  void split(const VmRecord& vm, Order order, const Done& done);
  /// VMs of which this host holds a part that is not on its way elsewhere.
  [[nodiscard]] std::vector<Id128> held_by(const std::string& sub_host) const;
  /// How a VM that is SPLIT is, in the words of an order.
  [[nodiscard]] std::optional<Order> settings(const Id128& vm_uuid) const;
  /// How much a host lends to this VM, until it has confirmed that the page store is gone.
  [[nodiscard]] std::uint64_t lent_bytes(const Id128& vm_uuid, const std::string& sub_host) const;
  /// Begins to bring all pages back to the main host.
  [[nodiscard]] std::expected<void, ServiceError> gather(const VmRecord& vm);

  [[nodiscard]] bool is_sub_host(const Id128& vm_uuid, const std::string& host) const;
  /// Why the main part of a VM that is SPLIT could not move and have this budget there.
  [[nodiscard]] std::optional<ServiceError> move_obstacle(const VmRecord& vm, std::uint64_t budget_bytes) const;
  /// What is to be waited for before it can; "": nothing. `connected`: that all sub hosts are, too.
  [[nodiscard]] std::string move_waits_for(const Id128& vm_uuid, const api::Plan& plan, bool connected) const;
  /// What the destination is to be told of it; none: it is not split.
  [[nodiscard]] std::optional<api::SplitGuest> split_there(const MigrationRecord& migration) const;
  /// It is committed, and the store has it so.
  void moved(const MigrationRecord& migration);

  void host_reported(const std::string& host);
  /// The guest is no more: it was stopped, or is started anew.
  void vm_over(const Id128& vm_uuid);
  void vm_ended(const std::string& host, const api::VmEnded& ended);

  /// SPLIT_UNSPECIFIED: it is not split.
  [[nodiscard]] api::SplitState state(const Id128& vm_uuid) const;
  [[nodiscard]] std::optional<api::Split> view(const Id128& vm_uuid) const;
  /// Of each its uuid, host and split.
  [[nodiscard]] std::vector<api::Vm> all() const;

 private:
  /// Something that a host is asked for until it is so.
  struct Attempts {
    bool under_way = false;
    bool dropping = false;
    std::uint64_t serial = 0;          // answers to earlier ones are nobody's
    Timers::Id timer = Timers::kNone;  // a while after each: reports of before it may still come
    Duration pause{};                  // grows with failures
    std::string problem;               // of the last; "" = none
  };
  struct Part {  // a page store
    PageStoreRecord record;
    Attempts attempts;  // to connect it; RETIRING: to drop it
    dpapi::Endpoint sub_endpoint, main_endpoint;
  };
  struct Active {
    SplitRecord record;
    VmRecord vm;
    bool changing = false;  // an operator's order is under way
    bool over = false;      // the guest is no more, and our store has not taken that yet
    Attempts attempts;      // to tell the main host
  };
  /// An operator's order, under way.
  struct Change {
    Id128 vm_uuid;
    std::uint64_t budget_bytes = 0;
    std::vector<Id128> added;
    std::vector<Id128> drained;  // to be
    std::size_t prepared = 0;    // of those that are added
    Done done;
  };

  // splits.cpp
  void prepare_next(const std::shared_ptr<Change>& change);
  void tell_changed(const std::shared_ptr<Change>& change);
  void undo(const std::shared_ptr<Change>& change, const ServiceError& why);
  void end(Id128 vm_uuid);  // a copy: callers have it from what goes
  void retire(Part& part);

  // split_sessions.cpp
  void look_after(Active& split);
  void look_after_strays(const std::string& host);
  void tell_main(Active& split);
  void connect(Part& part);
  void prepare_sub(Part& part);
  void start_store(Part& part);
  void start_sub(Part& part, const std::string& secret);
  void drop(Part& part);
  /// Asks in an attempt of the part; a failure ends it.
  void ask(Part& part, const std::string& host, api::ToAgent message,
           std::function<void(Part&, const api::AgentReply&)> next);
  /// After a while `again` runs.
  void attempt_ended(Attempts& attempts, const std::string& problem, std::function<void()> again);
  void attempt_failed(Part& part, const std::string& problem);

  [[nodiscard]] std::vector<Part*> parts_of(const Id128& vm_uuid);
  [[nodiscard]] std::vector<PageStoreRecord> staying(const Id128& vm_uuid) const;
  [[nodiscard]] const api::RunningVm* running(const VmRecord& vm) const;
  /// As the data plane of the main host has it now; nullptr: it does not, or nobody knows.
  [[nodiscard]] const dpapi::SplitStatus* status_of(const Active& split) const;
  [[nodiscard]] const dpapi::SubStatus* at_main(const Part& part) const;
  [[nodiscard]] const api::HeldStore* at_sub(const Part& part) const;
  [[nodiscard]] bool connected(const Part& part) const;
  [[nodiscard]] bool is_connected(const std::string& host) const;
  [[nodiscard]] bool drained(const Part& part) const;
  [[nodiscard]] bool as_ordered(const Active& split) const;
  [[nodiscard]] api::ToAgent order_of(const Active& split, std::uint64_t budget_bytes) const;
  [[nodiscard]] api::SplitGuest order_of(const Active& split, std::uint64_t budget_bytes, bool with_drained) const;
  void forget_attempts(Attempts& attempts);
  [[nodiscard]] api::ToAgent prepare_store(const Part& part) const;
  void warn_of(const Part& part, api::Split& shown) const;
  [[nodiscard]] std::expected<std::vector<PageStoreRecord>, ServiceError> plan(const VmRecord& vm,
                                                                               const Order& order) const;
  [[nodiscard]] std::expected<void, ServiceError> may_change(const VmRecord& vm, const Order& order) const;
  void drain(const Id128& page_store);

  Store& store_;
  Hosts& hosts_;
  Timers& timers_;
  const Migrations& migrations_;
  const config::TimeoutConfig timeouts_;
  std::map<Id128, Active> splits_;  // by VM
  std::map<Id128, Part> parts_;     // by store_id
  bool frozen_ = false;
};

[[nodiscard]] Splits::Order order_of(const api::SplitVmRequest& request);

}  // namespace godwit::controlplane
