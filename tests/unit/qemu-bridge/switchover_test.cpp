// Whole migrations of a real guest between two stock QEMUs on this machine, through the same Vm objects as in the
// daemon, with a data plane that copies the RAM file. What is proven: the guest goes on at the destination, and only
// there; after an abort it goes on at the source; a restarted bridge takes over what it finds.
#include <gtest/gtest.h>

#include "tests/unit/qemu-bridge/switchover_fixture.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::MigrationEvent;

TEST_F(Switchover, CommittedGuestRunsAtTheDestinationAlone) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const auto attached = source_.dataplane.last_attach();
  EXPECT_EQ(attached.regions_size(), 2);
  EXPECT_TRUE(attached.has_balloon());
  ASSERT_NO_FATAL_FAILURE(prepare());
  const int beat = source_.last_beat(uuid_);
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  EXPECT_EQ(destination_.last_beat(uuid_), 0) << "it ran before it was committed";
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  const auto resumed = destination_.wait_event(MigrationEvent::RESUMED);
  ASSERT_TRUE(resumed);
  ASSERT_TRUE(tell(source_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::RETIRED));
  EXPECT_TRUE(source_.wait_gone());
  EXPECT_TRUE(destination_.wait_beat_after(uuid_, beat + 5)) << "it does not go on";
  const auto downtime_us = resumed->resume_unix_us() - source_.stop_unix_us();
  std::printf("STOP to RESUME %.2f ms, copying 128 MiB included\n", static_cast<double>(downtime_us) / 1000);
  RecordProperty("stop_to_resume_us", std::to_string(downtime_us));
  EXPECT_EQ(destination_.present()->running().ownership(), 6u);
  EXPECT_EQ(destination_.present()->running().run_state(), "running");
  EXPECT_TRUE(std::filesystem::exists(ram_path(host_paths(source_.config, uuid_), uuid_, {"ram0", 1, {}})))
      << "the retained image is gone";
}

TEST_F(Switchover, TheBridgesOwnPartOfTheDowntime) {
  destination_.config.memory_dir_tmpfs = source_.config.memory_dir_tmpfs;
  destination_.dataplane.share_memory();
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(prepare());
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  const auto resumed = destination_.wait_event(MigrationEvent::RESUMED);
  ASSERT_TRUE(resumed);
  const auto downtime_us = resumed->resume_unix_us() - source_.stop_unix_us();
  std::printf("STOP to RESUME %.2f ms, nothing to copy\n", static_cast<double>(downtime_us) / 1000);
  RecordProperty("stop_to_resume_us", std::to_string(downtime_us));
}

TEST_F(Switchover, AbortedAfterTheStopGoesOnAtTheSource) {
  ASSERT_NO_FATAL_FAILURE(boot());
  destination_.dataplane.hold_memory();
  ASSERT_NO_FATAL_FAILURE(prepare());
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_TRUE(source_.dataplane.wait_for(dataplane::v1::ToDataplane::kDeviceStateEnd));
  const int beat = source_.last_beat(uuid_);
  ASSERT_TRUE(tell(destination_, controlplane::v1::ABORTED));
  EXPECT_TRUE(destination_.wait_gone());
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, beat + 5)) << "it does not go on";
  EXPECT_EQ(destination_.last_beat(uuid_), 0);
}

TEST_F(Switchover, DestinationQemuDyingBeforeCommitIsToldAndTheSourceGoesOn) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(prepare());
  ASSERT_EQ(::kill(destination_.present()->running().pid(), SIGKILL), 0);
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::FAILED));
  EXPECT_TRUE(destination_.wait_gone());
  const int beat = source_.last_beat(uuid_);
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, beat + 2));
}

TEST_F(Switchover, RestartedSourceBridgeStaysPausedAndAsks) {
  ASSERT_NO_FATAL_FAILURE(boot());
  destination_.dataplane.hold_memory();
  ASSERT_NO_FATAL_FAILURE(prepare());
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_TRUE(source_.dataplane.wait_for(dataplane::v1::ToDataplane::kDeviceStateEnd));
  source_.drop_vm();
  source_.clear_events();
  const int beat = source_.last_beat(uuid_);
  auto loaded = source_.journal.load();
  ASSERT_TRUE(loaded);
  ASSERT_EQ(loaded->records.size(), 1u);
  ASSERT_TRUE(loaded->records[0].migration);
  EXPECT_EQ(loaded->records[0].migration->phase, MigrationPhase::kSwitching);
  source_.make_vm(loaded->records[0])->recover();
  ASSERT_TRUE(source_.wait_asked());
  EXPECT_EQ(source_.last_beat(uuid_), beat) << "it ran without the store's word";
  ASSERT_TRUE(tell(source_, controlplane::v1::SWITCHING));
  EXPECT_EQ(source_.last_beat(uuid_), beat) << "an undecided outcome let it run";
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, beat + 3));
  EXPECT_EQ(source_.dataplane.count(dataplane::v1::ToDataplane::kAttachGuest), 1)
      << "its data plane has it, with its history: nothing to attach again";
}

TEST_F(Switchover, RestartedDestinationBridgeContinuesACommittedGuest) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(prepare());
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  destination_.drop_vm();
  auto loaded = destination_.journal.load();
  ASSERT_TRUE(loaded);
  ASSERT_EQ(loaded->records.size(), 1u);
  destination_.make_vm(loaded->records[0])->recover();
  ASSERT_TRUE(destination_.wait_asked());
  EXPECT_EQ(destination_.last_beat(uuid_), 0);
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::RESUMED));
  ASSERT_TRUE(tell(source_, controlplane::v1::COMMITTED));
  EXPECT_TRUE(source_.wait_gone());
  EXPECT_TRUE(destination_.wait_beat_after(uuid_, 0));
}

TEST_F(Switchover, ARestartedDataPlaneGetsTheGuestAgain) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const int number = source_.journal.load()->records.at(0).userfaultfd_in_qemu;
  source_.dataplane.restart();
  ASSERT_TRUE(source_.dataplane.wait_for(dataplane::v1::ToDataplane::kAttachGuest, 2));
  EXPECT_EQ(source_.dataplane.last_attach().kind(), dataplane::v1::AttachGuest::CONTINUING);
  EXPECT_TRUE(source_.dataplane.last_attach().has_userfaultfd());
  EXPECT_EQ(source_.journal.load()->records.at(0).userfaultfd_in_qemu, number) << "a second userfaultfd was injected";
}

}  // namespace
}  // namespace godwit::bridge
