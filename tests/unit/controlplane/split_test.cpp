// The control plane and split VMs: which hosts are asked, in which order a flow begins, that it begins again without
// end, and that page stores go when nobody can need them, and not before. Fake agents on real gRPC streams play the
// hosts.
#include "tests/unit/controlplane/split_fixture.h"

namespace godwit::controlplane::testing {
namespace {

TEST_F(SplitTest, TheOperatorSeesWhereItLies) {
  split_over_b();
  const api::Split shown = vm().split();
  EXPECT_EQ(shown.state(), api::SPLIT);
  EXPECT_EQ(shown.budget_bytes(), kBudget);
  EXPECT_EQ(shown.status().resident_bytes(), kBudget);
  EXPECT_EQ(shown.subs(0).host(), "host-b");
  EXPECT_EQ(shown.subs(0).pages(), 100U);
  EXPECT_EQ(shown.warnings_size(), 0) << shown.ShortDebugString();
}

TEST_F(SplitTest, HostsAreChosenWhereNoneIsNamed) {
  connect_all();
  auto answer = split(kBudget, {});
  // One of them suffices; either lends as much.
  const Agent prepare = b_->expect(Agent::kPrepareStore);
  b_->refuse(prepare, dpapi::Error::NO_MEMORY, "no room after all");
  EXPECT_NE(answer.get().first.error_message().find("no room after all"), std::string::npos);
  store_ = prepare.prepare_store().store_id();
  expect_dropped(*b_);
  EXPECT_EQ(c_->unread(), 0U);
  EXPECT_EQ(a_->unread(), 0U) << "the main host is asked last";
  EXPECT_FALSE(vm().has_split());
}

TEST_F(SplitTest, WhatCannotBeIsRefusedAndNobodyHears) {
  connect_all();
  EXPECT_NE(refused(kVmBytes, {}).find("nothing to split"), std::string::npos);
  EXPECT_NE(refused(4096, {}).find("at least 16 MiB"), std::string::npos);
  EXPECT_NE(refused(kBudget, {"host-a"}).find("its main host"), std::string::npos);
  EXPECT_NE(refused(kBudget, {"host-z"}).find("no host \"host-z\""), std::string::npos);
  EXPECT_NE(refused(kBudget, {"host-b", "host-b"}).find("twice"), std::string::npos);
  EXPECT_EQ(a_->unread() + b_->unread() + c_->unread(), 0U);
}

TEST_F(SplitTest, AFlowThatDiesBeginsAgainWithoutEndAndWithANewSecret) {
  split_over_b();
  std::set<std::string> secrets{first_secret_};
  for (int i = 0; i < 2; ++i) {
    main_reports(false);
    const api::Split lost = wait_for([](const auto& shown) { return shown.subs(0).state() == api::PAGE_STORE_LOST; });
    ASSERT_EQ(lost.warnings_size(), 1);
    EXPECT_NE(lost.warnings(0).find("the flow died"), std::string::npos) << lost.warnings(0);
    EXPECT_TRUE(secrets.insert(expect_flow(*b_, false)).second) << "a secret came twice";
    wait_for([](const auto& shown) { return shown.subs(0).state() == api::PAGE_STORE_CONNECTED; });
  }
}

TEST_F(SplitTest, ASubHostThatLostItsPagesIsNeverBegunAnew) {
  split_over_b();
  b_->set_stores({});
  b_->report();
  const Agent prepare = b_->expect(Agent::kPrepareStore);
  EXPECT_FALSE(prepare.prepare_store().create());
  b_->refuse(prepare, dpapi::Error::NO_SUCH_STORE, "it has lost them");
  const auto shown = wait_for([](const auto& s) {
    return s.warnings_size() == 1 && s.warnings(0).find("it has lost them") != std::string::npos;
  });
  EXPECT_NE(shown.warnings(0).find("100 pages"), std::string::npos) << shown.warnings(0);
  const Agent again = b_->expect(Agent::kPrepareStore);
  EXPECT_FALSE(again.prepare_store().create());
}

TEST_F(SplitTest, ARestartOfTheControlPlaneForgetsNothing) {
  split_over_b();
  restart_all();
  EXPECT_EQ(wait_for([](const auto& s) { return s.subs(0).state() == api::PAGE_STORE_CONNECTED; }).state(), api::SPLIT);
  main_reports(false);
  EXPECT_NE(expect_flow(*b_, false), first_secret_);
}

TEST_F(SplitTest, AMainHostWhoseDataPlaneForgotIsToldAgain) {
  split_over_b();
  api::RunningVm forgot = main_part(false);
  forgot.clear_split();
  a_->set_vms({forgot});
  a_->report();
  const Agent again = a_->expect(Agent::kSplitGuest);
  EXPECT_EQ(again.split_guest().budget_bytes(), kBudget);
  EXPECT_FALSE(again.split_guest().gather());
  ASSERT_EQ(again.split_guest().subs_size(), 1);
  EXPECT_EQ(again.split_guest().subs(0).store_id(), store_);
}

TEST_F(SplitTest, AVmThatMovesIsNotSplit) {
  connect_all();
  EXPECT_FALSE(drive_to(Stage::kPreparingSource, *a_, *b_).empty());
  EXPECT_NE(refused(kBudget, {"host-b"}).find("is in migration"), std::string::npos);
}

TEST_F(SplitTest, AStoppedVmFreesItsStoresAlsoAtAHostThatWasAway) {
  split_over_b();
  b_->disconnect();
  wait_for([](const auto& shown) { return shown.warnings_size() == 1; });
  stop_vm();
  EXPECT_FALSE(vm().has_split());
  server_.reset();
  a_->disconnect();
  c_->disconnect();
  start();
  b_->connect();
  expect_dropped(*b_);
}

TEST_F(SplitTest, AGuestThatEndsByItselfFreesItsStores) {
  split_over_b();
  api::FromAgent message;
  message.mutable_vm_ended()->set_uuid(uuid_.to_bytes());
  message.mutable_vm_ended()->set_ownership(2);
  a_->write(message);  // of another life
  a_->set_vms({});
  a_->report();
  wait_for([](const auto& shown) { return shown.warnings_size() > 0; });
  EXPECT_EQ(b_->unread(), 0U) << "that nobody tells of the guest does not mean that it is over";
  message.mutable_vm_ended()->set_ownership(1);
  a_->write(message);
  expect_dropped(*b_);
}

TEST_F(SplitTest, GatheringDropsTheStoresOnlyWhenAllIsBack) {
  split_over_b();
  api::GatherVmRequest request;
  request.set_vm("demo");
  auto gathered = call(&api::Operators::Stub::GatherVm, request);
  const Agent order = a_->expect(Agent::kSplitGuest);
  EXPECT_TRUE(order.split_guest().gather());
  EXPECT_EQ(order.split_guest().subs_size(), 1);
  EXPECT_TRUE(gathered.get().first.ok());
  main_reports(true, kBudget, true);
  a_->reply(order);
  wait_for([](const auto& shown) { return shown.state() == api::GATHERING && shown.status().gathering(); });
  EXPECT_EQ(b_->unread(), 0U);
  api::RunningVm vm_now;
  vm_now.set_uuid(uuid_.to_bytes());
  vm_now.set_name("demo");
  vm_now.set_ownership(1);
  vm_now.set_gathered(true);
  vm_now.mutable_split()->add_subs()->set_store_id(std::string(16, 'x'));  // of an earlier split
  a_->set_vms({vm_now});
  a_->report();
  const Agent again = a_->expect(Agent::kSplitGuest);
  EXPECT_TRUE(again.split_guest().gather());
  EXPECT_EQ(b_->unread(), 0U) << "what was gathered was something else";
  vm_now.mutable_split()->mutable_subs(0)->set_store_id(store_);
  a_->set_vms({vm_now});
  a_->report();
  a_->reply(again);
  EXPECT_EQ(a_->expect(Agent::kEndSplit).end_split().ownership(), 1U);
  runs_at(*a_, {});
  expect_dropped(*b_);
  EXPECT_FALSE(vm().has_split());
}

TEST_F(SplitTest, AStoreIsDroppedOnlyOnceTheMainHostDoesWithoutIt) {
  split_over_b();
  api::DrainHostRequest request;
  request.set_host("host-b");
  auto drained = call(&api::Operators::Stub::DrainHost, request);
  const Agent prepare = c_->expect(Agent::kPrepareStore);  // another is chosen
  const std::string second = prepare.prepare_store().store_id();
  EXPECT_GE(prepare.prepare_store().bytes_lent(), kVmBytes - kBudget) << "the first counts for nothing any more";
  c_->reply(prepare, at("10.0.0.2"));
  const Agent added = a_->expect(Agent::kSplitGuest);
  EXPECT_EQ(added.split_guest().subs_size(), 2);
  stores_[second] = 1;
  main_reports(true);
  a_->reply(added);
  const auto [status, response] = drained.get();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.parts_size(), 1);
  EXPECT_EQ(response.parts(0).refusal(), "");
  EXPECT_EQ(wait_for([](const auto& shown) { return shown.subs_size() == 2; }).subs(0).state(),
            api::PAGE_STORE_DRAINING);

  const Agent order = a_->expect(Agent::kSplitGuest);
  EXPECT_TRUE(order.split_guest().subs(0).drain());
  EXPECT_FALSE(order.split_guest().subs(1).drain());
  draining_ = {store_};
  main_reports(true);
  a_->reply(order);
  EXPECT_EQ(b_->unread(), 0U);
  drained_ = {store_};
  main_reports(true);
  const Agent without = a_->expect(Agent::kSplitGuest);
  ASSERT_EQ(without.split_guest().subs_size(), 1);
  EXPECT_EQ(without.split_guest().subs(0).store_id(), second);
  EXPECT_EQ(b_->unread(), 0U) << "the main host has not said yet that it does without";
  stores_.erase(store_);
  main_reports(true);
  a_->reply(without);
  expect_dropped(*b_);
  EXPECT_EQ(wait_for([](const auto& shown) { return shown.subs_size() == 1; }).subs(0).host(), "host-c");
}

TEST_F(SplitTest, WhatCannotBeDrainedIsRefused) {
  split_over_b();
  c_->disconnect();
  wait_for([](const auto&) { return true; });
  auto request = order(0, {});
  request.add_without("host-c");
  EXPECT_NE(call(&api::Operators::Stub::SplitVm, request).get().first.error_message().find("no sub host"),
            std::string::npos);
  request.set_without(0, "host-b");
  request.add_sub_hosts("host-b");
  EXPECT_NE(call(&api::Operators::Stub::SplitVm, request).get().first.error_message().find("is to hold nothing"),
            std::string::npos);
  EXPECT_EQ(wait_for([](const auto&) { return true; }).subs(0).state(), api::PAGE_STORE_CONNECTED);
  request = order(0, {});
  request.set_encryption(dpapi::ENCRYPTION_AES_256_GCM);
  EXPECT_NE(call(&api::Operators::Stub::SplitVm, request).get().first.error_message().find("another encryption"),
            std::string::npos);
}

TEST_F(SplitTest, GatheringNeedsRoom) {
  a_->info.set_memory_free_bytes(8 * kMiB);
  split_over_b();
  api::GatherVmRequest request;
  request.set_vm("demo");
  const auto status = call(&api::Operators::Stub::GatherVm, request).get().first;
  EXPECT_NE(status.error_message().find("not enough memory"), std::string::npos) << status.error_message();
  EXPECT_EQ(vm().split().state(), api::SPLIT);
}

}  // namespace
}  // namespace godwit::controlplane::testing
