// Both bridges of a split VM whose main part moves: real QEMUs and the whole Vm, with a fake data plane. What is
// proven: the split is the destination's from the commit on and not before, the source's until then and not after, and
// neither forgets it at a restart of whatever.
#include <gtest/gtest.h>

#include "tests/unit/qemu-bridge/switchover_fixture.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::MigrationEvent;
using Request = dataplane::v1::ToDataplane;

constexpr std::uint64_t kBudget = 32 << 20;
constexpr std::uint64_t kMissing = 77;

class MainPartTest : public Switchover {
 protected:
  void SetUp() override {
    Switchover::SetUp();
    mode_ = dataplane::v1::HYBRID;
    destination_.dataplane.lack(kMissing);
  }

  controlplane::v1::SplitGuest order(std::uint64_t ownership) const { return split_order(ownership, kBudget, store_); }
  static AgentResult split(TestHost& host, const controlplane::v1::SplitGuest& command) {
    return host.run([&](Reply reply) { host.present()->split_guest(command, std::move(reply)); });
  }
  AgentResult prepare_sub(TestHost& host) {
    controlplane::v1::PrepareSub command;
    command.set_vm_uuid(uuid_.to_bytes());
    command.set_store_id(store_.to_bytes());
    return host.run([&](Reply reply) { host.present()->prepare_sub(command, std::move(reply)); });
  }
  void begin() {
    ASSERT_NO_FATAL_FAILURE(boot());
    ASSERT_TRUE(split(source_, order(5)));
    kept_ = order(6);
    ASSERT_NO_FATAL_FAILURE(prepare());
  }
  void load() {
    ASSERT_NO_FATAL_FAILURE(begin());
    ASSERT_NO_FATAL_FAILURE(switch_over());
    ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  }
  void begin_to_pull() {
    ASSERT_NO_FATAL_FAILURE(load());
    EXPECT_FALSE(destination_.present()->running().has_split());
    EXPECT_EQ(splits_told(destination_), 0);
    ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
    ASSERT_TRUE(tell(source_, controlplane::v1::PULLING));
    ASSERT_TRUE(destination_.wait_event(MigrationEvent::RESUMED));
    ASSERT_TRUE(source_.wait_event(MigrationEvent::RETIRED));
  }
  static int splits_told(TestHost& host) { return host.dataplane.count(Request::kSplitGuest); }
  static dataplane::v1::SplitGuest last_split(TestHost& host) {
    dataplane::v1::SplitGuest last;
    for (const auto& request : host.dataplane.requests()) {
      last = request.has_split_guest() ? request.split_guest() : last;
    }
    return last;
  }
  void expect_split_at_destination() {
    ASSERT_TRUE(destination_.dataplane.wait_for(Request::kSplitGuest));
    const auto told = last_split(destination_);
    EXPECT_EQ(told.ownership(), 6u);
    EXPECT_EQ(told.budget_bytes(), kBudget);
    ASSERT_EQ(told.stores_size(), 1);
    EXPECT_EQ(told.stores(0).store_id(), store_.to_bytes());
    EXPECT_EQ(told.stores(0).sub(), 3u);
    EXPECT_TRUE(destination_.present()->running().has_split());
    EXPECT_TRUE(std::filesystem::exists(pin(destination_)));
    EXPECT_TRUE(prepare_sub(destination_));
  }
  static VmRecord journaled(TestHost& host) { return host.journal.load()->records.at(0); }
  std::filesystem::path pin(TestHost& host) { return host.config.run_dir / "vms" / uuid_.text() / "pin"; }
  bool holds_pin(TestHost& host) {
    const auto fds = "/proc/" + std::to_string(journaled(host).process.pid) + "/fd";
    return std::ranges::any_of(std::filesystem::directory_iterator(fds), [&](const auto& fd) {
      std::error_code gone;
      return std::filesystem::read_symlink(fd.path(), gone) == pin(host);
    });
  }
  static void restart_bridge(TestHost& host) {
    host.drop_vm();
    host.clear_events();
    auto loaded = host.journal.load();
    ASSERT_EQ(loaded->records.size(), 1u);
    host.make_vm(loaded->records[0])->recover();
  }
  static dataplane::v1::PrepareMigration prepared_as(TestHost& host) {
    dataplane::v1::PrepareMigration last;
    for (const auto& request : host.dataplane.requests()) {
      last = request.has_prepare_migration() ? request.prepare_migration() : last;
    }
    return last;
  }

  const Id128 store_ = Id128::random();
};

TEST_F(MainPartTest, WithTheCommitItIsSplitAtTheDestinationAndNotAtTheSource) {
  ASSERT_NO_FATAL_FAILURE(begin());
  EXPECT_TRUE(prepared_as(source_).keeps_stores());
  EXPECT_TRUE(prepared_as(destination_).keeps_stores());
  const auto arriving = destination_.dataplane.last_attach();
  EXPECT_TRUE(arriving.split() && arriving.demand_paging());
  EXPECT_EQ(arriving.kind(), dataplane::v1::AttachGuest::ARRIVING);
  EXPECT_FALSE(split(source_, order(5))) << "on the way";
  EXPECT_FALSE(split(destination_, order(6))) << "not its yet";
  EXPECT_FALSE(prepare_sub(destination_));
  EXPECT_TRUE(prepare_sub(source_)) << "its guest waits for a store";
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  EXPECT_TRUE(source_.present()->running().has_split());
  EXPECT_FALSE(destination_.present()->running().has_split());
  EXPECT_EQ(splits_told(destination_), 0);
  EXPECT_TRUE(holds_pin(destination_)) << "a guest that runs may keep QEMU from answering";
  EXPECT_TRUE(journaled(destination_).pin_in_qemu);
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  ASSERT_TRUE(tell(source_, controlplane::v1::PULLING));
  expect_split_at_destination();
  EXPECT_FALSE(source_.present()->running().has_split());
  EXPECT_FALSE(journaled(source_).split);
  EXPECT_FALSE(std::filesystem::exists(pin(source_)));
  EXPECT_FALSE(prepare_sub(source_));
  const int told = splits_told(source_);
  for (TestHost* host : {&source_, &destination_}) {
    host->dataplane.complete(migration_);
    ASSERT_TRUE(host->tick_until([&] { return host->present()->running().paging().complete(); }));
  }
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(tell(source_, controlplane::v1::COMMITTED));
  EXPECT_TRUE(source_.wait_gone());
  EXPECT_EQ(splits_told(source_), told);
  EXPECT_TRUE(destination_.present()->running().has_split());
  EXPECT_TRUE(split(destination_, order(6)));
}

TEST_F(MainPartTest, WithNothingLeftAtTheSourceItIsTheSame) {
  destination_.dataplane.lack(0);
  ASSERT_NO_FATAL_FAILURE(load());
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(tell(source_, controlplane::v1::COMMITTED));
  EXPECT_TRUE(source_.wait_gone());
  EXPECT_FALSE(std::filesystem::exists(pin(source_)));
  expect_split_at_destination();
  ASSERT_TRUE(destination_.restart_dataplane());
  ASSERT_TRUE(destination_.dataplane.wait_for(Request::kAttachGuest, 2));
  EXPECT_TRUE(destination_.dataplane.last_attach().split());
  EXPECT_FALSE(destination_.dataplane.last_attach().demand_paging());
}

TEST_F(MainPartTest, AnAbortLeavesItSplitAtTheSource) {
  ASSERT_NO_FATAL_FAILURE(load());
  ASSERT_TRUE(tell(destination_, controlplane::v1::ABORTED));
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_TRUE(destination_.wait_gone());
  EXPECT_EQ(splits_told(destination_), 0);
  EXPECT_TRUE(source_.present()->running().has_split());
  ASSERT_TRUE(journaled(source_).split);
  EXPECT_EQ(journaled(source_).split->subs.at(0).store_id, store_);
  EXPECT_TRUE(std::filesystem::exists(pin(source_)));
  EXPECT_TRUE(split(source_, order(6))) << "under the ownership that came with the outcome";
  EXPECT_TRUE(prepare_sub(source_));
}

TEST_F(MainPartTest, ARestartedDestinationIsGivenGuestAndSplitAgainWhileItPulls) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  int told = splits_told(destination_);
  ASSERT_TRUE(destination_.restart_dataplane());
  ASSERT_TRUE(destination_.dataplane.wait_for(Request::kSplitGuest, told + 1));
  const auto attached = destination_.dataplane.last_attach();
  EXPECT_EQ(attached.kind(), dataplane::v1::AttachGuest::CONTINUING);
  EXPECT_TRUE(attached.split() && attached.demand_paging());
  EXPECT_EQ(attached.paging_epoch(), 4711u);
  told = splits_told(destination_);
  ASSERT_NO_FATAL_FAILURE(restart_bridge(destination_));
  ASSERT_TRUE(destination_.dataplane.wait_for(Request::kSplitGuest, told + 1));
  expect_split_at_destination();
}

// Its own thread may wait for a page, which comes only once a data plane has the guest again.
TEST_F(MainPartTest, WithBothDaemonsNewItIsGivenAgainThoughQemusMonitorDoesNotAnswer) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  destination_.drop_vm();
  const auto held = QmpClient::connect(host_paths(destination_.config, uuid_).qmp_socket(), {});
  ASSERT_TRUE(held);
  const int told = splits_told(destination_);
  ASSERT_TRUE(destination_.restart_dataplane());
  destination_.make_vm(journaled(destination_))->recover();
  ASSERT_TRUE(destination_.dataplane.wait_for(Request::kSplitGuest, told + 1));
  const auto attached = destination_.dataplane.last_attach();
  EXPECT_EQ(attached.kind(), dataplane::v1::AttachGuest::CONTINUING);
  EXPECT_TRUE(attached.split() && attached.demand_paging());
}

TEST_F(MainPartTest, ABridgeThatDiesBeforeTheWordKeepsTheSplitToItself) {
  ASSERT_NO_FATAL_FAILURE(load());
  ASSERT_NO_FATAL_FAILURE(restart_bridge(destination_));
  ASSERT_TRUE(destination_.wait_asked());
  EXPECT_EQ(splits_told(destination_), 0);
  EXPECT_FALSE(destination_.present()->running().has_split());
  ASSERT_TRUE(tell(destination_, controlplane::v1::PULLING));
  expect_split_at_destination();
}

TEST_F(MainPartTest, ASourceWhoseBridgeDiesOnTheWayIsSplitAsEver) {
  ASSERT_NO_FATAL_FAILURE(begin());
  ASSERT_NO_FATAL_FAILURE(restart_bridge(source_));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::FAILED));
  EXPECT_TRUE(source_.present()->running().has_split());
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_TRUE(split(source_, order(6)));
}

TEST_F(MainPartTest, ASourceWhoseDataPlaneDiesOnTheWayIsGivenItsSplitAgain) {
  ASSERT_NO_FATAL_FAILURE(begin());
  const int told = splits_told(source_);
  ASSERT_TRUE(source_.restart_dataplane());
  ASSERT_TRUE(source_.dataplane.wait_for(Request::kSplitGuest, told + 1)) << "faults on what stores have wait for it";
  EXPECT_TRUE(source_.dataplane.last_attach().split());
  EXPECT_FALSE(source_.dataplane.last_attach().demand_paging());
}

TEST_F(MainPartTest, TheEndOfAGuestThatPullsIsTold) {
  ASSERT_NO_FATAL_FAILURE(begin_to_pull());
  ::kill(static_cast<pid_t>(destination_.present()->running().pid()), SIGKILL);
  EXPECT_TRUE(destination_.wait_vm_ended());
}

TEST_F(MainPartTest, WhatDoesNotFitIsRefused) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const auto refused = [this](bool keeps) {
    controlplane::v1::PrepareSource command;
    command.set_migration_id(migration_.to_bytes());
    command.set_ownership(5);
    command.set_mode(mode_);
    command.set_keeps_stores(keeps);
    const auto result = source_.run([&](Reply reply) { source_.present()->prepare_source(command, std::move(reply)); });
    return result ? "it is not" : result.error().text();
  };
  EXPECT_NE(refused(true).find("not split here"), std::string::npos);
  ASSERT_TRUE(split(source_, order(5)));
  EXPECT_NE(refused(false).find("gather it first"), std::string::npos);
  auto gathers = order(5);
  gathers.set_gather(true);
  ASSERT_TRUE(split(source_, gathers));
  EXPECT_NE(refused(true).find("is gathered"), std::string::npos);
  controlplane::v1::PrepareDestination there;
  there.set_migration_id(migration_.to_bytes());
  there.set_bytes_total(128u << 20);
  *there.mutable_split() = order(6);
  auto record = make_record();
  record.migration = MigrationRecord{migration_, MigrationRole::kDestination, MigrationPhase::kPreparing, 0};
  auto vm = destination_.make_vm(std::move(record));
  const auto arrived = destination_.run([&](Reply reply) { vm->prepare_destination(there, std::move(reply)); });
  ASSERT_FALSE(arrived);
  EXPECT_NE(arrived.error().text().find("cannot be precopy"), std::string::npos);
}

}  // namespace
}  // namespace godwit::bridge
