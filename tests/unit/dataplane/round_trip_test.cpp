// Two daemons over a veth pair: a guest's RAM moves to the other host while it is written, is changed there, and comes
// back; the test is both bridges and both QEMUs. Checked: every byte at every arrival, the device state, and that only
// what changed comes home.

#include "tests/unit/dataplane/round_trip.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <thread>

#include "base/uuid.h"

namespace godwit::tests {

std::string daemon_program() { return GODWIT_DATAPLANE; }

namespace {

class ThereAndBack : public RoundTrip {
 protected:
  void there_and_back();
};

void ThereAndBack::there_and_back() {
  if (!attach_both()) {
    return;
  }
  const Move there = kFirst;
  begin(there);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    std::mt19937_64 random(3);
    while (!stop.load()) {
      const std::uint64_t page = random() % 512;  // few pages, often: rounds converge
      guests_[0]->data()[page * 4096 + random() % 4096] = static_cast<std::byte>(random());
      usleep(50);  // tidy-allow(sleep): the pace of a writer
    }
  });
  const bool ready = wait(0, api::Event::kReadyToSwitch);
  stop.store(true);
  writer.join();
  ASSERT_TRUE(ready);
  ASSERT_NO_FATAL_FAILURE(switch_over(there));
  expect_equal_memory();
  const auto arrived = finish(1, there, api::OUTCOME_COMMITTED, 2);
  const auto left = finish(0, there, api::OUTCOME_COMMITTED, 2);
  EXPECT_TRUE(left.image_retained()) << left.image_reason();
  EXPECT_GT(left.stats().pages_sent(), kPages / 2);
  EXPECT_EQ(left.stats().pages_reused(), 0U);
  EXPECT_GT(arrived.epoch_next(), 10U);

  // It works there: 300 pages change, one of them becomes zero, one a former hole.
  guests_[0].reset();
  for (std::uint64_t i = 0; i < 300; ++i) {
    guests_[1]->data()[(i * 50 + 1) * 4096 + 5] ^= std::byte{0x5a};
  }
  std::memset(guests_[1]->data().data() + 51 * 4096, 0, 4096);
  make_guest(0);
  attach(0, api::AttachGuest::ARRIVING, 2);
  const Move back{.from = 1, .to = 0, .id = id_of('2'), .epoch_base = 2000, .ownership = 2, .reuse = true};
  begin(back);
  ASSERT_TRUE(wait(1, api::Event::kReadyToSwitch));
  ASSERT_NO_FATAL_FAILURE(switch_over(back));
  expect_equal_memory();
  finish(0, back, api::OUTCOME_COMMITTED, 3);
  const auto home = finish(1, back, api::OUTCOME_COMMITTED, 3);
  EXPECT_GE(home.stats().pages_sent() + home.stats().pages_zero(), 300U);
  EXPECT_LE(home.stats().pages_sent() + home.stats().pages_zero(), 320U) << "what did not change crossed, too";
  EXPECT_TRUE(home.image_retained()) << home.image_reason();
}

TEST_F(ThereAndBack, OnlyWhatChangedComesHome) { there_and_back(); }

class SmallFrames : public ThereAndBack {
 protected:
  void SetUp() override { set_up(1500); }
};
TEST_F(SmallFrames, PagesInFragmentsArriveWhole) { there_and_back(); }

/// Frames arrive at either lcore, whoever owns their lane.
class SeveralLcores : public ThereAndBack {
 protected:
  void SetUp() override {
    hosts_.use_lcores(2);
    set_up(9000);
  }
};
TEST_F(SeveralLcores, ShareAMigration) { there_and_back(); }

TEST_F(RoundTrip, AnAbortedAttemptLeavesAnImageThatIsTrue) {
  if (!attach_both()) {
    return;
  }
  const Move first = kFirst;
  begin(first);
  ASSERT_TRUE(wait(0, api::Event::kReadyToSwitch));
  EXPECT_GT(finish(0, first, api::OUTCOME_ABORTED, 1).epoch_next(), 10U);
  const auto partial = finish(1, first, api::OUTCOME_ABORTED, 1);
  EXPECT_TRUE(partial.image_retained()) << partial.image_reason();
  // The guest goes on at the source; the copy of these pages is stale.
  for (std::uint64_t page = 0; page < 100; ++page) {
    guests_[0]->data()[page * 4096 * 7] ^= std::byte{1};
  }
  guests_[1].reset();
  make_guest(1);
  attach(1, api::AttachGuest::ARRIVING, 1);
  const Move second{.from = 0, .to = 1, .id = id_of('2'), .epoch_base = 2000, .ownership = 1, .reuse = true};
  begin(second);
  ASSERT_TRUE(wait(0, api::Event::kReadyToSwitch));
  ASSERT_NO_FATAL_FAILURE(switch_over(second));
  expect_equal_memory();
  const auto left = finish(0, second, api::OUTCOME_COMMITTED, 2);
  EXPECT_GT(left.stats().pages_reused(), kPages / 2);
  finish(1, second, api::OUTCOME_COMMITTED, 2);
}

TEST_F(RoundTrip, ARestartedDaemonKnowsWhatWasWritten) {
  if (!attach_both()) {
    return;
  }
  if (tracker_ != api::TRACKER_PAGEMAP_SCAN) {
    GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN: other trackers lose their history with the daemon";
  }
  hosts_.kill_daemon(0, SIGKILL);
  guests_[0]->data()[3 * 4096] = std::byte{9};
  ASSERT_EQ(hosts_.start_daemon(0), "");
  ASSERT_TRUE(bridges_[0].connect(hosts_.socket(0)));
  const auto again = attach(0, api::AttachGuest::CONTINUING, 1);
  EXPECT_FALSE(again.history_lost()) << again.history_reason();
  begin(kFirst);
  ASSERT_TRUE(wait(0, api::Event::kReadyToSwitch));
  ASSERT_NO_FATAL_FAILURE(switch_over(kFirst));
  expect_equal_memory();
}

TEST_F(RoundTrip, APeerThatDiesFailsTheMigrationAndLeavesTheGuest) {
  if (!attach_both()) {
    return;
  }
  begin(kFirst);
  hosts_.kill_daemon(1, SIGKILL);
  const auto failed = bridges_[0].wait_event([](const api::Event& event) { return event.has_migration_failed(); });
  ASSERT_TRUE(failed.has_value());
  EXPECT_EQ(failed->migration_failed().error().code(), api::Error::PEER) << failed->migration_failed().error().text();
  EXPECT_GT(finish(0, kFirst, api::OUTCOME_ABORTED, 1).epoch_next(), 10U);
  api::ToDataplane request;
  request.mutable_get_status();
  EXPECT_EQ(ask(0, request).status().guests_size(), 1);
}

TEST_F(RoundTrip, AFailedAttachLeavesNothingArmed) {
  make_guest(0);
  std::memset(guests_[0]->data().data(), 1, kBytes);
  // Where what is tracked would be noted there is a directory: the last step of attaching fails.
  const Id128 vm = Id128::from_bytes(id_of('v')).value();
  std::filesystem::create_directories(hosts_.directory(0) + "/" + vm.text() + ".tracking/full");
  for (const auto tracker : {api::TRACKER_PAGEMAP_SCAN, api::TRACKER_WRITE_PROTECT_EVENTS}) {
    api::ToDataplane request;
    guests_[0]->describe(*request.mutable_attach_guest());
    request.mutable_attach_guest()->set_vm_uuid(id_of('v'));
    request.mutable_attach_guest()->set_image_id(id_of('i'));
    request.mutable_attach_guest()->set_ownership(1);
    request.mutable_attach_guest()->set_epoch(1);
    request.mutable_attach_guest()->set_has_balloon(true);
    request.mutable_attach_guest()->set_tracker(tracker);
    const auto reply = bridges_[0].ask(request, guests_[0]->descriptors());
    ASSERT_TRUE(reply);
    ASSERT_NE(reply->error().code(), api::Error::NONE) << "attached without a place for its history";
    EXPECT_EQ(guests_[0]->armed(), "") << api::Tracker_Name(tracker) << ": " << reply->error().text();
  }
  api::ToDataplane status;
  status.mutable_get_status();
  EXPECT_EQ(ask(0, status).status().guests_size(), 0);
}

/// Guest RAM is cut short by its owner while it moves, on the one host or on the other.
class CutShort : public RoundTrip, public testing::WithParamInterface<std::size_t> {};
INSTANTIATE_TEST_SUITE_P(Hosts, CutShort, testing::Values(0, 1),
                         [](const auto& host) { return host.param == 0 ? "Source" : "Destination"; });

TEST_P(CutShort, FailsItsMigrationAndNothingElse) {
  if (!attach_both()) {
    return;
  }
  bandwidth_bps_ = 200'000'000;  // some two seconds
  begin(kFirst);
  ASSERT_TRUE(wait(0, api::Event::kProgress));
  ASSERT_EQ(truncate((hosts_.directory(GetParam()) + "/vm.ram").c_str(), 1 << 20), 0);
  const auto failed =
      bridges_[GetParam()].wait_event([](const api::Event& event) { return event.has_migration_failed(); });
  ASSERT_TRUE(failed.has_value());
  const std::string& text = failed->migration_failed().error().text();
  EXPECT_NE(text.find("cut short"), std::string::npos) << text;
  finish(0, kFirst, api::OUTCOME_ABORTED, 1);
  const auto partial = finish(1, kFirst, api::OUTCOME_ABORTED, 1);
  if (GetParam() == 1) {
    EXPECT_FALSE(partial.image_retained());
    EXPECT_NE(partial.image_reason().find("cut short"), std::string::npos) << partial.image_reason();
  }
  for (const std::size_t host : {0U, 1U}) {
    ASSERT_TRUE(hosts_.daemon_runs(host));
    guests_[host].reset();
    unlink((hosts_.directory(host) + "/vm.ram").c_str());
  }
  // Another guest on the same daemons.
  api::ToDataplane request;
  request.mutable_detach_guest()->set_vm_uuid(id_of('v'));
  request.mutable_detach_guest()->set_ownership(1);
  ask(0, request);
  ASSERT_TRUE(attach_both());
  bandwidth_bps_ = 0;
  const Move second{.from = 0, .to = 1, .id = id_of('2'), .epoch_base = 2000, .ownership = 1};
  begin(second);
  ASSERT_TRUE(wait(0, api::Event::kReadyToSwitch));
  ASSERT_NO_FATAL_FAILURE(switch_over(second));
  expect_equal_memory();
}

TEST_F(RoundTrip, AHostileBridgeGetsErrorsAndHarmsNobody) {
  BridgeClient& bridge = bridges_[0];
  ASSERT_TRUE(bridge.send_bytes("\xff\xff\xff garbage"));
  EXPECT_EQ(bridge.next_reply()->error().code(), api::Error::BAD_REQUEST);
  EXPECT_EQ(bridge.ask({})->error().code(), api::Error::BAD_REQUEST) << "a request for nothing";
  api::ToDataplane request;
  request.mutable_get_status();
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(bridge.ask(request, {null.get()})->error().code(), api::Error::BAD_REQUEST)
      << "descriptors that nobody asked for";
  make_guest(0);
  if (IsSkipped()) {
    return;
  }
  guests_[0]->describe(*request.mutable_attach_guest());
  request.mutable_attach_guest()->set_vm_uuid(id_of('v'));
  request.mutable_attach_guest()->set_image_id(id_of('i'));
  request.mutable_attach_guest()->set_epoch(1);
  EXPECT_NE(bridge.ask(request, {null.get(), null.get(), null.get()})->error().code(), api::Error::NONE)
      << "/dev/null is no RAM";
  request.mutable_start_migration()->set_migration_id(id_of('x'));
  EXPECT_EQ(bridge.ask(request)->error().code(), api::Error::NO_SUCH_MIGRATION);
  request.mutable_finish_migration()->set_migration_id(id_of('x'));
  EXPECT_EQ(bridge.ask(request)->error().code(), api::Error::BAD_REQUEST) << "an outcome that is none";
  attach(0, api::AttachGuest::FRESH, 5);
  request.mutable_detach_guest()->set_vm_uuid(id_of('v'));
  request.mutable_detach_guest()->set_ownership(4);
  EXPECT_EQ(bridge.ask(request)->error().code(), api::Error::STALE_OWNERSHIP);
  request.mutable_detach_guest()->set_ownership(5);
  ask(0, request);
  request.mutable_get_status();
  EXPECT_EQ(ask(0, request).status().guests_size(), 0);
}

}  // namespace
}  // namespace godwit::tests
