// A guest that runs at the destination while pages of it are still at the source: real QEMUs and the whole Vm, with a
// fake data plane. What is proven: the source's memory outlives its QEMU and every process of ours until the store says
// that nobody needs it; neither end forgets anything at a restart; a cut flow begins again under what the store sends.
#include <gtest/gtest.h>

#include "qemu-bridge/attach/inject.h"
#include "tests/unit/qemu-bridge/owned_qemu.h"
#include "tests/unit/qemu-bridge/switchover_fixture.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::MigrationEvent;
using Request = dataplane::v1::ToDataplane;

constexpr std::uint64_t kMissing = 77;

class PullTest : public Switchover {
 protected:
  void SetUp() override {
    Switchover::SetUp();
    mode_ = dataplane::v1::POSTCOPY;
    destination_.dataplane.lack(kMissing);
  }

  void load() {
    ASSERT_NO_FATAL_FAILURE(boot());
    ASSERT_NO_FATAL_FAILURE(prepare());
    ASSERT_NO_FATAL_FAILURE(switch_over());
    const auto loaded = destination_.wait_event(MigrationEvent::LOADED);
    ASSERT_TRUE(loaded);
    EXPECT_EQ(loaded->pages_missing(), kMissing);
    source_qemu_ = *identify(static_cast<pid_t>(source_.present()->running().pid()));
    beat_ = source_.last_beat(uuid_);
  }
  void begin_to_pull() {
    ASSERT_NO_FATAL_FAILURE(load());
    ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
    ASSERT_TRUE(tell(source_, controlplane::v1::PULLING));
    expect_pulling();
  }
  /// The guest runs at the destination, and at the source only its memory is left.
  void expect_pulling() {
    EXPECT_TRUE(destination_.wait_event(MigrationEvent::RESUMED));
    EXPECT_TRUE(source_.wait_event(MigrationEvent::RETIRED));
    EXPECT_TRUE(destination_.wait_beat_after(uuid_, destination_.last_beat(uuid_) + 2)) << "it does not go on";
    EXPECT_FALSE(is_alive(source_qemu_));
    EXPECT_TRUE(std::filesystem::exists(source_ram()));
    EXPECT_EQ(destination_.present()->running().ownership(), 6u);
    EXPECT_EQ(source_.present()->running().run_state(), "serving");
    EXPECT_EQ(source_.present()->running().role(), dataplane::v1::ROLE_SOURCE);
    for (TestHost* host : {&source_, &destination_}) {
      EXPECT_TRUE(host->present()->running().paging().connected()) << host->present()->running().ShortDebugString();
      EXPECT_EQ(host->journal.load()->records.at(0).migration->phase, MigrationPhase::kPulling);
      EXPECT_EQ(host->dataplane.count(Request::kFinishMigration), 0) << "before it is complete";
    }
  }
  /// The last page came: both are told so, and nothing special is left.
  void expect_complete() {
    for (TestHost* host : {&source_, &destination_}) {
      host->dataplane.complete(migration_);
      ASSERT_TRUE(host->tick_until([&] { return host->present()->running().paging().complete(); }));
    }
    ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
    ASSERT_TRUE(tell(source_, controlplane::v1::COMMITTED));
    EXPECT_TRUE(source_.wait_gone());
    EXPECT_TRUE(source_.journal.load()->records.empty());
    EXPECT_TRUE(std::filesystem::exists(source_ram())) << "the retained image is gone";
    EXPECT_TRUE(destination_.present()->migration_id().is_nil());
    EXPECT_FALSE(destination_.present()->running().has_paging());
    EXPECT_FALSE(destination_.journal.load()->records.at(0).migration);
    EXPECT_TRUE(destination_.wait_beat_after(uuid_, destination_.last_beat(uuid_) + 2));
    EXPECT_EQ(last_finish(destination_).outcome(), dataplane::v1::OUTCOME_COMMITTED);
    EXPECT_EQ(last_finish(source_).ownership(), 6u);
  }
  std::filesystem::path source_ram() { return ram_path(host_paths(source_.config, uuid_), uuid_, {"ram0", 1, {}}); }
  static dataplane::v1::FinishMigration last_finish(TestHost& host) {
    dataplane::v1::FinishMigration last;
    for (const auto& request : host.dataplane.requests()) {
      if (request.has_finish_migration()) {
        last = request.finish_migration();
      }
    }
    return last;
  }
  /// The bridge dies, and the next one takes over.
  void restart_bridge(TestHost& host) {
    host.drop_vm();
    host.clear_events();
    auto loaded = host.journal.load();
    ASSERT_EQ(loaded->records.size(), 1u);
    EXPECT_TRUE(loaded->problems.empty()) << loaded->problems.front();
    host.make_vm(loaded->records[0])->recover();
  }
  /// As the control plane does: asks both where, tells both.
  void resume() {
    std::vector<dataplane::v1::Endpoint> endpoints;
    controlplane::v1::PrepareResume prepare;
    prepare.set_migration_id(migration_.to_bytes());
    for (TestHost* host : {&destination_, &source_}) {
      auto prepared = host->run([&](Reply reply) { host->present()->prepare_resume(prepare, std::move(reply)); });
      ASSERT_TRUE(prepared) << text_of(prepared.error());
      EXPECT_FALSE(host->present()->running().paging().connected());
      endpoints.push_back(prepared->resume_prepared().endpoint());
    }
    controlplane::v1::ResumeTransfer transfer;
    transfer.set_migration_id(migration_.to_bytes());
    transfer.set_secret("another secret");
    for (TestHost* host : {&destination_, &source_}) {
      *transfer.mutable_peer() = endpoints[host == &destination_ ? 1 : 0];
      auto resumed = host->run([&](Reply reply) { host->present()->resume_transfer(transfer, std::move(reply)); });
      ASSERT_TRUE(resumed) << text_of(resumed.error());
      EXPECT_TRUE(host->present()->running().paging().connected());
      ASSERT_TRUE(host->dataplane.wait_for(Request::kResumeMigration));
      const auto requests = host->dataplane.requests();
      const auto sent = std::ranges::find_if(requests, [](const auto& r) { return r.has_resume_migration(); });
      ASSERT_NE(sent, requests.end());
      EXPECT_EQ(sent->resume_migration().secret(), "another secret");
    }
  }

  /// Why the destination does not prepare for this guest.
  std::string refused_arrival(VmRecord record) {
    record.migration = MigrationRecord{migration_, MigrationRole::kDestination, MigrationPhase::kPreparing, 0};
    controlplane::v1::PrepareDestination there;
    there.set_migration_id(migration_.to_bytes());
    there.set_bytes_total(128u << 20);
    there.set_mode(mode_);
    auto vm = destination_.make_vm(std::move(record));
    const auto arrived = destination_.run([&](Reply reply) { vm->prepare_destination(there, std::move(reply)); });
    return arrived ? "it does" : arrived.error().text();
  }

  ProcessId source_qemu_;
  int beat_ = 0;
};

TEST_F(PullTest, TheGuestRunsWhileItsPagesAreMissingAndTheSourceLastsUntilTheyAreThere) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  const auto attached = destination_.dataplane.last_attach();
  EXPECT_TRUE(attached.demand_paging());
  EXPECT_TRUE(attached.has_userfaultfd());
  EXPECT_FALSE(source_.dataplane.last_attach().demand_paging());
  for (TestHost* host : {&source_, &destination_}) {
    for (const auto& request : host->dataplane.requests()) {
      EXPECT_TRUE(!request.has_prepare_migration() || request.prepare_migration().mode() == dataplane::v1::POSTCOPY);
    }
    EXPECT_EQ(host->dataplane.count(Request::kCommitMigration), 1);
  }
  EXPECT_TRUE(tell(source_, controlplane::v1::PULLING)) << "whoever asks twice gets the same answer";
  EXPECT_TRUE(tell(destination_, controlplane::v1::PULLING));
  EXPECT_EQ(source_.count_events(MigrationEvent::RETIRED), 2);
  EXPECT_EQ(source_.dataplane.count(Request::kCommitMigration), 1);
  expect_complete();
}

TEST_F(PullTest, AFlowThatDiesBeforeTheWordIsAFailure) {
  ASSERT_NO_FATAL_FAILURE(load());
  source_.dataplane.cut(migration_, "the peer is silent");
  const auto failed = source_.wait_event(MigrationEvent::FAILED);
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->error().text(), "the peer is silent");
  destination_.dataplane.cut(migration_, "the peer is silent");
  EXPECT_TRUE(destination_.wait_event(MigrationEvent::FAILED));
  ASSERT_TRUE(tell(destination_, controlplane::v1::ABORTED));
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, beat_ + 2)) << "it does not go on";
}

TEST_F(PullTest, NothingMissingEndsAsPrecopyDoes) {
  destination_.dataplane.lack(0);
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(prepare());
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(tell(source_, controlplane::v1::COMMITTED));
  EXPECT_TRUE(source_.wait_gone());
  EXPECT_TRUE(destination_.wait_beat_after(uuid_, 0));
  for (TestHost* host : {&source_, &destination_}) {
    EXPECT_EQ(host->dataplane.count(Request::kCommitMigration), 0);
  }
}

TEST_F(PullTest, QemuAtTheSourceStaysUntilItsDataPlaneHasTheMemory) {
  ASSERT_NO_FATAL_FAILURE(load());
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  source_.dataplane.refuse_commit(true);
  const auto told = tell(source_, controlplane::v1::PULLING);
  ASSERT_FALSE(told);
  EXPECT_NE(told.error().text().find("the test refuses the commit"), std::string::npos) << told.error().text();
  ASSERT_TRUE(source_.tick_until([&] { return source_.dataplane.count(Request::kCommitMigration) >= 3; }));
  EXPECT_TRUE(is_alive(source_qemu_));
  EXPECT_EQ(source_.count_events(MigrationEvent::RETIRED), 0);
  EXPECT_EQ(source_.last_beat(uuid_), beat_) << "it ran";
  source_.dataplane.refuse_commit(false);
  ASSERT_TRUE(source_.tick_until([&] { return source_.count_events(MigrationEvent::RETIRED) > 0; }));
  expect_pulling();
  expect_complete();
}

TEST_F(PullTest, RestartedBridgesBeforeTheyHearOfTheCommit) {
  ASSERT_NO_FATAL_FAILURE(load());
  ASSERT_NO_FATAL_FAILURE(restart_bridge(destination_));
  ASSERT_NO_FATAL_FAILURE(restart_bridge(source_));
  ASSERT_TRUE(destination_.wait_asked());
  ASSERT_TRUE(source_.wait_asked());
  EXPECT_EQ(destination_.last_beat(uuid_), 0) << "it ran without the store's word";
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  ASSERT_TRUE(tell(source_, controlplane::v1::PULLING));
  expect_pulling();
  expect_complete();
}

TEST_F(PullTest, RestartedBridgesWhilePulling) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  ASSERT_NO_FATAL_FAILURE(restart_bridge(source_));
  ASSERT_NO_FATAL_FAILURE(restart_bridge(destination_));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::RETIRED)) << "what it may not have told";
  ASSERT_TRUE(destination_.tick_until([&] { return destination_.present()->running().paging().connected(); }));
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  expect_pulling();
  EXPECT_EQ(destination_.dataplane.count(Request::kAttachGuest), 1) << "its data plane has it, and its faults";
  expect_complete();
}

TEST_F(PullTest, WhoWasPausedWhileItPullsStaysPausedAcrossARestart) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  destination_.drop_vm();
  {
    const auto operators = QmpClient::connect(host_paths(destination_.config, uuid_).qmp_socket(), {});
    ASSERT_TRUE(operators);
    ASSERT_TRUE((*operators)->execute("stop"));
  }
  const int beat = destination_.last_beat(uuid_);
  ASSERT_NO_FATAL_FAILURE(restart_bridge(destination_));
  EXPECT_TRUE(tell(destination_, controlplane::v1::PULLING)) << "it has, and says so";
  EXPECT_TRUE(destination_.tick_until([&] { return destination_.present()->running().run_state() == "paused"; }));
  EXPECT_EQ(destination_.last_beat(uuid_), beat);
}

// `cont` had no answer, and its bridge died.
TEST_F(PullTest, WhoMayNotHaveBeenContinuedIsContinuedByTheNextBridge) {
  ASSERT_NO_FATAL_FAILURE(load());
  destination_.drop_vm();
  auto record = destination_.journal.load()->records.at(0);
  record.migration->phase = MigrationPhase::kPulling;
  record.migration->ownership_after = 6;
  ASSERT_TRUE(destination_.journal.save(record));
  ASSERT_NO_FATAL_FAILURE(restart_bridge(destination_));
  ASSERT_TRUE(tell(source_, controlplane::v1::PULLING));
  expect_pulling();
}

TEST_F(PullTest, ARestartedSourceBridgeBetweenTheWordAndTheDataPlanesAnswer) {
  ASSERT_NO_FATAL_FAILURE(load());
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  source_.dataplane.refuse_commit(true);
  ASSERT_FALSE(tell(source_, controlplane::v1::PULLING));
  source_.dataplane.refuse_commit(false);
  ASSERT_NO_FATAL_FAILURE(restart_bridge(source_));
  ASSERT_TRUE(source_.tick_until([&] { return source_.count_events(MigrationEvent::RETIRED) > 0; }))
      << "the journal has the word: it needs nobody's again";
  expect_pulling();
  expect_complete();
}

TEST_F(PullTest, ARestartedDataPlaneAtTheSourceBeforeItHearsOfTheCommit) {
  ASSERT_NO_FATAL_FAILURE(load());
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  source_.dataplane.restart();
  ASSERT_TRUE(source_.dataplane.wait_for(Request::kAttachGuest, 2));
  ASSERT_FALSE(tell(source_, controlplane::v1::PULLING));
  EXPECT_TRUE(is_alive(source_qemu_)) << "nobody else has its memory";
  EXPECT_FALSE(source_.present()->running().paging().connected());
  ASSERT_NO_FATAL_FAILURE(resume());
  EXPECT_FALSE(is_alive(source_qemu_));
  expect_pulling();
  expect_complete();
}

TEST_F(PullTest, RestartedDataPlanesWhilePulling) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  for (TestHost* host : {&source_, &destination_}) {
    host->dataplane.restart();
    ASSERT_TRUE(host->tick_until([&] { return !host->present()->running().paging().connected(); }));
    EXPECT_FALSE(host->present()->running().paging().reason().empty());
  }
  ASSERT_TRUE(destination_.dataplane.wait_for(Request::kAttachGuest, 2));
  EXPECT_EQ(destination_.dataplane.last_attach().kind(), dataplane::v1::AttachGuest::CONTINUING);
  EXPECT_TRUE(destination_.dataplane.last_attach().demand_paging());
  EXPECT_EQ(destination_.dataplane.last_attach().paging_epoch(), 4711u);
  EXPECT_EQ(source_.dataplane.count(Request::kAttachGuest), 1) << "it has no guest to attach";
  ASSERT_NO_FATAL_FAILURE(resume());
  expect_pulling();
  expect_complete();
}

TEST_F(PullTest, BothDaemonsRestartedWhilePulling) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  for (TestHost* host : {&source_, &destination_}) {
    host->drop_vm();
    host->dataplane.restart();
    ASSERT_TRUE(host->wait_dataplane());
    ASSERT_NO_FATAL_FAILURE(restart_bridge(*host));
    ASSERT_TRUE(host->tick_until(
        [&] { return host->present()->running().paging().reason() == "the data plane of this host was restarted"; }));
  }
  ASSERT_TRUE(destination_.dataplane.wait_for(Request::kAttachGuest, 2));
  EXPECT_TRUE(destination_.dataplane.last_attach().demand_paging());
  ASSERT_NO_FATAL_FAILURE(resume());
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  expect_pulling();
  expect_complete();
}

TEST_F(PullTest, ALargeVmHasSeveralUserfaultfdsAndKeepsThem) {
  vcpus_ = 9;
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  const auto first = destination_.dataplane.last_attach();
  ASSERT_EQ(first.fault_ranges_size(), 2);
  EXPECT_EQ(first.fault_ranges(1).first_page(), 16384u);
  EXPECT_EQ(first.fault_ranges(1).pages(), 16384u);
  const auto descriptors = destination_.journal.load()->records.at(0).fault_descriptors;
  ASSERT_EQ(descriptors.size(), 2u);
  const auto in_qemu = find_userfaultfds(static_cast<pid_t>(destination_.present()->running().pid()));
  ASSERT_TRUE(in_qemu);
  for (const auto& descriptor : descriptors) {
    EXPECT_EQ(std::ranges::count(*in_qemu, descriptor.in_qemu), 1);
  }
  destination_.dataplane.restart();
  ASSERT_TRUE(destination_.dataplane.wait_for(Request::kAttachGuest, 2));
  EXPECT_EQ(destination_.dataplane.last_attach().fault_ranges_size(), 2);
  EXPECT_EQ(destination_.journal.load()->records.at(0).fault_descriptors, descriptors) << "others were injected";
  EXPECT_EQ(source_.dataplane.last_attach().fault_ranges_size(), 0) << "where nothing is paged one does";
}

TEST_F(PullTest, MemoryWithoutAFileIsNotServed) {
  const auto socket = files_.path() / "memfd.sock";
  Launch launch;
  launch.argv = {"/usr/bin/qemu-system-x86_64",
                 "-nodefaults",
                 "-display",
                 "none",
                 "-S",
                 "-uuid",
                 uuid_.text(),
                 "-machine",
                 "pc,accel=tcg,memory-backend=ram0",
                 "-m",
                 "64M",
                 "-object",
                 "memory-backend-memfd,id=ram0,size=64M,share=on",
                 "-qmp",
                 "unix:" + socket.string() + ",server=on,wait=off"};
  launch.log_file = files_.path() / "log";
  const auto qemu = bridge::launch(launch);
  ASSERT_TRUE(qemu);
  const OwnedQemu owned(*qemu);
  while (is_alive(*qemu) && !QmpClient::connect(socket, {})) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // tidy-allow(sleep): until QEMU listens
  }
  auto record = make_record();
  record.definition.regions = {{"ram0", 64u << 20, config::Backing::kTmpfs}};
  record.qmp_path = socket;
  auto vm = source_.make_vm(record);
  const auto attached = source_.run([&](Reply reply) { vm->attach(std::move(reply)); });
  ASSERT_TRUE(attached) << text_of(attached.error());
  controlplane::v1::PrepareSource command;
  command.set_migration_id(migration_.to_bytes());
  command.set_vm_uuid(uuid_.to_bytes());
  command.set_ownership(5);
  command.set_mode(dataplane::v1::HYBRID);
  const auto prepared = source_.run([&](Reply reply) { vm->prepare_source(command, std::move(reply)); });
  ASSERT_FALSE(prepared);
  EXPECT_NE(prepared.error().text().find("'ram0' has no file of its own"), std::string::npos)
      << prepared.error().text();
  EXPECT_TRUE(vm->migration_id().is_nil());
}

TEST_F(PullTest, ACutFlowIsToldAndBeginsAgain) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  destination_.dataplane.cut(migration_, "the peer is silent");
  ASSERT_TRUE(destination_.tick_until([&] { return !destination_.present()->running().paging().connected(); }));
  EXPECT_EQ(destination_.present()->running().paging().reason(), "the peer is silent");
  EXPECT_EQ(destination_.count_events(MigrationEvent::FAILED), 0);
  ASSERT_NO_FATAL_FAILURE(resume());
  expect_pulling();
  expect_complete();
}

TEST_F(PullTest, ACommitThatDidNotReachTheDestinationsDataPlaneIsToldBeforeItsFlowBeginsAgain) {
  ASSERT_NO_FATAL_FAILURE(load());
  destination_.dataplane.refuse_commit(true);
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  ASSERT_TRUE(tell(source_, controlplane::v1::PULLING));
  ASSERT_TRUE(destination_.wait_beat_after(uuid_, 2)) << "the store's word counts";
  EXPECT_FALSE(destination_.present()->running().paging().connected());
  destination_.dataplane.refuse_commit(false);
  ASSERT_NO_FATAL_FAILURE(resume());
  expect_pulling();
  expect_complete();
}

TEST_F(PullTest, WithoutTheLastPageTheDataPlaneLetsNothingGo) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  const auto told = tell(destination_, controlplane::v1::COMMITTED);
  ASSERT_FALSE(told);
  EXPECT_NE(told.error().text().find("pages are missing"), std::string::npos) << told.error().text();
  EXPECT_TRUE(destination_.present()->running().has_paging());
}

TEST_F(PullTest, TheEndOfTheGuestIsToldAndTheSourceLetsGo) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  ASSERT_EQ(::kill(destination_.present()->running().pid(), SIGKILL), 0);
  const auto ended = destination_.wait_event(MigrationEvent::ENDED);
  ASSERT_TRUE(ended);
  EXPECT_TRUE(destination_.wait_gone());
  EXPECT_EQ(last_finish(destination_).outcome(), dataplane::v1::OUTCOME_ABANDONED);
  ASSERT_TRUE(tell(source_, controlplane::v1::INCOMPLETE));
  EXPECT_TRUE(source_.wait_gone());
  EXPECT_EQ(last_finish(source_).outcome(), dataplane::v1::OUTCOME_ABANDONED);
  EXPECT_FALSE(std::filesystem::exists(source_ram()));
}

TEST_F(PullTest, AStoppedGuestLeavesNothing) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  auto refused = source_.run([&](Reply reply) { source_.present()->stop(5, std::move(reply)); });
  EXPECT_FALSE(refused) << "the guest is not there";
  const auto qemu = *identify(static_cast<pid_t>(destination_.present()->running().pid()));
  auto stopped = destination_.run([&](Reply reply) { destination_.present()->stop(6, std::move(reply)); });
  ASSERT_TRUE(stopped) << text_of(stopped.error());
  EXPECT_FALSE(is_alive(qemu));
  EXPECT_EQ(last_finish(destination_).outcome(), dataplane::v1::OUTCOME_ABANDONED);
  EXPECT_TRUE(std::filesystem::exists(source_ram())) << "only the store's word lets it go";
  ASSERT_TRUE(tell(source_, controlplane::v1::INCOMPLETE));
  EXPECT_TRUE(source_.wait_gone());
}

TEST_F(PullTest, AQemuThatDiesInTheSwitchLeavesItsMemoryUntilTheStoreHasSpoken) {
  ASSERT_NO_FATAL_FAILURE(load());
  ASSERT_TRUE(end_process(source_qemu_, std::chrono::milliseconds(0)));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::FAILED));
  ASSERT_TRUE(source_.wait_asked());
  EXPECT_EQ(source_.dataplane.count(Request::kFinishMigration), 0) << "it may be COMMITTED";
  EXPECT_EQ(source_.dataplane.count(Request::kDetachGuest), 0);
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  ASSERT_TRUE(tell(source_, controlplane::v1::PULLING));
  expect_pulling();
  expect_complete();
}

TEST_F(PullTest, AQemuThatDiesInTheSwitchIsForgottenWhenItIsAborted) {
  ASSERT_NO_FATAL_FAILURE(load());
  ASSERT_TRUE(end_process(source_qemu_, std::chrono::milliseconds(0)));
  ASSERT_TRUE(source_.wait_asked());
  ASSERT_NO_FATAL_FAILURE(restart_bridge(source_));
  ASSERT_TRUE(source_.wait_asked());
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  EXPECT_TRUE(source_.wait_gone());
  EXPECT_EQ(last_finish(source_).outcome(), dataplane::v1::OUTCOME_ABORTED);
}

TEST_F(PullTest, AHostThatCannotPageRefusesBeforeAnythingIsTouched) {
  destination_.dataplane.offer_postcopy(false);
  destination_.dataplane.restart();
  ASSERT_TRUE(destination_.dataplane.wait_for(Request::kHello, 2));
  ASSERT_TRUE(destination_.wait_dataplane());
  const std::string why = refused_arrival(make_record());
  EXPECT_NE(why.find("the test offers none; or use mode precopy"), std::string::npos) << why;
  EXPECT_EQ(destination_.present()->running().pid(), -1) << "no QEMU was started";
}

TEST_F(PullTest, WhatHashesTrackIsPagedByAUserfaultfdAllTheSame) {
  auto record = make_record();
  record.tracker = dataplane::v1::TRACKER_HASHES;
  EXPECT_EQ(refused_arrival(record), "it does");
  const auto requests = destination_.dataplane.requests();
  const auto attach = std::ranges::find_if(requests, [](const auto& r) { return r.has_attach_guest(); });
  ASSERT_NE(attach, requests.end());
  EXPECT_EQ(attach->attach_guest().tracker(), dataplane::v1::TRACKER_HASHES);
  EXPECT_TRUE(attach->attach_guest().demand_paging());
  EXPECT_TRUE(attach->attach_guest().has_userfaultfd());
}

}  // namespace
}  // namespace godwit::bridge
