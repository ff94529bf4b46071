#pragma once
// A VM that is split moves whole: it is gathered on its host, moved as any other, and split again where it is then. One
// that is not split can be split where it arrives.
// Thread: the coordinator's lock is held in every call; nothing here blocks but the store (one fsync a change).
// The rules of which all follow:
//  * How the VM is to be split in the end, its standing order, is in our store before anything is begun. It goes when
//  it
//    has been carried out, or says "not", when the VM is elsewhere than it speaks of, is stopped or started anew, and
//    when the operator gathers or splits the VM meanwhile.
//  * The migration is in our store from the beginning, so nothing else is begun with the VM. No host hears of it before
//    all pages are on the source, and the destination has given back what it lent. The store lets no VM transfer that
//    is split.
//  * Whatever became of the migration, or of us: once none has the VM, and it is not split, the order is carried out
//    where the VM is, again and again until that host and its sub hosts have agreed.
//  * What is seen to fail on the way is refused at the beginning: room for all of the VM at source and destination, and
//    at sub hosts for what it is to have there.

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

  /// Any migration, split or not, from a plan that the planner has let pass.
  [[nodiscard]] std::expected<Id128, ServiceError> begin(const api::Plan& plan, const VmRecord& vm);
  /// A host has told how it stands: goes on with what waits.
  void look();
  /// The operator wants it as it is. False: there was no order, or our store has kept it.
  bool forget(const Id128& vm_uuid);
  /// The guest is no more: it was stopped, or is started anew.
  void vm_over(const Id128& vm_uuid) { static_cast<void>(forget(vm_uuid)); }
  /// Of a VM that is to be split: when, or why it is not yet. "": it is not to be.
  [[nodiscard]] std::string view(const Id128& vm_uuid) const;

 private:
  struct Standing {
    StandingOrder order;
    bool under_way = false;
    std::uint64_t serial = 0;          // of the attempt; answers to earlier ones are nobody's
    Timers::Id timer = Timers::kNone;  // before the next
    Duration pause{};                  // grows with failures
    std::string problem;               // of the last; "" = none
  };

  [[nodiscard]] std::expected<StandingOrder, ServiceError> order_for(const api::Plan& plan, const VmRecord& vm) const;
  [[nodiscard]] std::optional<ServiceError> keep(const StandingOrder& order);
  [[nodiscard]] bool runs(const Id128& vm_uuid, const std::string& host) const;
  void look_after_held(const Migrations::Held& held);
  void look_after(const Id128& vm_uuid);
  void carry_out(Standing& standing, const VmRecord& vm, const api::SplitVmRequest& order);
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
