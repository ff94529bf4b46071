// Two daemons over a veth pair: a guest's RAM moves to the other host while it is written, is changed there, and comes
// back; the test is both bridges and both QEMUs. Checked: every byte at every arrival, the device state, and that only
// what changed comes home.

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
#include "tests/unit/dataplane/bridge_client.h"
#include "tests/unit/dataplane/fake_qemu.h"
#include "tests/unit/dataplane/two_hosts.h"

namespace godwit::tests {
namespace {

constexpr std::uint64_t kPages = 16384;  // 64 MiB
constexpr std::uint64_t kBytes = kPages * 4096;

std::string id_of(char letter) { return std::string(16, letter); }

struct Move {
  std::size_t from = 0;
  std::size_t to = 1;
  std::string id;
  std::uint32_t epoch_base = 0;
  std::uint64_t ownership = 1;
  bool reuse = false;
};

const Move kFirst{.from = 0, .to = 1, .id = id_of('1'), .epoch_base = 10, .ownership = 1};

class RoundTrip : public testing::Test {
 protected:
  void SetUp() override { set_up(9000); }

  void set_up(unsigned mtu) {
    const std::string missing = hosts_.make_network(mtu);
    if (!missing.empty()) {
      GTEST_SKIP() << missing;
    }
    for (std::size_t host = 0; host < 2; ++host) {
      ASSERT_EQ(hosts_.start_daemon(host), "");
      ASSERT_TRUE(bridges_[host].connect(hosts_.socket(host))) << hosts_.log(host);
    }
  }

  void TearDown() override {
    for (std::size_t host = 0; host < 2; ++host) {
      EXPECT_EQ(hosts_.log(host).find("Sanitizer"), std::string::npos) << "a daemon built with a sanitizer complains";
    }
    if (HasFailure()) {
      for (std::size_t host = 0; host < 2; ++host) {
        std::fprintf(stderr, "---- log of host %zu\n%s", host, hosts_.log(host).c_str());
      }
    }
  }

  /// The reply of a request that must succeed.
  api::Reply ask(std::size_t host, const api::ToDataplane& request, const std::vector<int>& descriptors = {}) {
    const auto reply = bridges_[host].ask(request, descriptors);
    EXPECT_TRUE(reply.has_value()) << "no answer to " << request.ShortDebugString().substr(0, 200);
    EXPECT_EQ(reply ? reply->error().code() : api::Error::NONE, api::Error::NONE) << reply->error().text();
    return reply.value_or(api::Reply());
  }

  void make_guest(std::size_t host) {
    guests_[host] = std::make_unique<FakeQemu>(hosts_.directory(host) + "/vm.ram", kBytes);
    if (!guests_[host]->valid()) {
      GTEST_SKIP() << guests_[host]->error();
    }
  }

  api::AttachGuestResult attach(std::size_t host, api::AttachGuest::Kind kind, std::uint64_t ownership) {
    api::ToDataplane request;
    api::AttachGuest& attach = *request.mutable_attach_guest();
    guests_[host]->describe(attach);
    attach.set_vm_uuid(id_of('v'));
    attach.set_image_id(id_of('i'));
    attach.set_ownership(ownership);
    attach.set_kind(kind);
    attach.set_epoch(1);
    return ask(host, request, guests_[host]->descriptors()).attach_guest();
  }

  /// A filled guest on host 0 and an empty one on host 1, both attached. False: skipped.
  bool attach_both() {
    make_guest(0);
    make_guest(1);
    if (IsSkipped()) {
      return false;
    }
    fill(0);
    tracker_ = attach(0, api::AttachGuest::FRESH, 1).tracker();
    attach(1, api::AttachGuest::ARRIVING, 1);
    return true;
  }

  api::PrepareMigrationResult prepare(std::size_t host, const Move& move, api::Role role) {
    api::ToDataplane request;
    api::PrepareMigration& prepare = *request.mutable_prepare_migration();
    prepare.set_migration_id(move.id);
    prepare.set_vm_uuid(id_of('v'));
    prepare.set_ownership(move.ownership);
    prepare.set_role(role);
    prepare.set_epoch_base(move.epoch_base);
    prepare.set_epoch_count(1000);
    prepare.set_bytes_total(kBytes);
    if (move.reuse && role == api::ROLE_DESTINATION) {
      prepare.set_reuse_image_id(id_of('i'));
    }
    return ask(host, request).prepare_migration();
  }

  void start(std::size_t host, const Move& move, const api::Endpoint& peer) {
    api::ToDataplane request;
    api::StartMigration& start = *request.mutable_start_migration();
    start.set_migration_id(move.id);
    *start.mutable_peer() = peer;
    start.set_secret(std::string(32, 's'));
    start.mutable_policy()->set_downtime_limit_us(200'000);
    start.mutable_policy()->set_verify(api::VERIFY_FULL);
    start.mutable_policy()->set_bandwidth_limit_bps(bandwidth_bps_);
    ask(host, request);
  }

  bool wait(std::size_t host, api::Event::EventCase wanted, api::Event* out = nullptr) {
    std::string failure;
    const auto event = bridges_[host].wait_event([&](const api::Event& candidate) {
      if (candidate.has_migration_failed() && candidate.migration_failed().migration_id() == current_) {
        failure = candidate.migration_failed().error().text();
        return true;
      }
      return candidate.event_case() == wanted;
    });
    EXPECT_TRUE(event.has_value()) << "host " << host << ": the event did not come";
    EXPECT_EQ(failure, "") << "host " << host;
    if (event && out != nullptr) {
      *out = *event;
    }
    return event.has_value() && failure.empty();
  }

  api::FinishMigrationResult finish(std::size_t host, const Move& move, api::Outcome outcome, std::uint64_t ownership) {
    api::ToDataplane request;
    request.mutable_finish_migration()->set_migration_id(move.id);
    request.mutable_finish_migration()->set_outcome(outcome);
    request.mutable_finish_migration()->set_ownership(ownership);
    return ask(host, request).finish_migration();
  }

  void begin(const Move& move) {
    current_ = move.id;
    const auto source = prepare(move.from, move, api::ROLE_SOURCE);
    const auto destination = prepare(move.to, move, api::ROLE_DESTINATION);
    EXPECT_EQ(destination.image_accepted(), move.reuse) << destination.image_reason();
    start(move.to, move, source.endpoint());
    start(move.from, move, destination.endpoint());
  }

  void switch_over(const Move& move) {
    api::ToDataplane request;
    request.mutable_guest_stopped()->set_migration_id(move.id);
    ask(move.from, request);
    std::string state(200'000, '\0');
    std::mt19937_64 random(7);
    std::generate(state.begin(), state.end(), [&] { return static_cast<char>(random()); });
    for (std::size_t at = 0; at < state.size(); at += 65536) {
      request.mutable_device_state()->set_migration_id(move.id);
      request.mutable_device_state()->set_data(state.substr(at, 65536));
      ask(move.from, request);
    }
    request.mutable_device_state_end()->set_migration_id(move.id);
    ask(move.from, request);
    std::string arrived;
    for (bool end = false; !end;) {
      api::Event event;
      ASSERT_TRUE(wait(move.to, api::Event::kDeviceState, &event));
      arrived += event.device_state().data();
      end = event.device_state().end();
    }
    EXPECT_TRUE(arrived == state) << "the device state arrived otherwise than it was sent";
    ASSERT_TRUE(wait(move.to, api::Event::kMemoryReady));
    ASSERT_TRUE(wait(move.from, api::Event::kSourceDone));
  }

  void expect_equal_memory() {
    std::uint64_t different = 0;
    for (std::uint64_t page = 0; page < kPages; ++page) {
      different +=
          std::memcmp(guests_[0]->data().data() + page * 4096, guests_[1]->data().data() + page * 4096, 4096) != 0 ? 1U
                                                                                                                   : 0U;
    }
    EXPECT_EQ(different, 0U) << "pages differ";
  }

  void fill(std::size_t host) {
    std::mt19937_64 random(42);
    for (std::uint64_t page = 0; page < kPages; ++page) {
      if (page % 4 == 3) {
        continue;  // a hole
      }
      for (std::size_t word = 0; word < 512; ++word) {
        const std::uint64_t value = random();
        std::memcpy(guests_[host]->data().data() + page * 4096 + word * 8, &value, 8);
      }
    }
  }

  void there_and_back();

  std::string current_;              // migration; events of others are late ones
  std::uint64_t bandwidth_bps_ = 0;  // limit of the next migration; 0: none
  api::Tracker tracker_ = api::TRACKER_AUTO;
  TwoHosts hosts_{GODWIT_DATAPLANE};
  std::array<BridgeClient, 2> bridges_;
  std::array<std::unique_ptr<FakeQemu>, 2> guests_;
};

void RoundTrip::there_and_back() {
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

TEST_F(RoundTrip, OnlyWhatChangedComesHome) { there_and_back(); }

class SmallFrames : public RoundTrip {
 protected:
  void SetUp() override { set_up(1500); }
};
TEST_F(SmallFrames, PagesInFragmentsArriveWhole) { there_and_back(); }

/// Frames arrive at either lcore, whoever owns their lane.
class SeveralLcores : public RoundTrip {
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
