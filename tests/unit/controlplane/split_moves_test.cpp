// The control plane and split VMs that move whole, to one of their sub hosts: that nobody hears of the migration before
// all pages are on one host, that the VM is split again wherever it is then, and that nothing of this is forgotten.
// Fake agents on real gRPC streams play the hosts.
#include "tests/unit/controlplane/split_moves_fixture.h"

namespace godwit::controlplane::testing {
namespace {

TEST_F(SplitMovesTest, ADestinationThatWasASubHostGivesBackWhatItLentFirst) {
  for (FakeAgent* host : {a_.get(), c_.get()}) {
    host->info.set_memory_lend_bytes(256 * kMiB);
  }
  b_->info.set_memory_free_bytes(kVmBytes - 1);  // what it lends to the VM comes to that
  const std::string id = begin_move(plan_to("host-b"));
  watch_until(id, [](const auto& m) { return m.note().starts_with("gathering it first"); });
  EXPECT_FALSE(migration(id).plan().keeps_stores());
  EXPECT_NE(vm().to_be_split().find("host-b"), std::string::npos) << vm().to_be_split();
  EXPECT_EQ(a_->unread() + b_->unread() + c_->unread(), 0U) << "pages are still on host-b";
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
  const std::string id = begin_move(plan_to("host-b"));
  cancel(id);
  EXPECT_EQ(watch_to_end(id).state(), api::ABORTED);
  EXPECT_EQ(b_->unread(), 0U) << "it never heard of the migration";
  gathered();
  expect_dropped(*b_);
  a_->reply(expect_split(*a_, *b_, kBudget));
  until_not_to_be_split();
  EXPECT_EQ(vm().host(), "host-a");
}

TEST_F(SplitMovesTest, AHostThatIsLostWhileItIsGatheredEndsNothing) {
  const std::string id = begin_move(plan_to("host-b"));
  b_->disconnect();
  until([this] { return hosts_connected() == 2; });
  b_->connect();
  until([this] { return hosts_connected() == 3; });
  EXPECT_EQ(migration(id).state(), api::PREPARING);
  gathered();
  expect_dropped(*b_);
  play_migration(id, *a_, *b_);
}

TEST_F(SplitMovesTest, ARestartOfTheControlPlaneAbortsItAndItIsSplitAgain) {
  const std::string id = begin_move(plan_to("host-b"));
  restart_all();
  EXPECT_EQ(migration(id).state(), api::ABORTED);
  EXPECT_NE(vm().to_be_split(), "");
  for (FakeAgent* side : {a_.get(), b_.get()}) {
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
  const std::string id = begin_move(plan_to("host-b"));
  gathered();
  expect_dropped(*b_);
  play_migration(id, *a_, *b_);
  const Agent prepare = c_->expect(Agent::kPrepareStore);
  c_->refuse(prepare, dpapi::Error::NO_MEMORY, "no room after all");
  store_ = prepare.prepare_store().store_id();
  expect_dropped(*c_);
  EXPECT_NE(vm().to_be_split().find("no room after all"), std::string::npos) << vm().to_be_split();
  b_->reply(expect_split(*b_, *c_, kBudget));
  until_not_to_be_split();
}

TEST_F(SplitMovesTest, OneThatIsToStayWholeIsNotSplitAgain) {
  api::Plan plan = plan_to("host-b");
  plan.set_whole(true);
  const std::string id = begin_move(plan);
  EXPECT_NE(vm().to_be_split().find("if it stays on host-a"), std::string::npos) << vm().to_be_split();
  gathered();
  expect_dropped(*b_);
  play_migration(id, *a_, *b_);
  until_not_to_be_split();
  EXPECT_EQ(c_->unread(), 0U);
  EXPECT_FALSE(vm().has_split());
}

TEST_F(SplitMovesTest, OneThatWasToStayWholeAndDidNotMoveIsSplitAgain) {
  api::Plan plan = plan_to("host-b");
  plan.set_whole(true);
  cancel(begin_move(plan));
  gathered();
  expect_dropped(*b_);
  a_->reply(expect_split(*a_, *b_, kBudget));
  until_not_to_be_split();
}

TEST_F(SplitMovesTest, OneThatIsGatheredByHandMeanwhileStaysWhole) {
  const std::string id = begin_move(plan_to("host-b"));
  EXPECT_TRUE(gather().ok());
  EXPECT_EQ(vm().to_be_split(), "");
  gathered();
  expect_dropped(*b_);
  play_migration(id, *a_, *b_);
  EXPECT_FALSE(gather().ok()) << "nothing is to be gathered";
  EXPECT_EQ(c_->unread(), 0U);
}

TEST_F(SplitMovesTest, AWholeVmWhoseSourceIsToLendIsSplitWhereItArrives) {
  a_->info.set_memory_lend_bytes(256 * kMiB);
  connect_all();
  api::Plan plan = plan_to("host-b");
  plan.set_resident_budget_bytes(kBudget);
  plan.add_sub_hosts("host-a");
  const auto [status, id] = move(plan);
  ASSERT_TRUE(status.ok()) << status.error_message();
  play_migration(id, *a_, *b_);
  b_->reply(expect_split(*b_, *a_, kBudget));
  until_not_to_be_split();
}

TEST_F(SplitMovesTest, AWholeVmThatDidNotMoveStaysWhole) {
  a_->info.set_memory_lend_bytes(256 * kMiB);
  connect_all();
  api::Plan plan = plan_to("host-b");
  plan.set_resident_budget_bytes(kBudget);
  plan.add_sub_hosts("host-a");
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
  const std::string id = begin_move(plan_to("host-b"));
  cancel(id);
  stop_vm();
  EXPECT_EQ(vm().to_be_split(), "");
  expect_dropped(*b_);
}

TEST_F(SplitMovesTest, WhatWouldFailOnTheWayIsRefusedAndNobodyHears) {
  a_->info.set_memory_free_bytes(8 * kMiB);
  split_over_b();
  EXPECT_NE(move_refused(plan_to("host-b")).find("gathered first, but host-a has not enough memory"),
            std::string::npos);
  api::Plan plan = plan_to("host-b");
  plan.set_resident_budget_bytes(kVmBytes);
  EXPECT_NE(move_refused(plan).find("could not be split on host-b"), std::string::npos);
  plan.set_whole(true);
  EXPECT_NE(move_refused(plan).find("no budget"), std::string::npos);
  plan = plan_to("host-b");
  plan.add_sub_hosts("host-c");
  plan.add_sub_hosts("host-c");
  EXPECT_NE(move_refused(plan).find("twice"), std::string::npos);
  EXPECT_EQ(vm().to_be_split(), "");
  EXPECT_EQ(vm().split().state(), api::SPLIT);
  EXPECT_EQ(a_->unread() + b_->unread() + c_->unread(), 0U);
}

TEST_F(SplitMovesTest, AHostThatIsDrainedLendsNothingToWhatLeavesIt) {
  a_->info.set_memory_lend_bytes(256 * kMiB);
  a_->info.set_memory_free_bytes(16ULL << 30);
  c_->info.set_postcopy(false);  // so it goes to its sub host
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
