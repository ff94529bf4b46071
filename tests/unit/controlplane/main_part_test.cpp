// The control plane and the main part of a split VM, which moves while its page stores stay: that they are the
// destination's with the commit and not before, that nothing else is begun with them meanwhile, and that a VM which is
// split only to move is whole again if it does not. Fake agents on real gRPC streams play the hosts.
#include "tests/unit/controlplane/split_moves_fixture.h"

namespace godwit::controlplane::testing {
namespace {

class MainPartTest : public SplitMovesTest {
 protected:
  static api::Plan split_plan(const std::string& destination, const std::vector<std::string>& subs = {"host-b"}) {
    api::Plan plan = plan_to(destination);
    plan.set_resident_budget_bytes(kBudget);
    for (const auto& sub : subs) {
      plan.add_sub_hosts(sub);
    }
    return plan;
  }
  std::string begun(const api::Plan& plan) {
    const auto [status, id] = move(plan);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return id;
  }
  /// What a side reports while the migration has the VM.
  void reports_in(FakeAgent& agent, api::RunningVm vm, const std::string& id, dpapi::Role role) {
    vm.set_migration_id(id);
    vm.set_role(role);
    agent.set_vms({vm});
    agent.report();
  }
  api::RunningVm plain() const {
    api::RunningVm vm;
    vm.set_uuid(uuid_.to_bytes());
    vm.set_name("demo");
    vm.set_ownership(1);
    vm.set_run_state("running");
    return vm;
  }
  /// Both ends are prepared; what the destination is told of the split.
  api::SplitGuest prepare(const std::string& id) {
    const Agent source = a_->expect(Agent::kPrepareSource);
    EXPECT_EQ(source.prepare_source().migration_id(), id);
    EXPECT_TRUE(source.prepare_source().keeps_stores());
    EXPECT_NE(source.prepare_source().mode(), dpapi::PRECOPY);
    reports_in(*a_, main_part(true), id, dpapi::ROLE_SOURCE);
    a_->reply(source, source_prepared());
    const Agent there = c_->expect(Agent::kPrepareDestination);
    EXPECT_TRUE(there.prepare_destination().has_split());
    EXPECT_EQ(there.prepare_destination().mode(), source.prepare_source().mode());
    reports_in(*c_, plain(), id, dpapi::ROLE_DESTINATION);
    c_->reply(there, destination_prepared());
    return there.prepare_destination().split();
  }
  void transfer(const std::string& id) {
    c_->reply(c_->expect(Agent::kStartTransfer));
    a_->reply(a_->expect(Agent::kStartTransfer));
    watch_until(id, [](const auto& m) { return m.note() == "transferring"; });
  }
  void switch_over(const std::string& id) {
    a_->event(id, Event::READY_TO_SWITCH);
    a_->reply(a_->expect(Agent::kSwitch));
    Event loaded;
    loaded.set_pages_missing(10);
    c_->event(id, Event::LOADED, loaded);
  }
  /// The destination, which runs the VM from here on, knows of the split what its bridge was told.
  void arrived(const std::string& id) {
    main_ = c_.get();
    ownership_ = 2;
    api::RunningVm vm = main_part(false);
    vm.mutable_split()->set_pages_total(0);
    reports_in(*c_, vm, id, dpapi::ROLE_DESTINATION);
  }
  void expect_committed(const std::string& id) {
    const Agent resume = c_->expect(Agent::kOutcome);
    EXPECT_EQ(resume.outcome().state(), api::PULLING);
    EXPECT_EQ(resume.outcome().ownership(), 2U);
    const Agent retire = a_->expect(Agent::kOutcome);
    EXPECT_EQ(retire.outcome().state(), api::PULLING);
    EXPECT_EQ(c_->unread(), 0U) << "it has not confirmed that it is its";
    arrived(id);
    c_->event(id, Event::RESUMED);
    c_->reply(resume);
    reports_in(*a_, plain(), id, dpapi::ROLE_SOURCE);
    a_->event(id, Event::RETIRED);
    a_->reply(retire);
  }
  /// The new main host is told, and agrees.
  api::SplitGuest expect_order(std::uint64_t budget = kBudget) {
    const Agent order = main_->expect(Agent::kSplitGuest);
    reports_in(*main_, main_part(false, budget, order.split_guest().gather()), vm().migration_id(),
               dpapi::ROLE_DESTINATION);
    main_->reply(order);
    return order.split_guest();
  }
  void pulled(const std::string& id) {
    api::RunningVm vm = main_part(true);
    vm.mutable_paging()->set_complete(true);
    reports_in(*c_, vm, id, dpapi::ROLE_DESTINATION);
    for (FakeAgent* side : {c_.get(), a_.get()}) {
      const Agent outcome = side->expect(Agent::kOutcome);
      EXPECT_EQ(outcome.outcome().state(), api::COMMITTED);
      if (side == a_.get()) {
        a_->set_vms({});
        a_->report();
      } else {
        main_reports(true);
      }
      side->reply(outcome);
    }
    EXPECT_EQ(watch_to_end(id).state(), api::COMMITTED);
  }
  /// Up to the moment when it is split over host-b, all of it is on host-a, and there is no flow yet.
  std::string begin_splitting(const api::Plan& plan) {
    connect_all();
    std::string id = begun(plan);
    const Agent prepare = b_->expect(Agent::kPrepareStore);
    store_ = prepare.prepare_store().store_id();
    stores_[store_] = 0;
    EXPECT_EQ(prepare.prepare_store().main_host(), "host-a");
    b_->reply(prepare, at("10.0.0.2"));
    const Agent order = a_->expect(Agent::kSplitGuest);
    EXPECT_EQ(order.split_guest().budget_bytes(), kBudget);
    resident_ = kVmBytes;
    main_reports(false);
    a_->reply(order);
    return id;
  }
  /// Up to the moment when no host has heard of the migration, and the VM is split over host-b, above its budget.
  std::string begin_split_first(api::Plan plan) {
    plan.set_mode(dpapi::POSTCOPY);  // there are no rounds in which it could shrink
    std::string id = begin_splitting(plan);
    expect_flow(*b_, true);
    watch_until(id, [](const auto& m) { return m.note().find("goes to its sub hosts first") != std::string::npos; });
    EXPECT_EQ(a_->unread() + c_->unread(), 0U);
    return id;
  }
  /// Its main part, to host-c, and no further than TRANSFERRING.
  std::string on_its_way() {
    split_over_b();
    std::string id = begun(plan_to("host-c"));
    prepare(id);
    transfer(id);
    return id;
  }
  void expect_gathered_at_source() {
    const Agent order = a_->expect(Agent::kSplitGuest);
    EXPECT_TRUE(order.split_guest().gather());
    main_reports(true, kBudget, true);
    a_->reply(order);
    gathered();
    expect_dropped(*b_);
    until([this] { return !vm().has_split(); });
    EXPECT_EQ(vm().to_be_split(), "");
  }
};

TEST_F(MainPartTest, ItMovesAndItsStoresStay) {
  c_->info.set_memory_free_bytes(kBudget);
  split_over_b();
  const std::string id = begun(plan_to("host-c"));
  const api::SplitGuest there = prepare(id);
  EXPECT_EQ(there.budget_bytes(), kBudget);
  EXPECT_FALSE(there.gather());
  ASSERT_EQ(there.subs_size(), 1);
  EXPECT_EQ(there.subs(0).store_id(), store_);
  transfer(id);
  EXPECT_EQ(migration(id).plan().mode(), dpapi::HYBRID);
  EXPECT_TRUE(migration(id).plan().keeps_stores());
  switch_over(id);
  expect_committed(id);
  const api::SplitGuest order = expect_order();
  EXPECT_EQ(order.ownership(), 2U);
  EXPECT_FALSE(order.gather());
  EXPECT_NE(expect_flow(*b_, false), first_secret_);
  const api::Vm now = vm();
  EXPECT_EQ(now.host(), "host-c");
  EXPECT_EQ(now.depends_on(), "host-a");
  EXPECT_EQ(now.split().state(), api::SPLIT);
  pulled(id);
  EXPECT_EQ(vm().depends_on(), "");
  EXPECT_EQ(a_->unread() + b_->unread() + c_->unread(), 0U) << "nobody is told anything of it any more";
}

TEST_F(MainPartTest, ItsBudgetIsWhatTheDestinationNeedsRoomFor) {
  c_->info.set_memory_free_bytes(kBudget - 4096);
  split_over_b();
  EXPECT_NE(move_refused(plan_to("host-c")).find("not enough memory"), std::string::npos);
  api::Plan smaller = plan_to("host-c");
  smaller.set_resident_budget_bytes(1 * kMiB);
  EXPECT_NE(move_refused(smaller).find("budget"), std::string::npos);
  smaller.set_resident_budget_bytes(kBudget - 4 * kMiB);
  EXPECT_NE(move_refused(smaller).find("have no room for what"), std::string::npos);
  api::Plan named = plan_to("host-c");
  named.set_mode(dpapi::POSTCOPY);
  named.set_resident_budget_bytes(kBudget - 4096);
  named.add_sub_hosts("host-c");
  EXPECT_NE(move_refused(named).find("its sub hosts stay"), std::string::npos);
  api::Plan whole = plan_to("host-c");
  whole.set_whole(true);
  EXPECT_NE(move_refused(whole).find("not enough memory"), std::string::npos);
  EXPECT_EQ(a_->unread() + b_->unread() + c_->unread(), 0U);
}

TEST_F(MainPartTest, NothingIsBegunWithItsStoresOnTheWay) {
  const std::string id = on_its_way();
  EXPECT_NE(refused(2 * kBudget, {}).find("in migration"), std::string::npos);
  EXPECT_FALSE(gather().ok());
  EXPECT_EQ(vm().split().state(), api::SPLIT);
  // Its main host must not be told how it is to be split; but without a flow its guest would wait.
  reports_in(*a_, main_part(true, 2 * kBudget), id, dpapi::ROLE_SOURCE);
  sub_reports(*b_, store_, false);
  const Agent again = b_->expect(Agent::kPrepareStore);
  EXPECT_EQ(again.prepare_store().main_host(), "host-a");
  b_->reply(again, at("10.0.0.2"));
  const Agent flow = a_->expect(Agent::kPrepareSub);
  EXPECT_EQ(flow.prepare_sub().ownership(), 1U);
  EXPECT_EQ(a_->unread() + c_->unread(), 0U);
}

// The rounds go on until the stores are at rest, which takes for ever if none has room.
TEST_F(MainPartTest, WhoWatchesIsToldWhatItsStoresLack) {
  const std::string id = on_its_way();
  api::RunningVm full = main_part(true);
  full.mutable_split()->mutable_subs(0)->set_full(true);
  reports_in(*a_, full, id, dpapi::ROLE_SOURCE);
  watch_until(id, [](const auto& m) { return m.note().starts_with("host-b is full: add a sub host"); });
  reports_in(*a_, main_part(true), id, dpapi::ROLE_SOURCE);
  watch_until(id, [](const auto& m) { return m.note() == "transferring"; });
}

TEST_F(MainPartTest, AnAbortLeavesAllAsItWas) {
  const std::string id = on_its_way();
  cancel(id);
  const Agent back = a_->expect(Agent::kOutcome);
  EXPECT_EQ(back.outcome().state(), api::ABORTED);
  main_reports(true);
  a_->event(id, Event::BACK);
  a_->reply(back);
  const Agent forget = c_->expect(Agent::kOutcome);
  c_->set_vms({});
  c_->report();
  c_->reply(forget);
  EXPECT_EQ(watch_to_end(id).state(), api::ABORTED);
  EXPECT_EQ(vm().host(), "host-a");
  EXPECT_EQ(vm().split().state(), api::SPLIT);
  sub_reports(*b_, store_, false);
  expect_flow(*b_, false);  // of host-a, under the old ownership
  EXPECT_EQ(a_->unread() + b_->unread() + c_->unread(), 0U);
}

TEST_F(MainPartTest, ARestartBeforeTheCommitAbortsItAndTheSourceStaysTheMainHost) {
  const std::string id = on_its_way();
  main_reports(true);
  c_->set_vms({});
  restart_all();
  EXPECT_EQ(migration(id).state(), api::ABORTED);
  EXPECT_EQ(vm().host(), "host-a");
  EXPECT_EQ(vm().split().state(), api::SPLIT);
  sub_reports(*b_, store_, false);
  for (FakeAgent* side : {a_.get(), c_.get()}) {
    const Agent outcome = side->expect(Agent::kOutcome);
    EXPECT_EQ(outcome.outcome().state(), api::ABORTED);
    side->refuse(outcome, dpapi::Error::NO_SUCH_MIGRATION, "no such migration");
  }
  expect_flow(*b_, false);
}

TEST_F(MainPartTest, ARestartAfterTheCommitFindsTheDestinationAsTheMainHost) {
  const std::string id = on_its_way();
  switch_over(id);
  watch_until_state(id, api::PULLING);
  arrived(id);
  restart_all();
  for (FakeAgent* side : {a_.get(), c_.get()}) {
    const Agent outcome = side->expect(Agent::kOutcome);
    EXPECT_EQ(outcome.outcome().state(), api::PULLING);
    side->event(id, side == a_.get() ? Event::RETIRED : Event::RESUMED);
    side->reply(outcome);
  }
  EXPECT_EQ(expect_order().ownership(), 2U);
  expect_flow(*b_, false);
  EXPECT_EQ(vm().host(), "host-c");
  EXPECT_EQ(a_->unread(), 0U);
}

TEST_F(MainPartTest, WholeItIsGatheredAtTheDestination) {
  split_over_b();
  api::Plan plan = plan_to("host-c");
  plan.set_whole(true);
  const std::string id = begun(plan);
  EXPECT_TRUE(prepare(id).gather());
  transfer(id);
  EXPECT_EQ(vm().split().state(), api::SPLIT) << "not before it is there";
  switch_over(id);
  expect_committed(id);
  EXPECT_TRUE(expect_order().gather());
  EXPECT_EQ(vm().split().state(), api::GATHERING);
  reports_in(*c_, main_part(true, kBudget, true), id, dpapi::ROLE_DESTINATION);
  sub_reports(*b_, store_, true);
  b_->ignore(Agent::kPrepareStore);
  api::RunningVm all = main_part(false);
  all.set_gathered(true);
  reports_in(*c_, all, id, dpapi::ROLE_DESTINATION);
  expect_dropped(*b_);
  EXPECT_FALSE(vm().has_split());
}

TEST_F(MainPartTest, AHigherBudgetCountsFromTheCommitOn) {
  split_over_b();
  api::Plan plan = plan_to("host-c");
  plan.set_resident_budget_bytes(kBudget + 4 * kMiB);
  const std::string id = begun(plan);
  EXPECT_EQ(prepare(id).budget_bytes(), kBudget + 4 * kMiB);
  transfer(id);
  EXPECT_EQ(vm().split().budget_bytes(), kBudget);
  switch_over(id);
  expect_committed(id);
  EXPECT_EQ(expect_order(kBudget + 4 * kMiB).budget_bytes(), kBudget + 4 * kMiB);
}

TEST_F(MainPartTest, ALowerBudgetIsKeptAtTheSourceFirstAndNotIfItDoesNotMove) {
  split_over_b();
  api::SplitVmRequest more = order(kBudget, {"host-c"});
  auto added = call(&api::Operators::Stub::SplitVm, more);
  const Agent lends = c_->expect(Agent::kPrepareStore);
  stores_[lends.prepare_store().store_id()] = 1;
  c_->reply(lends, at("10.0.0.3"));
  const Agent with_both = a_->expect(Agent::kSplitGuest);
  main_reports(true);
  sub_reports(*c_, lends.prepare_store().store_id(), true);
  a_->reply(with_both);
  ASSERT_TRUE(added.get().first.ok());
  c_->ignore(Agent::kPrepareStore);
  FakeAgent d(config_.listen[0], "host-d");
  d.info.set_postcopy(true);
  d.connect();
  api::Plan plan = plan_to("host-d");
  plan.set_resident_budget_bytes(kBudget - 8 * kMiB);
  plan.set_mode(dpapi::POSTCOPY);
  const std::string id = begun(plan);
  const Agent less = a_->expect(Agent::kSplitGuest);
  EXPECT_EQ(less.split_guest().budget_bytes(), kBudget - 8 * kMiB);
  main_reports(true, kBudget - 8 * kMiB);
  a_->reply(less);
  watch_until(id, [](const auto& m) { return m.note().find("goes to its sub hosts first") != std::string::npos; });
  EXPECT_EQ(a_->unread() + d.unread(), 0U);
  cancel(id);
  const Agent as_before = a_->expect(Agent::kSplitGuest);
  EXPECT_EQ(as_before.split_guest().budget_bytes(), kBudget);
  main_reports(true);
  a_->reply(as_before);
  until([this] { return vm().split().budget_bytes() == kBudget; });
}

TEST_F(MainPartTest, AWholeVmIsSplitFirstAndThenItsMainPartMoves) {
  c_->info.set_memory_free_bytes(kBudget);
  const std::string id = begin_split_first(split_plan("host-c"));
  EXPECT_EQ(migration(id).state(), api::PREPARING);
  resident_ = kBudget;
  main_reports(false);
  watch_until(id, [](const auto& m) { return m.note() == "no flow to host-b yet"; });
  EXPECT_EQ(a_->unread() + c_->unread(), 0U);
  b_->ignore(Agent::kPrepareStore);
  main_reports(true);
  prepare(id);
  transfer(id);
  switch_over(id);
  expect_committed(id);
  EXPECT_EQ(expect_order().ownership(), 2U);
  pulled(id);
  EXPECT_EQ(vm().split().state(), api::SPLIT);
  until_not_to_be_split();
  EXPECT_EQ(a_->unread() + c_->unread(), 0U);
}

TEST_F(MainPartTest, ByRoundsAWholeVmGoesToAllOfItsHostsAtOnce) {
  c_->info.set_memory_free_bytes(kBudget);
  const std::string id = begin_splitting(split_plan("host-c"));
  watch_until(id, [](const auto& m) { return m.note() == "no flow to host-b yet"; });
  EXPECT_EQ(c_->unread(), 0U);
  expect_flow(*b_, true);
  EXPECT_EQ(resident_, kVmBytes);
  prepare(id);
  transfer(id);
  EXPECT_EQ(migration(id).plan().mode(), dpapi::HYBRID);
}

TEST_F(MainPartTest, CancelledBeforeItMovesAVmThatWasWholeIsGathered) {
  const std::string id = begin_split_first(split_plan("host-c"));
  EXPECT_FALSE(gather().ok()) << "it is in a migration";
  cancel(id);
  EXPECT_EQ(watch_to_end(id).state(), api::ABORTED);
  expect_gathered_at_source();
  EXPECT_EQ(c_->unread(), 0U) << "it never heard of it";
}

TEST_F(MainPartTest, AbortedOnTheWayAVmThatWasWholeIsGathered) {
  const std::string id = begin_split_first(split_plan("host-c"));
  resident_ = kBudget;
  main_reports(true);
  prepare(id);
  transfer(id);
  c_->event(id, Event::FAILED);
  const Agent back = a_->expect(Agent::kOutcome);
  main_reports(true);
  a_->event(id, Event::BACK);
  a_->reply(back);
  const Agent forget = c_->expect(Agent::kOutcome);
  c_->set_vms({});
  c_->report();
  c_->reply(forget);
  EXPECT_EQ(watch_to_end(id).state(), api::ABORTED);
  expect_gathered_at_source();
}

TEST_F(MainPartTest, ARestartWhileItIsSplitFirstAbortsItAndItIsGathered) {
  const std::string id = begin_split_first(split_plan("host-c"));
  restart_all();
  EXPECT_EQ(migration(id).state(), api::ABORTED);
  for (FakeAgent* side : {a_.get(), c_.get()}) {
    const Agent outcome = side->expect(Agent::kOutcome);
    side->refuse(outcome, dpapi::Error::NO_SUCH_MIGRATION, "no such migration");
  }
  expect_gathered_at_source();
}

TEST_F(MainPartTest, OneThatIsSplitByHandMeanwhileStaysSplit) {
  a_->info.set_memory_free_bytes(4 * kMiB);
  const std::string id = begin_split_first(split_plan("host-c"));
  resident_ = kVmBytes - 8 * kMiB;  // it cannot be gathered
  main_reports(true);
  until([this] { return vm().split().status().resident_bytes() == resident_; });
  cancel(id);
  until([this] { return vm().split().warnings_size() > 0; });
  EXPECT_NE(vm().split().warnings(0).find("not enough memory"), std::string::npos) << vm().split().warnings(0);
  auto changed = split(kBudget + 4 * kMiB, {});
  const Agent order = a_->expect(Agent::kSplitGuest);
  EXPECT_FALSE(order.split_guest().gather());
  main_reports(true, kBudget + 4 * kMiB);
  a_->reply(order);
  ASSERT_TRUE(changed.get().first.ok());
  until([this] { return vm().split().warnings_size() == 0; });
}

TEST_F(MainPartTest, ASubHostWithoutRoomEndsItBeforeItBegins) {
  connect_all();
  const std::string id = begun(split_plan("host-c"));
  const Agent prepare = b_->expect(Agent::kPrepareStore);
  store_ = prepare.prepare_store().store_id();
  b_->refuse(prepare, dpapi::Error::NO_MEMORY, "no room after all");
  const api::Migration ended = watch_to_end(id);
  EXPECT_EQ(ended.state(), api::ABORTED);
  EXPECT_NE(ended.reason().find("no room after all"), std::string::npos) << ended.reason();
  expect_dropped(*b_);
  until_not_to_be_split();
  EXPECT_FALSE(vm().has_split());
  EXPECT_EQ(a_->unread() + c_->unread(), 0U);
}

TEST_F(MainPartTest, WhatCannotBeSplitAtTheSourceIsRefusedAtTheBeginning) {
  connect_all();
  EXPECT_NE(move_refused(split_plan("host-c", {"host-c"})).find("cannot be its sub host"), std::string::npos);
  api::Plan nobody = split_plan("host-c", {"host-d"});
  EXPECT_NE(move_refused(nobody).find("it is split on host-a first"), std::string::npos);
  api::RunningVm by_hashes = plain();
  by_hashes.set_tracker(dpapi::TRACKER_HASHES);
  a_->set_vms({by_hashes});
  a_->report();
  until([this] { return vm().tracker() == dpapi::TRACKER_HASHES; });
  EXPECT_NE(move_refused(split_plan("host-c")).find("hashes"), std::string::npos);
  EXPECT_EQ(a_->unread() + b_->unread() + c_->unread(), 0U);
}

TEST_F(MainPartTest, TheDestinationIsNotChosenAsItsOwnSubHost) {
  c_->info.set_memory_lend_bytes(512 * kMiB);  // it would be the first choice
  connect_all();
  const std::string id = begun(split_plan("host-c", {}));
  const Agent prepare = b_->expect(Agent::kPrepareStore);
  EXPECT_EQ(c_->unread(), 0U);
  b_->refuse(prepare, dpapi::Error::NO_MEMORY, "enough seen");
  EXPECT_EQ(watch_to_end(id).state(), api::ABORTED);
}

TEST_F(MainPartTest, AHostThatIsDrainedKeepsTheStoresOfWhatLeavesIt) {
  b_->info.set_memory_free_bytes(8ULL << 30);  // more than host-c; but there it would move whole
  split_over_b();
  api::DrainHostRequest request;
  request.set_host("host-a");
  const auto response = call(&api::Operators::Stub::DrainHost, request).get().second;
  ASSERT_EQ(response.parts_size(), 1);
  EXPECT_EQ(response.parts(0).refusal(), "");
  EXPECT_EQ(prepare(response.parts(0).migration_id()).subs_size(), 1);
}

TEST_F(MainPartTest, AnImageThatIsMoreThanTheBudgetIsNotReused) {
  split_over_b();
  dpapi::Image image;
  image.mutable_id()->set_vm_uuid(uuid_.to_bytes());
  image.mutable_id()->set_image_id(image_id_);
  image.set_bytes_total(kVmBytes);
  image.set_bytes_resident(kBudget + 4096);
  c_->set_images({image});
  c_->report();
  until([this] {
    return call(&api::Operators::Stub::ListImages, api::ListImagesRequest()).get().second.images_size() == 1;
  });
  const std::string id = begun(plan_to("host-c"));
  a_->reply(a_->expect(Agent::kPrepareSource), source_prepared());
  EXPECT_FALSE(c_->expect(Agent::kPrepareDestination).prepare_destination().reuse());
  EXPECT_NE(migration(id).reuse_reason().find("more than the budget"), std::string::npos);
}

}  // namespace
}  // namespace godwit::controlplane::testing
