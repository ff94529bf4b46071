#pragma once
// Migrations of VMs that are split, or are to be. Of a VM that is split its main part moves, and its page stores stay.
// One that is whole and gets a budget is split where it is first, so that what is cold goes straight to its sub hosts;
// then its main part moves. Only where a main host would be its own sub host the VM moves whole: gathered on its host,
// moved as any other, and split again where it is then.
// Thread: the coordinator's lock is held in every call; nothing here blocks but the store (one fsync a change).
// The rules of which all follow:
//  * How the VM is to be in the end, if not as it is, its standing order, is in our store before anything is begun. It
//    goes when it has been carried out, when the VM is elsewhere than it speaks of, is stopped or started anew, and
//    when the operator gathers or splits the VM meanwhile.
//  * The migration is in our store from the beginning, so nothing else is begun with the VM. No host hears of it before
//    the VM lies as it is to move: within its budget there, or whole, and the destination has given back what it lent.
//    The store lets no VM transfer that lies otherwise.
//  * Whatever became of the migration, or of us: once none has the VM, the order is carried out where the VM is, again
//    and again until that host and its sub hosts have agreed. One that was split only to move, and has not, is
//    gathered.
//  * What is seen to fail on the way is refused at the beginning: room at the destination for the budget, or for all of
//    the VM at whoever is to have it, and at sub hosts for what they are to have.

#include <expected>
#include <map>
#include <string>

#include "controlplane/service/hosts.h"
#include "controlplane/service/migrations.h"
#include "controlplane/service/splits.h"
#include "controlplane/store/store.h"

namespace godwit::controlplane {

class SplitMoves {
 public:
  SplitMoves(Store& store, Hosts& hosts, Timers& timers, Migrations& migrations, Splits& splits)
      : store_(store), hosts_(hosts), timers_(timers), migrations_(migrations), splits_(splits) {}

  /// After a start of the control plane.
  std::expected<void, StoreError> take_up();
  void freeze();

  /// What becomes of an operator's plan: whether the page stores stay, and what follows of that.
  [[nodiscard]] api::Plan as_carried_out(const api::Plan& plan, const VmRecord& vm) const;
  /// Any migration, split or not, from a plan that is so and that the planner has let pass.
  [[nodiscard]] std::expected<Id128, ServiceError> begin(const api::Plan& plan, const VmRecord& vm);
  /// A host has told how it stands: goes on with what waits.
  void look();
  /// The operator wants it as it is. False: there was no order, or our store has kept it.
  bool forget(const Id128& vm_uuid);
  /// The guest is no more: it was stopped, or is started anew.
  void vm_over(const Id128& vm_uuid) { static_cast<void>(forget(vm_uuid)); }
  /// Of a VM that is to be split: when, or why it is not yet. "": it is not to be.
  [[nodiscard]] std::string view(const Id128& vm_uuid) const;
  /// Of one that is split, and is not to be so: why it is not gathered yet. "": nothing is wrong.
  [[nodiscard]] std::string gather_problem(const Id128& vm_uuid) const;

 private:
  /// How a plan is carried out.
  enum class Way : std::uint8_t {
    kWhole,        // as of any other VM; then a standing order, if there is one
    kGatherFirst,  // it is split, and the destination holds a part of it; or it is being gathered
    kKeepsStores,  // it is split: its main part moves
    kSplitFirst,   // it is whole: split at the source, and then its main part moves
  };
  struct Standing {
    StandingOrder order;
    bool under_way = false;
    std::uint64_t serial = 0;          // of the attempt; answers to earlier ones are nobody's
    Timers::Id timer = Timers::kNone;  // before the next
    Duration pause{};                  // grows with failures
    std::string problem;               // of the last; "" = none
  };

  [[nodiscard]] Way way_of(const api::Plan& plan, const VmRecord& vm) const;
  [[nodiscard]] std::expected<Id128, ServiceError> begin_whole(const api::Plan& plan, const VmRecord& vm);
  [[nodiscard]] std::expected<Id128, ServiceError> begin_main_part(const api::Plan& plan, const VmRecord& vm,
                                                                   const StandingOrder& order, Splits::Order first);
  [[nodiscard]] std::expected<Id128, ServiceError> keep_stores(const api::Plan& plan, const VmRecord& vm);
  [[nodiscard]] std::expected<Id128, ServiceError> split_first(const api::Plan& plan, const VmRecord& vm);
  [[nodiscard]] api::SplitVmRequest wanted_at_source(const VmRecord& vm) const;
  [[nodiscard]] std::expected<StandingOrder, ServiceError> order_for(const api::Plan& plan, const VmRecord& vm) const;
  [[nodiscard]] std::optional<ServiceError> keep(const StandingOrder& order);
  [[nodiscard]] bool runs(const Id128& vm_uuid, const std::string& host) const;
  void look_after_held(const Migrations::Held& held);
  void look_after_main_part(const Migrations::Held& held);
  void look_after(const Id128& vm_uuid);
  void gather(Standing& standing, const VmRecord& vm);
  void carry_out(Standing& standing, const VmRecord& vm, Splits::Order order);
  void try_again(Standing& standing, const std::string& problem);
  void carried_out(const Id128& vm_uuid, std::uint64_t serial, const std::expected<void, ServiceError>& split);

  Store& store_;
  Hosts& hosts_;
  Timers& timers_;
  Migrations& migrations_;
  Splits& splits_;
  std::map<Id128, Standing> orders_;  // by VM; as in our store
  std::uint64_t serial_ = 0;
  bool frozen_ = false;
};

}  // namespace godwit::controlplane
