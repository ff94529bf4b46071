// The control plane and split VMs that move: that nobody hears of the migration before all pages are on one host, that
// the VM is split again wherever it is then, and that nothing of this is forgotten. Fake agents on real gRPC streams
// play the hosts.
#include "tests/unit/controlplane/split_fixture.h"

namespace godwit::controlplane::testing {
namespace {

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

  /// A split VM's migration begins: its main host is told to gather, and nobody of the migration.
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

TEST_F(SplitMovesTest, ItIsGatheredMovedAndSplitAgainAsItWas) {
  b_->info.set_memory_lend_bytes(kVmBytes - kBudget + 2 * kMiB);  // enough once, not twice
  const std::string id = begin_move(plan_to("host-c"));
  watch_until(id, [](const auto& m) { return m.note().starts_with("gathering it first"); });
  EXPECT_NE(vm().to_be_split().find("host-c"), std::string::npos) << vm().to_be_split();
  EXPECT_EQ(a_->unread() + b_->unread() + c_->unread(), 0U) << "pages are still on host-b";
  gathered();
  expect_dropped(*b_);
  play_migration(id, *a_, *c_);
  const Agent order = expect_split(*c_, *b_, kBudget);
  EXPECT_EQ(order.split_guest().ownership(), 2U);
  c_->reply(order);
  until_not_to_be_split();
  EXPECT_EQ(vm().host(), "host-c");
  EXPECT_EQ(vm().split().subs(0).host(), "host-b");
}

TEST_F(SplitMovesTest, ADestinationThatWasASubHostGivesBackWhatItLentFirst) {
  for (FakeAgent* host : {a_.get(), c_.get()}) {
    host->info.set_memory_lend_bytes(256 * kMiB);
  }
  b_->info.set_memory_free_bytes(kVmBytes - 1);  // what it lends to the VM comes to that
  const std::string id = begin_move(plan_to("host-b"));
  gathered();
  const Agent drop = b_->expect(Agent::kDropStore);
  watch_until(id, [](const auto& m) { return m.note().find("gives back") != std::string::npos; });
  EXPECT_EQ(a_->unread(), 0U) << "host-b has not confirmed yet";
  b_->set_stores({});
  b_->report();
  b_->reply(drop);
  play_migration(id, *a_, *b_);
  // host-b is its own sub host no more; of the others either may be chosen.
  until([this] { return a_->unread() + c_->unread() > 0; });
  FakeAgent& sub = a_->unread() > 0 ? *a_ : *c_;
  b_->reply(expect_split(*b_, sub, kBudget));
  until_not_to_be_split();
}

TEST_F(SplitMovesTest, CancelledWhileItIsGatheredItIsSplitAgainWhereItIs) {
  const std::string id = begin_move(plan_to("host-c"));
  cancel(id);
  EXPECT_EQ(watch_to_end(id).state(), api::ABORTED);
  EXPECT_EQ(c_->unread(), 0U) << "it never heard of the migration";
  gathered();
  expect_dropped(*b_);
  a_->reply(expect_split(*a_, *b_, kBudget));
  until_not_to_be_split();
  EXPECT_EQ(vm().host(), "host-a");
}

TEST_F(SplitMovesTest, AHostThatIsLostWhileItIsGatheredEndsNothing) {
  const std::string id = begin_move(plan_to("host-c"));
  c_->disconnect();
  until([this] { return hosts_connected() == 2; });
  c_->connect();
  until([this] { return hosts_connected() == 3; });
  EXPECT_EQ(migration(id).state(), api::PREPARING);
  gathered();
  expect_dropped(*b_);
  play_migration(id, *a_, *c_);
}

TEST_F(SplitMovesTest, ARestartOfTheControlPlaneAbortsItAndItIsSplitAgain) {
  const std::string id = begin_move(plan_to("host-c"));
  restart_all();
  EXPECT_EQ(migration(id).state(), api::ABORTED);
  EXPECT_NE(vm().to_be_split(), "");
  for (FakeAgent* side : {a_.get(), c_.get()}) {
    const Agent outcome = side->expect(Agent::kOutcome);  // nobody knows any more that they had not heard of it
    EXPECT_EQ(outcome.outcome().state(), api::ABORTED);
    side->refuse(outcome, dpapi::Error::NO_SUCH_MIGRATION, "no such migration");
  }
  gathered();
  expect_dropped(*b_);
  a_->reply(expect_split(*a_, *b_, kBudget));
  until_not_to_be_split();
}

TEST_F(SplitMovesTest, WhatIsRefusedAtTheEndIsTriedAgainAndTheOperatorSeesIt) {
  const std::string id = begin_move(plan_to("host-c"));
  gathered();
  expect_dropped(*b_);
  play_migration(id, *a_, *c_);
  const Agent prepare = b_->expect(Agent::kPrepareStore);
  b_->refuse(prepare, dpapi::Error::NO_MEMORY, "no room after all");
  store_ = prepare.prepare_store().store_id();
  expect_dropped(*b_);
  EXPECT_NE(vm().to_be_split().find("no room after all"), std::string::npos) << vm().to_be_split();
  c_->reply(expect_split(*c_, *b_, kBudget));
  until_not_to_be_split();
}

TEST_F(SplitMovesTest, OneThatIsToStayWholeIsNotSplitAgain) {
  api::Plan plan = plan_to("host-c");
  plan.set_whole(true);
  const std::string id = begin_move(plan);
  EXPECT_NE(vm().to_be_split().find("if it stays on host-a"), std::string::npos) << vm().to_be_split();
  gathered();
  expect_dropped(*b_);
  play_migration(id, *a_, *c_);
  until_not_to_be_split();
  EXPECT_EQ(b_->unread(), 0U);
  EXPECT_FALSE(vm().has_split());
}

TEST_F(SplitMovesTest, OneThatWasToStayWholeAndDidNotMoveIsSplitAgain) {
  api::Plan plan = plan_to("host-c");
  plan.set_whole(true);
  cancel(begin_move(plan));
  gathered();
  expect_dropped(*b_);
  a_->reply(expect_split(*a_, *b_, kBudget));
  until_not_to_be_split();
}

TEST_F(SplitMovesTest, OneThatIsGatheredByHandMeanwhileStaysWhole) {
  const std::string id = begin_move(plan_to("host-c"));
  EXPECT_TRUE(gather().ok());
  EXPECT_EQ(vm().to_be_split(), "");
  gathered();
  expect_dropped(*b_);
  play_migration(id, *a_, *c_);
  EXPECT_FALSE(gather().ok()) << "nothing is to be gathered";
  EXPECT_EQ(b_->unread(), 0U);
}

TEST_F(SplitMovesTest, AWholeVmIsSplitWhereItArrives) {
  connect_all();
  api::Plan plan = plan_to("host-b");
  plan.set_resident_budget_bytes(kBudget);
  plan.add_sub_hosts("host-c");
  const auto [status, id] = move(plan);
  ASSERT_TRUE(status.ok()) << status.error_message();
  play_migration(id, *a_, *b_);
  b_->reply(expect_split(*b_, *c_, kBudget));
  until_not_to_be_split();
}

TEST_F(SplitMovesTest, AWholeVmThatDidNotMoveStaysWhole) {
  connect_all();
  api::Plan plan = plan_to("host-b");
  plan.set_resident_budget_bytes(kBudget);
  const auto [status, id] = move(plan);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const Agent prepare = a_->expect(Agent::kPrepareSource);
  runs_at(*a_, id);
  cancel(id);
  a_->reply(prepare, source_prepared());
  expect_aborted(id, *a_, nullptr, "operator");
  until_not_to_be_split();
  EXPECT_EQ(c_->unread(), 0U);
}

TEST_F(SplitMovesTest, AStoppedVmIsSplitNoMore) {
  const std::string id = begin_move(plan_to("host-c"));
  cancel(id);
  stop_vm();
  EXPECT_EQ(vm().to_be_split(), "");
  expect_dropped(*b_);
}

TEST_F(SplitMovesTest, WhatWouldFailOnTheWayIsRefusedAndNobodyHears) {
  a_->info.set_memory_free_bytes(8 * kMiB);
  split_over_b();
  EXPECT_NE(move_refused(plan_to("host-c")).find("gathered first, but host-a has not enough memory"),
            std::string::npos);
  api::Plan plan = plan_to("host-c");
  plan.set_resident_budget_bytes(kVmBytes);
  EXPECT_NE(move_refused(plan).find("could not be split on host-c"), std::string::npos);
  plan.set_whole(true);
  EXPECT_NE(move_refused(plan).find("no budget"), std::string::npos);
  plan = plan_to("host-c");
  plan.add_sub_hosts("host-b");
  plan.add_sub_hosts("host-b");
  EXPECT_NE(move_refused(plan).find("twice"), std::string::npos);
  EXPECT_EQ(vm().to_be_split(), "");
  EXPECT_EQ(vm().split().state(), api::SPLIT);
  EXPECT_EQ(a_->unread() + b_->unread() + c_->unread(), 0U);
}

TEST_F(SplitMovesTest, AHostThatIsDrainedLendsNothingToWhatLeavesIt) {
  a_->info.set_memory_lend_bytes(256 * kMiB);
  a_->info.set_memory_free_bytes(16ULL << 30);
  b_->info.set_memory_free_bytes(8ULL << 30);  // it goes there
  split_over_b();
  api::DrainHostRequest request;
  request.set_host("host-a");
  const auto [status, response] = call(&api::Operators::Stub::DrainHost, request).get();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.parts_size(), 1);
  EXPECT_EQ(response.parts(0).refusal(), "");
  const Agent order = a_->expect(Agent::kSplitGuest);
  EXPECT_TRUE(order.split_guest().gather());
  main_reports(true, kBudget, true);
  a_->reply(order);
  gathered();
  expect_dropped(*b_);
  play_migration(response.parts(0).migration_id(), *a_, *b_);
  b_->reply(expect_split(*b_, *c_, kBudget));
  until_not_to_be_split();
}

TEST_F(SplitMovesTest, NoHostThatLendsIsLeftWhenItIsDrained) {
  a_->info.set_memory_lend_bytes(256 * kMiB);
  c_->info.set_memory_lend_bytes(0);
  c_->info.set_dataplane_up(false);
  split_over_b();
  api::DrainHostRequest request;
  request.set_host("host-a");
  const auto response = call(&api::Operators::Stub::DrainHost, request).get().second;
  ASSERT_EQ(response.parts_size(), 1);
  EXPECT_NE(response.parts(0).refusal().find("no host but host-a and host-b lends"), std::string::npos)
      << response.parts(0).refusal();
}

TEST_F(SplitMovesTest, SubHostsWithoutABudgetAreOfNoUse) {
  connect_all();
  api::Plan plan = plan_to("host-b");
  plan.add_sub_hosts("host-c");
  EXPECT_NE(move_refused(plan).find("without a budget"), std::string::npos);
}

}  // namespace
}  // namespace godwit::controlplane::testing
