// What the store decided comes into effect, however often QEMU's monitor fails: commands without answer, commands
// refused, a monitor held by somebody else, connections that break. And a guest that could not be attached is left as
// it was found. Real QEMUs; what fails is made to fail outside of the bridge.
#include <fcntl.h>
#include <gtest/gtest.h>

#include "qemu-bridge/attach/inject.h"
#include "tests/unit/qemu-bridge/monitor_in_the_middle.h"
#include "tests/unit/qemu-bridge/switchover_fixture.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::MigrationEvent;
using Request = dataplane::v1::ToDataplane;

/// Somebody else has the disk image open: QEMU cannot take it back, and refuses to run its guest.
class LockedDisk {
 public:
  explicit LockedDisk(const std::filesystem::path& path) : fd_(::open(path.c_str(), O_RDWR | O_CLOEXEC)) {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = 100;  // QEMU's image locks are these bytes (block/file-posix.c)
    lock.l_len = 200;
    EXPECT_EQ(::fcntl(fd_.get(), F_OFD_SETLK, &lock), 0) << "QEMU still has the disk";
  }

 private:
  UniqueFd fd_;
};

class NeverGivenUp : public Switchover {
 protected:
  void SetUp() override {
    Switchover::SetUp();
    more_arguments_ = {"-qmp", kSecondMonitor};
  }
  std::filesystem::path monitor_of(TestHost& host) { return host_paths(host.config, uuid_).qmp_socket(); }
  pid_t qemu_of(TestHost& host) { return static_cast<pid_t>(host.present()->running().pid()); }
  void add_disk() {
    disk_ = files_.path() / "disk.img";
    std::ofstream(disk_).close();
    std::filesystem::resize_file(disk_, 1 << 20);
    more_arguments_.insert(more_arguments_.end(), {"-drive", "file=" + disk_.string() + ",format=raw,if=virtio"});
  }
  /// To the moment in which the guest stands still at the source, whole on its way, and its memory is not there.
  void stop_half_way() {
    destination_.dataplane.hold_memory();
    ASSERT_NO_FATAL_FAILURE(prepare());
    ASSERT_NO_FATAL_FAILURE(switch_over());
    ASSERT_TRUE(source_.dataplane.wait_for(Request::kDeviceStateEnd));
  }
  /// To the moment in which it is loaded at the destination, and nothing is decided. `beat`: its last one before.
  void boot_and_load(int& beat) {
    ASSERT_NO_FATAL_FAILURE(boot());
    ASSERT_NO_FATAL_FAILURE(prepare());
    beat = source_.last_beat(uuid_);
    ASSERT_NO_FATAL_FAILURE(switch_over());
    ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  }
  /// The bridge's connection is broken, and its next one goes through us.
  std::unique_ptr<MonitorInTheMiddle> step_between(TestHost& host) {
    const auto path = monitor_of(host);
    auto middle = std::make_unique<MonitorInTheMiddle>(qemu_of(host), path);
    break_monitor(host);
    EXPECT_TRUE(host.tick_until([&] { return middle->count_of("query-machines") > 0; }));
    return middle;
  }
  /// The QEMU that boot() started, as if somebody else had; why it could not be attached.
  std::string attach_to_unknown_qemu() {
    const pid_t qemu = qemu_of(source_);
    const auto found = find_userfaultfds(qemu);
    EXPECT_TRUE(found);
    source_.drop_vm();
    EXPECT_TRUE(source_.restart_dataplane());
    EXPECT_TRUE(source_.journal.remove(uuid_));
    if (spoil_journal_) {
      std::filesystem::remove_all(source_.config.state_dir / "vms");
    }
    auto theirs = make_record();
    theirs.definition = definition_of(definition_).value();
    theirs.qmp_path = monitor_of(source_);
    auto vm = source_.make_vm(theirs);
    const auto attached = source_.run([&](Reply reply) { vm->attach(std::move(reply)); });
    EXPECT_TRUE(source_.wait_gone());
    EXPECT_TRUE(source_.dataplane.last_attach().has_userfaultfd()) << "nothing was injected: nothing is tested";
    EXPECT_EQ(find_userfaultfds(qemu).value_or(std::vector<int>{-1}), *found) << "ours stays in QEMU";
    EXPECT_TRUE(source_.wait_beat_after(uuid_, source_.last_beat(uuid_) + 2)) << "the guest does not go on";
    return attached ? std::string("attached") : text_of(attached.error());
  }
  void break_monitor(TestHost& host) { EXPECT_EQ(break_connections_to(monitor_of(host)), 1); }
  void committed_guest_runs_on(int beat) {
    ASSERT_TRUE(tell(source_, controlplane::v1::COMMITTED));
    EXPECT_TRUE(source_.wait_event(MigrationEvent::RETIRED));
    EXPECT_TRUE(destination_.wait_beat_after(uuid_, beat)) << "it does not go on";
    EXPECT_FALSE(destination_.present()->migration_id() == migration_) << "the migration is not over there";
  }

  std::filesystem::path disk_;
  bool spoil_journal_ = false;
};

TEST_F(NeverGivenUp, ACommittedGuestThatQemuRefusesToContinueIsTriedAgain) {
  add_disk();
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(stop_half_way());
  const int beat = source_.last_beat(uuid_);
  auto lock = std::make_unique<LockedDisk>(disk_);
  destination_.dataplane.release_memory(migration_);
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  const auto told = tell(destination_, controlplane::v1::COMMITTED);
  ASSERT_FALSE(told) << "said to be in effect, but the disk is locked";
  const auto failed = destination_.wait_event(MigrationEvent::FAILED);
  ASSERT_TRUE(failed);
  EXPECT_NE(failed->error().text().find("lock"), std::string::npos) << failed->error().text();
  // Without another word of the store, and without saying so again.
  const auto middle = step_between(destination_);
  ASSERT_TRUE(destination_.tick_until([&] { return middle->count_of("cont") >= 2; }));
  const int said =
      destination_.count_events(MigrationEvent::FAILED);  // a broken monitor is another reason, if it is met
  ASSERT_TRUE(destination_.tick_until([&] { return middle->count_of("cont") >= 5; }));
  EXPECT_EQ(destination_.count_events(MigrationEvent::FAILED), said);
  EXPECT_EQ(destination_.last_beat(uuid_), 0);
  // A control plane that was away is told again.
  destination_.present()->on_registered();
  ASSERT_TRUE(destination_.tick_until([&] { return destination_.count_events(MigrationEvent::FAILED) > said; }));
  lock.reset();
  ASSERT_TRUE(destination_.tick_until([&] { return destination_.count_events(MigrationEvent::RESUMED) > 0; }));
  committed_guest_runs_on(beat);
}

TEST_F(NeverGivenUp, ACommittedGuestWhoseContinuationIsNotAnsweredRunsAndIsSeen) {
  int beat = 0;
  ASSERT_NO_FATAL_FAILURE(boot_and_load(beat));
  const auto middle = step_between(destination_);
  middle->swallow_reply_to("cont");
  EXPECT_FALSE(tell(destination_, controlplane::v1::COMMITTED));
  EXPECT_TRUE(middle->swallowed());
  EXPECT_EQ(destination_.count_events(MigrationEvent::RESUMED), 0);
  ASSERT_TRUE(destination_.tick_until([&] { return destination_.count_events(MigrationEvent::RESUMED) > 0; }));
  committed_guest_runs_on(beat);
}

class Continued : public NeverGivenUp, public testing::WithParamInterface<controlplane::v1::MigrationState> {};

// QEMU may wait, in `cont`, for a page that nobody gives before a new data plane knows of the guest and of its stores.
TEST_P(Continued, IsGivenToANewDataPlaneThoughQemuDoesNotAnswer) {
  mode_ = dataplane::v1::HYBRID;
  destination_.dataplane.lack(GetParam() == controlplane::v1::PULLING ? 77 : 0);
  ASSERT_NO_FATAL_FAILURE(boot());
  const Id128 store = Id128::random();
  ASSERT_TRUE(source_.run(
      [&](Reply reply) { source_.present()->split_guest(split_order(5, 32 << 20, store), std::move(reply)); }));
  kept_ = split_order(6, 32 << 20, store);
  ASSERT_NO_FATAL_FAILURE(prepare());
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  const auto middle = step_between(destination_);
  middle->swallow_reply_to("cont");
  const int attached = destination_.dataplane.count(Request::kAttachGuest);
  const int split = destination_.dataplane.count(Request::kSplitGuest);
  ASSERT_TRUE(destination_.restart_dataplane());
  EXPECT_FALSE(tell(destination_, GetParam()));
  EXPECT_TRUE(middle->swallowed());
  EXPECT_GT(destination_.dataplane.count(Request::kAttachGuest), attached);
  EXPECT_EQ(destination_.dataplane.last_attach().kind(), dataplane::v1::AttachGuest::CONTINUING);
  EXPECT_GT(destination_.dataplane.count(Request::kSplitGuest), split);
  EXPECT_EQ(destination_.count_events(MigrationEvent::RESUMED), 0);
  EXPECT_TRUE(destination_.tick_until([&] { return destination_.count_events(MigrationEvent::RESUMED) > 0; }));
}

INSTANTIATE_TEST_SUITE_P(Words, Continued, testing::Values(controlplane::v1::PULLING, controlplane::v1::COMMITTED),
                         [](const auto& word) { return controlplane::v1::MigrationState_Name(word.param); });

TEST_F(NeverGivenUp, AnAbortedGuestThatQemuRefusesToContinueIsTriedAgain) {
  add_disk();
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(stop_half_way());
  const int beat = source_.last_beat(uuid_);
  ASSERT_TRUE(tell(destination_, controlplane::v1::ABORTED));
  EXPECT_TRUE(destination_.wait_gone());
  auto lock = std::make_unique<LockedDisk>(disk_);
  ASSERT_FALSE(tell(source_, controlplane::v1::ABORTED)) << "said to be in effect, but the disk is locked";
  ASSERT_TRUE(source_.wait_event(MigrationEvent::FAILED));
  EXPECT_EQ(source_.last_beat(uuid_), beat);
  lock.reset();
  ASSERT_TRUE(source_.tick_until([&] { return source_.count_events(MigrationEvent::BACK) > 0; }));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, beat + 3)) << "it does not go on";
}

TEST_F(NeverGivenUp, ASwitchWithoutAnswerMayHaveStoppedTheGuest) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const auto middle = step_between(source_);
  destination_.dataplane.hold_memory();
  ASSERT_NO_FATAL_FAILURE(prepare());
  middle->swallow_reply_to("migrate");
  const auto command = [&](Reply reply) { source_.present()->switch_over(std::move(reply)); };
  const auto first = source_.run(command);
  ASSERT_FALSE(first) << "a migrate without answer was taken for done";
  EXPECT_TRUE(middle->swallowed());
  const auto again = source_.run(command);
  ASSERT_FALSE(again) << "the same word, another answer";
  EXPECT_EQ(again.error().text(), first.error().text());
  EXPECT_EQ(middle->count_of("migrate"), 1);
  EXPECT_EQ(source_.count_events(MigrationEvent::FAILED), 1);
  const int beat = source_.last_beat(uuid_);
  ASSERT_TRUE(tell(destination_, controlplane::v1::ABORTED));
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, beat + 3)) << "told to be back, but it stands still";
}

TEST_F(NeverGivenUp, ARepeatedSwitchDoesNothingTwice) {
  ASSERT_NO_FATAL_FAILURE(boot());
  const auto middle = step_between(source_);
  ASSERT_NO_FATAL_FAILURE(prepare());
  const int beat = source_.last_beat(uuid_);
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_NO_FATAL_FAILURE(switch_over());
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  ASSERT_NO_FATAL_FAILURE(switch_over());
  EXPECT_EQ(middle->count_of("migrate"), 1);
  ASSERT_TRUE(source_.dataplane.wait_for(Request::kDeviceStateEnd));  // forwarded before it is counted
  EXPECT_EQ(source_.dataplane.count(Request::kGuestStopped), 1);
  EXPECT_EQ(source_.dataplane.count(Request::kDeviceStateEnd), 1);
  EXPECT_EQ(source_.count_events(MigrationEvent::FAILED), 0);
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::RESUMED));
  committed_guest_runs_on(beat);
}

TEST_F(NeverGivenUp, AnOutcomeBeforeTheMonitorIsConnectedWaitsForIt) {
  int beat = 0;
  ASSERT_NO_FATAL_FAILURE(boot_and_load(beat));
  destination_.drop_vm();
  {
    const auto held = QmpClient::connect(monitor_of(destination_), {});
    ASSERT_TRUE(held) << held.error().text;
    const auto loaded = destination_.journal.load();
    ASSERT_TRUE(loaded);
    destination_.make_vm(loaded->records.at(0))->recover();
    const auto told = tell(destination_, controlplane::v1::COMMITTED);
    ASSERT_FALSE(told) << "said to be in effect without a monitor";
    EXPECT_NE(told.error().text().find("monitor"), std::string::npos) << told.error().text();
    EXPECT_EQ(destination_.last_beat(uuid_), 0);
  }
  ASSERT_TRUE(destination_.tick_until([&] { return destination_.count_events(MigrationEvent::RESUMED) > 0; }));
  committed_guest_runs_on(beat);
}

TEST_F(NeverGivenUp, ASourceMonitorLostBeforeTheSwitchFailsTheMigrationAlone) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(prepare());
  break_monitor(source_);
  ASSERT_TRUE(source_.tick_until([&] { return source_.count_events(MigrationEvent::FAILED) > 0; }));
  const auto failed = source_.wait_event(MigrationEvent::FAILED);
  EXPECT_NE(failed->error().text().find("monitor"), std::string::npos) << failed->error().text();
  ASSERT_TRUE(tell(destination_, controlplane::v1::ABORTED));
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, source_.last_beat(uuid_) + 3));
  EXPECT_EQ(source_.dataplane.count(Request::kAttachGuest), 1) << "attached again although it was known";
}

TEST_F(NeverGivenUp, ASourceMonitorLostWhenStoppedIsConnectedForAborted) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(stop_half_way());
  const int beat = source_.last_beat(uuid_);
  break_monitor(source_);
  ASSERT_TRUE(source_.tick_until([&] { return source_.count_events(MigrationEvent::FAILED) > 0; }));
  EXPECT_EQ(source_.last_beat(uuid_), beat) << "it ran without the store's word";
  ASSERT_TRUE(tell(destination_, controlplane::v1::ABORTED));
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, beat + 3));
}

TEST_F(NeverGivenUp, ASourceMonitorLostWhenStoppedIsConnectedForCommitted) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(stop_half_way());
  const int beat = source_.last_beat(uuid_);
  break_monitor(source_);
  ASSERT_TRUE(source_.tick_until([&] { return source_.count_events(MigrationEvent::FAILED) > 0; }));
  destination_.dataplane.release_memory(migration_);
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::LOADED));
  EXPECT_EQ(source_.last_beat(uuid_), beat) << "it ran without the store's word";
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::RESUMED));
  committed_guest_runs_on(beat);
}

TEST_F(NeverGivenUp, ACommittedSourceWhoseMonitorSomebodyHoldsIsEnded) {
  int beat = 0;
  ASSERT_NO_FATAL_FAILURE(boot_and_load(beat));
  const auto qemu = identify(qemu_of(source_));
  ASSERT_TRUE(qemu);
  source_.drop_vm();
  const auto held = QmpClient::connect(monitor_of(source_), {});
  ASSERT_TRUE(held) << held.error().text;
  const auto loaded = source_.journal.load();
  ASSERT_TRUE(loaded);
  source_.make_vm(loaded->records.at(0))->recover();
  ASSERT_TRUE(is_alive(*qemu)) << "ended without the store's word";
  ASSERT_TRUE(tell(source_, controlplane::v1::COMMITTED));
  EXPECT_TRUE(source_.wait_gone());
  EXPECT_FALSE(is_alive(*qemu)) << "it waits for its monitor";
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::RESUMED));
  EXPECT_TRUE(source_.wait_event(MigrationEvent::RETIRED));
  EXPECT_TRUE(destination_.wait_beat_after(uuid_, beat)) << "it does not go on";
}

/// The word was noted, the bridge ended, and another process has the pid meanwhile.
TEST_F(NeverGivenUp, ACommittedSourceWhosePidIsAnothersEndsNobody) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(prepare());
  const auto qemu = identify(qemu_of(source_));
  ASSERT_TRUE(qemu);
  source_.drop_vm();
  const auto held = QmpClient::connect(monitor_of(source_), {});
  ASSERT_TRUE(held) << held.error().text;
  auto record = source_.journal.load()->records.at(0);
  record.migration->phase = MigrationPhase::kCommitted;
  record.migration->ownership_after = 6;
  ++record.process.start_ticks;
  source_.make_vm(record)->recover();
  EXPECT_TRUE(source_.wait_gone());
  EXPECT_TRUE(is_alive(*qemu));
}

TEST_F(NeverGivenUp, AGuestThatItsOperatorPausedIsNotSwitchedAndStaysPaused) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(prepare());
  const auto operators = QmpClient::connect(monitor_of(source_).parent_path() / "second.qmp", {});
  ASSERT_TRUE(operators) << operators.error().text;
  ASSERT_TRUE(stop(**operators));
  const auto refused = source_.run([&](Reply reply) { source_.present()->switch_over(std::move(reply)); });
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().text().find("paused"), std::string::npos) << refused.error().text();
  EXPECT_TRUE(source_.wait_event(MigrationEvent::FAILED));
  ASSERT_TRUE(tell(destination_, controlplane::v1::ABORTED));
  // The bridge ends after it has noted the word.
  source_.drop_vm();
  auto record = source_.journal.load()->records.at(0);
  EXPECT_EQ(record.migration->phase, MigrationPhase::kTransferring);
  record.migration->phase = MigrationPhase::kAborted;
  record.migration->ownership_after = 6;
  source_.make_vm(record)->recover();
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_EQ(query_status(**operators).value_or("?"), "paused") << "an abort continued what its operator had paused";
}

TEST_F(NeverGivenUp, ADestinationMonitorLostWhenLoadedIsConnectedForTheWord) {
  int beat = 0;
  ASSERT_NO_FATAL_FAILURE(boot_and_load(beat));
  break_monitor(destination_);
  // The word may come before the loss is noticed; then it fails, and is in effect as soon as it can be.
  static_cast<void>(tell(destination_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(destination_.tick_until([&] { return destination_.count_events(MigrationEvent::RESUMED) > 0; }));
  committed_guest_runs_on(beat);
}

/// A bridge that ends between QEMU's `cont` and its journal leaves that to the next.
TEST_F(NeverGivenUp, AGuestThatTheBridgeBeforeContinuedIsTakenAsItRuns) {
  int beat = 0;
  ASSERT_NO_FATAL_FAILURE(boot_and_load(beat));
  destination_.drop_vm();
  {
    const auto before = QmpClient::connect(monitor_of(destination_).parent_path() / "second.qmp", {});
    ASSERT_TRUE(before) << before.error().text;
    ASSERT_TRUE(cont(**before));
  }
  destination_.make_vm(destination_.journal.load()->records.at(0))->recover();
  ASSERT_TRUE(destination_.wait_asked());
  const auto middle = step_between(destination_);
  ASSERT_TRUE(tell(destination_, controlplane::v1::COMMITTED));
  ASSERT_TRUE(destination_.wait_event(MigrationEvent::RESUMED));
  EXPECT_EQ(middle->count_of("cont"), 0)
      << "its RESUME has been told to the bridge before: whoever waits for it waits in vain";
  committed_guest_runs_on(beat);
}

TEST_F(NeverGivenUp, ADestinationMonitorLostBeforeItIsLoadedFailsTheMigration) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_NO_FATAL_FAILURE(stop_half_way());
  const int beat = source_.last_beat(uuid_);
  break_monitor(destination_);
  ASSERT_TRUE(destination_.tick_until([&] { return destination_.count_events(MigrationEvent::FAILED) > 0; }));
  EXPECT_EQ(destination_.count_events(MigrationEvent::LOADED), 0);
  // Its QEMU lost the stream with the connection and ends; if it still is there the word ends it.
  static_cast<void>(tell(destination_, controlplane::v1::ABORTED));
  EXPECT_TRUE(destination_.wait_gone());
  ASSERT_TRUE(tell(source_, controlplane::v1::ABORTED));
  ASSERT_TRUE(source_.wait_event(MigrationEvent::BACK));
  EXPECT_TRUE(source_.wait_beat_after(uuid_, beat + 3));
}

TEST_F(NeverGivenUp, AGuestThatCouldNotBeAttachedIsLeftAsItWasFound) {
  ASSERT_NO_FATAL_FAILURE(boot());
  source_.dataplane.refuse_attach();
  const std::string refused = attach_to_unknown_qemu();
  EXPECT_NE(refused.find("refused by the test"), std::string::npos) << refused;
  EXPECT_EQ(source_.dataplane.count(Request::kDetachGuest), 0) << "what was never attached was detached";
}

TEST_F(NeverGivenUp, AGuestWhoseAttachmentCannotBeNotedIsLetGo) {
  ASSERT_NO_FATAL_FAILURE(boot());
  spoil_journal_ = true;
  const std::string refused = attach_to_unknown_qemu();
  EXPECT_NE(refused.find("journal"), std::string::npos) << refused;
  EXPECT_TRUE(source_.dataplane.wait_for(Request::kDetachGuest)) << "the data plane tracks it for ever";
}

}  // namespace
}  // namespace godwit::bridge
