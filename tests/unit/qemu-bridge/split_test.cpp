// The main host's bridge of a split VM: a real QEMU and the whole Vm, with a fake data plane. What is proven: the guest
// is attached so that it can be split, or refused by name; its pipe outlives both daemons; after any restart the data
// plane is told again; and its end is told.
#include <gtest/gtest.h>

#include "tests/unit/qemu-bridge/monitor_in_the_middle.h"
#include "tests/unit/qemu-bridge/switchover_fixture.h"

namespace godwit::bridge {
namespace {

using Request = dataplane::v1::ToDataplane;

constexpr std::uint64_t kBudget = 32 << 20;

class SplitTest : public Switchover {
 protected:
  controlplane::v1::SplitGuest order(bool gather = false) const {
    auto command = split_order(5, kBudget, store_);
    command.set_gather(gather);
    return command;
  }
  AgentResult split(const controlplane::v1::SplitGuest& command) {
    return source_.run([&](Reply reply) { source_.present()->split_guest(command, std::move(reply)); });
  }
  std::string refused() {
    const auto result = split(order());
    return result ? "it is not" : result.error().text();
  }
  dataplane::v1::SplitGuest last_split() {
    dataplane::v1::SplitGuest last;
    for (const auto& request : source_.dataplane.requests()) {
      last = request.has_split_guest() ? request.split_guest() : last;
    }
    return last;
  }
  VmRecord journaled() { return source_.journal.load()->records.at(0); }
  std::filesystem::path pin() { return source_.config.run_dir / "vms" / uuid_.text() / "pin"; }
  bool qemu_holds_pipe() {
    const auto pid = source_.present()->running().pid();
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd", error)) {
      if (std::filesystem::read_symlink(entry.path(), error) == pin()) {
        return true;
      }
    }
    return false;
  }
  void restart_bridge() {
    source_.drop_vm();
    auto loaded = source_.journal.load();
    ASSERT_EQ(loaded->records.size(), 1u);
    source_.make_vm(loaded->records[0])->recover();
  }
  bool wait_split(int count) { return source_.dataplane.wait_for(Request::kSplitGuest, count); }

  const Id128 store_ = Id128::random();
};

TEST_F(SplitTest, ARunningGuestIsAttachedAnewAndItsPipeIsInQemu) {
  ASSERT_NO_FATAL_FAILURE(boot());
  EXPECT_FALSE(source_.dataplane.last_attach().split());
  const auto done = split(order());
  ASSERT_TRUE(done) << text_of(done.error());
  ASSERT_TRUE(wait_split(1));
  const auto attached = source_.dataplane.last_attach();
  EXPECT_TRUE(attached.split());
  EXPECT_FALSE(attached.demand_paging());
  EXPECT_EQ(attached.kind(), dataplane::v1::AttachGuest::CONTINUING);
  EXPECT_TRUE(attached.has_userfaultfd());
  EXPECT_EQ(source_.dataplane.split_descriptors(), 2);
  EXPECT_EQ(last_split().budget_bytes(), kBudget);
  ASSERT_EQ(last_split().stores_size(), 1);
  EXPECT_EQ(last_split().stores(0).sub(), 3u);
  EXPECT_TRUE(qemu_holds_pipe());
  EXPECT_TRUE(journaled().userfaultfd_events);
  ASSERT_TRUE(journaled().split);
  EXPECT_EQ(journaled().split->subs.at(0).store_id, store_);
  EXPECT_TRUE(source_.present()->running().has_split());
  EXPECT_TRUE(source_.wait_beat_after(uuid_, source_.last_beat(uuid_) + 2)) << "it does not go on";
  controlplane::v1::PrepareSource away;
  away.set_migration_id(migration_.to_bytes());
  away.set_ownership(5);
  const auto moving = source_.run([&](Reply reply) { source_.present()->prepare_source(away, std::move(reply)); });
  ASSERT_FALSE(moving);
  EXPECT_NE(moving.error().text().find("gather it first"), std::string::npos);
}

TEST_F(SplitTest, AfterEachRestartTheDataPlaneIsToldAgain) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_TRUE(split(order()));
  ASSERT_TRUE(wait_split(1));
  ASSERT_TRUE(source_.restart_dataplane());
  ASSERT_TRUE(wait_split(2));
  EXPECT_EQ(source_.dataplane.last_attach().kind(), dataplane::v1::AttachGuest::CONTINUING);
  EXPECT_TRUE(source_.dataplane.last_attach().split());
  EXPECT_EQ(source_.dataplane.split_descriptors(), 2);
  ASSERT_NO_FATAL_FAILURE(restart_bridge());
  ASSERT_TRUE(wait_split(3));
  EXPECT_EQ(last_split().budget_bytes(), kBudget);
  EXPECT_EQ(last_split().stores(0).store_id(), store_.to_bytes());
  EXPECT_TRUE(qemu_holds_pipe());
}

TEST_F(SplitTest, WhatTheDataPlaneRefusesLeavesAnOrdinaryGuest) {
  ASSERT_NO_FATAL_FAILURE(boot());
  source_.dataplane.refuse_split(true);
  EXPECT_EQ(refused(), "the test refuses the split");
  EXPECT_FALSE(journaled().split);
  EXPECT_FALSE(source_.present()->running().has_split());
  auto stale = order();
  stale.set_ownership(4);
  EXPECT_EQ(split(stale).error().code(), dataplane::v1::Error::STALE_OWNERSHIP);
}

TEST_F(SplitTest, AGuestWhoseDisksWriteItsMemoryDirectlyIsRefusedByName) {
  const auto disk = files_.path() / "disk";
  std::ofstream(disk) << std::string(1 << 20, 'x');
  more_arguments_ = {"-drive", "if=none,id=d,cache.direct=on,node-name=direct0,file=" + disk.string() + ",format=raw",
                     "-device", "virtio-blk,drive=d"};
  ASSERT_NO_FATAL_FAILURE(boot());
  EXPECT_NE(refused().find("hashes"), std::string::npos) << refused();
  EXPECT_EQ(source_.dataplane.count(Request::kSplitGuest), 0);
}

TEST_F(SplitTest, GatheredIsToldAlsoIfTheWordWasMissed) {
  for (const bool say_so : {true, false}) {
    if (say_so) {
      ASSERT_NO_FATAL_FAILURE(boot());
    }
    ASSERT_TRUE(split(order()));
    ASSERT_TRUE(split(order(true)));
    ASSERT_TRUE(wait_split(say_so ? 2 : 4));
    EXPECT_TRUE(last_split().gather());
    source_.present()->tick();
    EXPECT_FALSE(source_.present()->running().gathered());
    controlplane::v1::EndSplit end;
    end.set_ownership(5);
    const auto finish = [&] {
      return source_.run([&](Reply reply) { source_.present()->end_split(end, std::move(reply)); });
    };
    EXPECT_FALSE(finish()) << "pages are still elsewhere";
    source_.dataplane.gathered(uuid_, say_so);
    ASSERT_TRUE(source_.tick_until([&] { return source_.present()->running().gathered(); }));
    EXPECT_TRUE(finish());
    EXPECT_FALSE(journaled().split);
    EXPECT_FALSE(source_.present()->running().gathered());
  }
}

TEST_F(SplitTest, WhileAPageCannotComeItIsPausedAlsoAcrossARestart) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_TRUE(split(order()));
  ASSERT_TRUE(wait_split(1));
  const auto is = [&](const char* state) {
    return source_.tick_until([&] { return source_.present()->running().run_state() == state; });
  };
  source_.present()->on_guest_blocked(3);
  ASSERT_TRUE(is("paused"));
  EXPECT_TRUE(journaled().paused_for_pages);
  controlplane::v1::PrepareSource away;
  away.set_migration_id(migration_.to_bytes());
  away.set_ownership(5);
  away.set_keeps_stores(true);
  const auto moving = source_.run([&](Reply reply) { source_.present()->prepare_source(away, std::move(reply)); });
  ASSERT_FALSE(moving);
  EXPECT_NE(moving.error().text().find("waits for pages"), std::string::npos);
  ASSERT_NO_FATAL_FAILURE(restart_bridge());
  ASSERT_TRUE(wait_split(2));
  EXPECT_TRUE(is("paused"));
  const auto beat = source_.last_beat(uuid_);
  source_.present()->tick();  // it has not been told anything yet
  ASSERT_TRUE(split(order())) << "after that";
  EXPECT_EQ(source_.present()->running().run_state(), "paused");
  EXPECT_EQ(source_.last_beat(uuid_), beat);
  dataplane::v1::Status status;
  status.add_splits()->set_vm_uuid(uuid_.to_bytes());
  source_.present()->on_dataplane_status(&status);
  ASSERT_TRUE(is("running"));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, beat));
  ASSERT_TRUE(source_.tick_until([&] { return !journaled().paused_for_pages; }));
}

TEST_F(SplitTest, WhoIsPausedBySomebodyElseStaysSo) {
  more_arguments_ = {"-qmp", kSecondMonitor};
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_TRUE(split(order()));
  const auto operators = QmpClient::connect(pin().parent_path() / "second.qmp", {});
  ASSERT_TRUE(operators && stop(**operators));
  const auto paused = [&] { return source_.present()->running().run_state() == "paused"; };
  ASSERT_TRUE(source_.tick_until(paused));
  source_.present()->on_guest_blocked(3);
  source_.present()->on_guest_blocked(0);
  ASSERT_TRUE(split(order())) << "after what was told";
  EXPECT_FALSE(journaled().paused_for_pages);
  EXPECT_EQ(query_status(**operators).value_or("?"), "paused");
}

TEST_F(SplitTest, ItsEndIsTold) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_TRUE(split(order()));
  ::kill(static_cast<pid_t>(source_.present()->running().pid()), SIGKILL);
  EXPECT_TRUE(source_.wait_vm_ended());
  EXPECT_TRUE(source_.wait_gone());
}

TEST_F(SplitTest, AGuestThatIsSplitFromItsStartIsAttachedSo) {
  auto record = make_record();
  record.definition.resident_budget_bytes = kBudget;
  auto vm = source_.make_vm(record);
  const auto started = source_.run([&](Reply reply) { vm->start(std::move(reply)); });
  ASSERT_TRUE(started) << text_of(started.error());
  EXPECT_EQ(started->vm_started().definition().resident_budget_bytes(), kBudget);
  EXPECT_TRUE(source_.dataplane.last_attach().split());
  EXPECT_EQ(source_.dataplane.last_attach().kind(), dataplane::v1::AttachGuest::FRESH);
  ASSERT_TRUE(split(order()));
  EXPECT_EQ(source_.dataplane.count(Request::kAttachGuest), 1) << "once is enough";
}

TEST_F(SplitTest, ItShrinksUntilItIsWithinItsBudget) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const auto told = [&](std::uint64_t resident_bytes) {
    dataplane::v1::Status status;
    auto& split = *status.add_splits();
    split.set_vm_uuid(uuid_.to_bytes());
    split.set_budget_bytes(kBudget);
    split.set_resident_bytes(resident_bytes);
    source_.present()->on_dataplane_status(&status);
    return source_.present()->shrinks();
  };
  EXPECT_FALSE(source_.present()->shrinks()) << "it is not split";
  EXPECT_TRUE(told(3 * kBudget));
  EXPECT_TRUE(told(2 * kBudget));
  for (int beat = 0; beat < 20; ++beat) {
    told(2 * kBudget);
  }
  EXPECT_FALSE(told(2 * kBudget)) << "no store takes more";
  EXPECT_TRUE(told(kBudget + 4096));
  EXPECT_FALSE(told(kBudget));
  source_.present()->on_dataplane_status(nullptr);
  EXPECT_FALSE(source_.present()->shrinks()) << "nobody knows";
}

}  // namespace
}  // namespace godwit::bridge
