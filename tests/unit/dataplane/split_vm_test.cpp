// Goal: a guest within a resident budget whose other pages are in a page store on another host, between two daemons
// over a veth pair: every byte that the guest sees is what it wrote last, whatever dies meanwhile, and its RAM file is
// never above the budget. Method: the test is both bridges and the QEMU; as the guest it reads and writes its memory,
// and waits in the fault like a vCPU.

#include "tests/unit/dataplane/split_vm.h"

#include <signal.h>

#include <cstring>
#include <filesystem>
#include <thread>

namespace godwit::tests {
namespace {

api::ToDataplane to_move() {
  api::ToDataplane request;
  request.mutable_prepare_migration()->set_migration_id(id_of('1'));
  request.mutable_prepare_migration()->set_vm_uuid(id_of('v'));
  request.mutable_prepare_migration()->set_ownership(1);
  request.mutable_prepare_migration()->set_role(api::ROLE_SOURCE);
  request.mutable_prepare_migration()->set_epoch_base(10);
  request.mutable_prepare_migration()->set_epoch_count(1000);
  return request;
}

api::ToDataplane main_part_to_move() {
  api::ToDataplane request = to_move();
  request.mutable_prepare_migration()->set_mode(api::HYBRID);
  request.mutable_prepare_migration()->set_keeps_stores(true);
  return request;
}

TEST_F(SplitVm, RunsWithinItsBudgetAndIsGathered) {
  if (!begin_split()) {
    return;
  }
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; }));
  for (std::uint64_t round = 1; round <= 3; ++round) {
    run_guest(round);
  }
  EXPECT_LE(resident_most_, kBudget);
  const api::SplitStatus now = status(0).splits(0);
  EXPECT_GT(now.refetched_pages(), kPages);
  EXPECT_GT(now.evicted_unsent_pages(), 0U) << "pages that came back and were only read are sent again";
  EXPECT_EQ(now.problem(), "");
  EXPECT_EQ(now.subs(0).pages_lost(), 0U);
  EXPECT_TRUE(now.subs(0).connected());
  const api::Status at_sub = status(1);
  ASSERT_EQ(at_sub.stores_size(), 1);
  EXPECT_TRUE(at_sub.stores(0).open() && at_sub.stores(0).connected());

  api::ToDataplane request = to_move();
  const auto refused = bridges_[0].ask(request);
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->error().code(), api::Error::BAD_REQUEST);
  EXPECT_NE(refused->error().text().find("is split"), std::string::npos) << refused->error().text();
  api::ToDataplane scan;
  scan.mutable_note_accesses()->set_vm_uuid(id_of('v'));
  scan.mutable_note_accesses()->set_ownership(1);
  scan.mutable_note_accesses()->set_source(api::ACCESS_WRITES);
  scan.mutable_note_accesses()->set_ends(true);
  const auto not_scanned = bridges_[0].ask(scan);
  ASSERT_TRUE(not_scanned);
  EXPECT_NE(not_scanned->error().text().find("is split"), std::string::npos) << not_scanned->error().text();

  split(true);
  api::Event event;
  ASSERT_TRUE(wait(0, api::Event::kGathered, &event));
  run_guest(4);
  EXPECT_EQ(status(0).splits_size(), 0);
  EXPECT_GT(ask(0, scan).note_accesses().pages(), 0U);
  request.mutable_drop_store()->set_store_id(kStore);
  ask(1, request);
  EXPECT_EQ(status(1).stores_size(), 0);
}

// Whoever is told to gather once more does that just when the last page has come: that it has must not be forgotten.
TEST_F(SplitVm, IsGatheredHoweverOftenItIsToldTo) {
  if (!begin_split()) {
    return;
  }
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; }));
  bool gathered = false;  // or just being so
  for (int tries = 0; tries < 20'000 && !gathered; ++tries) {
    const auto reply = bridges_[0].ask(split_request(true), {pipe_[0], pipe_[1]});
    ASSERT_TRUE(reply);
    gathered = reply->has_error();
  }
  EXPECT_TRUE(wait(0, api::Event::kGathered));
  run_guest(1);
}

// What scans found before the guest was attached anew, so that it can be split, counts for its first page that leaves.
TEST_F(SplitVm, WhatIsHotStaysHere) {
  constexpr std::uint64_t kHot = 2048;
  make_guest(0);
  if (IsSkipped()) {
    return;
  }
  fill(0);
  const std::uint64_t filled = here_of_first(kHot);
  attach_split(api::AttachGuest::FRESH);
  note_hot(kHot);
  note_hot(kHot);
  api::ToDataplane request;
  request.mutable_detach_guest()->set_vm_uuid(id_of('v'));
  request.mutable_detach_guest()->set_ownership(1);
  ask(0, request);
  attach_split(api::AttachGuest::CONTINUING);
  split();
  connect(true, 's');
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; }));
  EXPECT_GT(filled, kHot / 2);
  EXPECT_EQ(here_of_first(kHot), filled);
}

TEST_F(SplitVm, NoKillLosesAPage) {
  if (!begin_split()) {
    return;
  }
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; }));
  run_guest(1);
  restart(1);
  ASSERT_EQ(status(1).stores_size(), 1);
  EXPECT_FALSE(status(1).stores(0).open()) << "its files are there";
  connect(false, 't');
  run_guest(2);
  restart(0);
  EXPECT_GT(attach_split(api::AttachGuest::CONTINUING).pages_missing(), kPages / 4);
  split();
  connect(false, 'u');
  run_guest(3);
  EXPECT_LE(resident_most_, kBudget);
  EXPECT_EQ(status(0).splits(0).subs(0).pages_lost(), 0U);
  split(true);
  api::Event event;
  ASSERT_TRUE(wait(0, api::Event::kGathered, &event));
  run_guest(4);
}

TEST_F(SplitVm, WhoTouchesAPageOfAStoreThatIsAwayBlocksTheGuestUntilItIsBack) {
  if (!begin_split()) {
    return;
  }
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; }));
  hosts_.kill_daemon(1, SIGKILL);
  bridges_[1].disconnect();
  api::Event event;
  ASSERT_TRUE(wait(0, api::Event::kSubLost, &event));
  EXPECT_EQ(status(0).splits(0).pages_blocking(), 0U) << "nobody waits";
  std::thread guest([this] { run_guest(1); });
  EXPECT_TRUE(wait(0, api::Event::kGuestBlocked, &event));
  EXPECT_EQ(event.guest_blocked().pages(), 1U);
  const auto blocked = status(0).splits(0);
  EXPECT_EQ(blocked.pages_blocking(), 1U);
  EXPECT_EQ(blocked.subs(0).blocking_size(), 1);
  EXPECT_EQ(blocked.subs(0).lost_size(), 0);
  EXPECT_EQ(hosts_.start_daemon(1), "");
  EXPECT_TRUE(bridges_[1].connect(hosts_.socket(1)));
  connect(false, 't');
  guest.join();
  EXPECT_TRUE(wait(0, api::Event::kGuestBlocked, &event));
  EXPECT_EQ(event.guest_blocked().pages(), 0U);
  EXPECT_EQ(status(0).splits(0).pages_blocking(), 0U);
}

// From there on nothing leaves its memory; so it is brought down to the low watermark, and who touches more than there
// is room for waits.
TEST_F(SplitVm, TheBudgetHoldsWhileItsMainPartMoves) {
  if (!begin_split()) {
    return;
  }
  constexpr std::uint64_t kLow = kBudget - kBudget / 8;
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kLow; }));
  for (std::uint64_t page = 0; resident() < kLow + (64U << 12); ++page) {
    ASSERT_LT(page, kPages);
    EXPECT_EQ(guests_[0]->data()[page * 4096], expected_[page * 4096]);
  }
  ask(0, main_part_to_move());
  EXPECT_LE(resident(), kLow);
  std::thread guest([this] { run_guest(1); });
  EXPECT_TRUE(until([](const api::SplitStatus& now) {
    return now.resident_bytes() >= kBudget - kBudget / 128 && now.paging().faults_waiting() > 0;
  }));
  std::uint64_t held_most = 0;
  for (int looks = 0; looks < 2000; ++looks) {
    held_most = std::max(held_most, status(0).splits(0).resident_bytes());
  }
  EXPECT_LE(held_most, kBudget - kBudget / 128) << "nothing is left for QEMU's load";
  finish(0, kFirst, api::OUTCOME_ABORTED, 1);
  guest.join();
  EXPECT_LE(resident_most_, kBudget);
}

TEST_F(SplitVm, WhoTouchesWhatHasLeftDoesNotWaitUntilAllIsWithinTheBudget) {
  if (!begin_split_alone()) {
    return;
  }
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.pages_leaving() > 500; }));
  run_guest(1);
  EXPECT_GT(resident(), kBudget);
  EXPECT_TRUE(until([](const api::SplitStatus& now) { return now.recalled_pages() > 0; }));  // it is told now and then
  connect(true, 's');
  EXPECT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; }));
  resident_most_ = 0;
  run_guest(2);
  EXPECT_LE(resident_most_, kBudget);
}

TEST_F(SplitVm, ByRoundsAMoveBeginsAboveItsBudget) {
  if (!begin_split_alone()) {
    return;
  }
  ask(0, main_part_to_move());
  EXPECT_GT(resident(), kBudget);
  connect(true, 's');
  EXPECT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; })) << "pages leave";
  finish(0, kFirst, api::OUTCOME_ABORTED, 1);
  run_guest(1);
}

// A page that was asked of the source before the commit, as no store serves it yet, is its store's to give from then
// on.
TEST_F(SplitVm, WhoWaitsWhenAllElseHasComeWaitsForAStore) {
  if (!begin_split()) {
    return;
  }
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; }));
  make_guest(1);
  mode_ = api::HYBRID;
  auto arriving = attach_request(1, api::AttachGuest::ARRIVING, 1);
  arriving.mutable_attach_guest()->set_split(true);
  ask(1, arriving, guests_[1]->descriptors());
  current_ = kFirst.id;
  auto prepare = main_part_to_move();
  const auto source = ask(0, prepare).prepare_migration();
  prepare.mutable_prepare_migration()->set_role(api::ROLE_DESTINATION);
  prepare.mutable_prepare_migration()->set_bytes_total(kBytes);
  prepare.mutable_prepare_migration()->set_budget_bytes(kBudget);
  const auto destination = ask(1, prepare).prepare_migration();
  start(1, kFirst, source.endpoint());
  start(0, kFirst, destination.endpoint());
  ASSERT_TRUE(wait(0, api::Event::kReadyToSwitch));
  ASSERT_NO_FATAL_FAILURE(switch_over(kFirst));
  ASSERT_EQ(pages_missing_, 0U) << "of what the source has";
  finish(1, kFirst, api::OUTCOME_COMMITTED, 2);
  const std::uint64_t page = first_away();
  ASSERT_LT(page, kPages);
  std::thread guest(
      [this, page] { EXPECT_EQ(guests_[1]->data()[page * 4096], std::byte{}) << "given up: it has come"; });
  for (int looks = 0; looks < 2000; ++looks) {
    status(1);  // meanwhile it faults, most often
  }
  auto request = split_request();
  request.mutable_split_guest()->set_ownership(2);
  ask(1, request, {pipe_[0], pipe_[1]});
  EXPECT_TRUE(wait(1, api::Event::kGuestBlocked)) << "nobody knows that it waits";
  EXPECT_EQ(ask(1, hot_request(64, 2)).note_accesses().pages(), 64U) << "it is no migration's any more";
  hosts_.kill_daemon(1, SIGKILL);
  guests_[1]->give_up_waiting();
  guest.join();
}

TEST_F(SplitVm, WhereItsPagesAreIsFoundOutAgain) {
  if (!begin_split()) {
    return;
  }
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; }));
  run_guest(1);
  int removed = 0;
  for (const auto& file : std::filesystem::recursive_directory_iterator(hosts_.directory(0))) {
    removed += file.path().string().ends_with(".split-places") && std::filesystem::remove(file.path()) ? 1 : 0;
  }
  ASSERT_EQ(removed, 1);
  restart(0);
  EXPECT_GT(attach_split(api::AttachGuest::CONTINUING).pages_missing(), kPages / 4);
  EXPECT_EQ(split().subs(0).pages_held(), 0U);
  EXPECT_TRUE(until([](const api::SplitStatus& now) { return now.problem().find("found out") != std::string::npos; }));
  connect(false, 't');
  run_guest(2);
  EXPECT_EQ(status(0).splits(0).problem(), "");
  EXPECT_EQ(status(0).splits(0).subs(0).pages_lost(), 0U);
  restart(0);  // and the file is one to go by
  attach_split(api::AttachGuest::CONTINUING);
  EXPECT_GT(split().subs(0).pages_held(), 0U);
  connect(false, 'u');
  run_guest(3);
}

TEST_F(SplitVm, AStoreIsDrainedIntoAnotherAndLeftOut) {
  if (!begin_split()) {
    return;
  }
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.subs(0).pages_held() > kPages / 4; }));
  const std::uint64_t evicted = status(0).splits(0).evicted_pages();
  auto request = split_request();
  api::SubStore& second = *request.mutable_split_guest()->add_stores();
  second.set_store_id(kSecondStore);
  second.set_sub(1);
  ask(0, request, {pipe_[0], pipe_[1]});
  EXPECT_GE(status(0).splits(0).evicted_pages(), std::max<std::uint64_t>(evicted, 1)) << "counted anew";
  auto without = request;
  without.mutable_split_guest()->mutable_stores()->DeleteSubrange(0, 1);
  const auto refused = bridges_[0].ask(without, {pipe_[0], pipe_[1]});
  ASSERT_TRUE(refused);
  EXPECT_NE(refused->error().text().find("not drained"), std::string::npos) << refused->error().text();

  connect(true, 't', kSecondStore);
  request.mutable_split_guest()->mutable_stores(0)->set_drain(true);
  ask(0, request, {pipe_[0], pipe_[1]});
  run_guest(1);
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.subs(0).drained(); }));
  EXPECT_GT(status(0).splits(0).moved_pages(), 0U);
  EXPECT_EQ(ask(0, without, {pipe_[0], pipe_[1]}).split_guest().status().subs_size(), 1);
  api::ToDataplane drop;
  drop.mutable_drop_store()->set_store_id(kStore);
  ask(1, drop);
  run_guest(2);
  EXPECT_EQ(status(0).splits(0).subs(0).pages_lost(), 0U);
  EXPECT_EQ(status(0).splits(0).problem(), "");
}

TEST_F(SplitVm, AStoreThatIsGoneIsToldPageByPage) {
  if (!begin_split()) {
    return;
  }
  ASSERT_TRUE(until([](const api::SplitStatus& now) { return now.subs(0).pages_held() > kPages / 4; }));
  api::ToDataplane request;
  request.mutable_drop_store()->set_store_id(kStore);
  ask(1, request);
  request.mutable_prepare_store()->set_store_id(kStore);
  request.mutable_prepare_store()->set_vm_uuid(id_of('v'));
  request.mutable_prepare_store()->set_pages(kPages);
  request.mutable_prepare_store()->set_budget_bytes(kBytes);
  const auto reply = bridges_[1].ask(request);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->error().code(), api::Error::NO_SUCH_STORE) << reply->error().text();
  connect(true, 't');
  ASSERT_TRUE(wait(0, api::Event::kPagesLost));
  EXPECT_TRUE(until([](const api::SplitStatus& now) {
    return now.subs(0).pages_lost() > kPages / 4 && now.subs(0).pages_lost() <= now.pages_missing();
  }));
  const auto now = status(0).splits(0);
  ASSERT_GT(now.subs(0).lost_size(), 0);
  EXPECT_GT(now.subs(0).lost(0).count(), 0U);
  restart(0);
  attach_split(api::AttachGuest::CONTINUING);
  split();
  EXPECT_TRUE(until([&](const api::SplitStatus& later) {
    return later.subs(0).pages_lost() == now.subs(0).pages_lost();
  })) << "what is lost is forgotten";
}

}  // namespace
}  // namespace godwit::tests
