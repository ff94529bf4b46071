#pragma once
// Migrations of split VMs, played by fake agents: how each begins, and its steps to the end. One test's; its thread
// only.

#include "tests/unit/controlplane/split_fixture.h"

namespace godwit::controlplane::testing {

class SplitMovesTest : public SplitTest {
 protected:
  static api::Plan plan_to(const std::string& destination) {
    api::Plan plan;
    plan.set_vm("demo");
    plan.set_destination(destination);
    return plan;
  }
  auto move(const api::Plan& plan) {
    api::MigrateRequest request;
    *request.mutable_plan() = plan;
    auto [status, response] = call(&api::Operators::Stub::Migrate, request).get();
    return std::pair(status, response.migration_id());
  }
  std::string move_refused(const api::Plan& plan) {
    const auto [status, id] = move(plan);
    EXPECT_FALSE(status.ok());
    return status.error_message();
  }

  /// The migration of a split VM to one of its sub hosts begins: its main host is told to gather, and nobody of the
  /// migration.
  std::string begin_move(const api::Plan& plan) {
    split_over_b();
    const auto [status, id] = move(plan);
    EXPECT_TRUE(status.ok()) << status.error_message();
    const Agent order = a_->expect(Agent::kSplitGuest);
    EXPECT_TRUE(order.split_guest().gather());
    main_reports(true, kBudget, true);
    a_->reply(order);
    EXPECT_EQ(vm().migration_id(), id);
    return id;
  }
  /// The main host has all pages.
  void gathered() {
    api::RunningVm vm_now;
    vm_now.set_uuid(uuid_.to_bytes());
    vm_now.set_name("demo");
    vm_now.set_ownership(1);
    vm_now.set_gathered(true);
    vm_now.mutable_split()->add_subs()->set_store_id(store_);
    a_->set_vms({vm_now});
    a_->report();
    EXPECT_EQ(a_->expect(Agent::kEndSplit).end_split().ownership(), 1U);
    a_->ignore(Agent::kEndSplit);
    runs_at(*a_, {});
  }
  /// From PrepareSource to the end, all confirmed.
  void play_migration(const std::string& id, FakeAgent& from, FakeAgent& to) {
    const Agent prepare_source = from.expect(Agent::kPrepareSource);
    EXPECT_EQ(prepare_source.prepare_source().migration_id(), id);
    runs_at(from, id);
    from.reply(prepare_source, source_prepared());
    const Agent prepare = to.expect(Agent::kPrepareDestination);
    runs_at(to, id);
    to.reply(prepare, destination_prepared());
    to.reply(to.expect(Agent::kStartTransfer));
    from.reply(from.expect(Agent::kStartTransfer));
    watch_until(id, [](const auto& m) { return m.note() == "transferring"; });
    from.event(id, Event::READY_TO_SWITCH);
    from.reply(from.expect(Agent::kSwitch));
    commit(id, from, to, 2);
    EXPECT_EQ(watch_to_end(id).state(), api::COMMITTED);
  }
  /// `main` is told to split the VM over this sub host, and agrees.
  Agent expect_split(FakeAgent& main, FakeAgent& sub, std::uint64_t budget) {
    const Agent prepare = sub.expect(Agent::kPrepareStore);
    EXPECT_TRUE(prepare.prepare_store().create());
    EXPECT_EQ(prepare.prepare_store().main_host(), main.info.name());
    sub.reply(prepare, at("10.0.0.2"));
    const Agent order = main.expect(Agent::kSplitGuest);
    EXPECT_EQ(order.split_guest().budget_bytes(), budget);
    EXPECT_FALSE(order.split_guest().gather());
    EXPECT_EQ(order.split_guest().subs_size(), 1);
    EXPECT_EQ(order.split_guest().subs(0).store_id(), prepare.prepare_store().store_id());
    return order;
  }
  template <typename Condition>
  void until(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!condition() && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // tidy-allow(sleep): polls a bounded wait
    }
    EXPECT_TRUE(condition());
  }
  void until_not_to_be_split() {
    until([this] { return vm().to_be_split().empty(); });
  }
  auto hosts_connected() {
    const auto hosts = call(&api::Operators::Stub::ListHosts, api::ListHostsRequest()).get().second.hosts();
    return std::ranges::count_if(hosts, &api::Host::connected);
  }
  void cancel(const std::string& id) {
    api::CancelMigrationRequest request;
    request.set_migration_id(id);
    EXPECT_TRUE(call(&api::Operators::Stub::CancelMigration, request).get().first.ok());
  }
  auto gather() {
    api::GatherVmRequest request;
    request.set_vm("demo");
    return call(&api::Operators::Stub::GatherVm, request).get().first;
  }
};

}  // namespace godwit::controlplane::testing
