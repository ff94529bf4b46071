#pragma once
// Two daemons over a veth pair, and the test as both bridges and both QEMUs: what a migration asks of each, one step a
// call. The guest of host 0 is filled by attach_both(); mode_ says how it moves. Tests only.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "base/uuid.h"
#include "tests/unit/dataplane/bridge_client.h"
#include "tests/unit/dataplane/fake_qemu.h"
#include "tests/unit/dataplane/two_hosts.h"

namespace godwit::tests {

inline constexpr std::uint64_t kPages = 16384;  // 64 MiB
inline constexpr std::uint64_t kBytes = kPages * 4096;

/// What is tested.
std::string daemon_program();

inline std::string id_of(char letter) { return std::string(16, letter); }

struct Move {
  std::size_t from = 0;
  std::size_t to = 1;
  std::string id;
  std::uint32_t epoch_base = 0;
  std::uint64_t ownership = 1;
  bool reuse = false;
};

inline const Move kFirst{.from = 0, .to = 1, .id = id_of('1'), .epoch_base = 10, .ownership = 1};

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

  api::ToDataplane attach_request(std::size_t host, api::AttachGuest::Kind kind, std::uint64_t ownership) {
    api::ToDataplane request;
    api::AttachGuest& attach = *request.mutable_attach_guest();
    guests_[host]->describe(attach);
    attach.set_vm_uuid(id_of('v'));
    attach.set_image_id(id_of('i'));
    attach.set_ownership(ownership);
    attach.set_kind(kind);
    attach.set_epoch(1);
    attach.set_demand_paging(mode_ != api::PRECOPY && kind != api::AttachGuest::FRESH);
    attach.set_paging_epoch(kind == api::AttachGuest::CONTINUING ? kFirst.epoch_base : 0);
    return request;
  }

  api::AttachGuestResult attach(std::size_t host, api::AttachGuest::Kind kind, std::uint64_t ownership) {
    return ask(host, attach_request(host, kind, ownership), guests_[host]->descriptors()).attach_guest();
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
    prepare.set_mode(mode_);
    if (move.reuse && role == api::ROLE_DESTINATION) {
      prepare.set_reuse_image_id(id_of('i'));
    }
    return ask(host, request).prepare_migration();
  }

  [[nodiscard]] api::MigrationPolicy policy() const {
    api::MigrationPolicy policy;
    policy.set_downtime_limit_us(200'000);
    policy.set_verify(api::VERIFY_FULL);
    policy.set_bandwidth_limit_bps(bandwidth_bps_);
    policy.set_mode(mode_);
    return policy;
  }

  void start(std::size_t host, const Move& move, const api::Endpoint& peer) {
    api::ToDataplane request;
    api::StartMigration& start = *request.mutable_start_migration();
    start.set_migration_id(move.id);
    *start.mutable_peer() = peer;
    start.set_secret(std::string(32, 's'));
    *start.mutable_policy() = policy();
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
    api::Event ready;
    ASSERT_TRUE(wait(move.to, api::Event::kMemoryReady, &ready));
    pages_missing_ = ready.memory_ready().pages_missing();
    if (mode_ == api::PRECOPY) {
      ASSERT_TRUE(wait(move.from, api::Event::kSourceDone));
    }
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

  std::string current_;              // migration; events of others are late ones
  std::uint64_t bandwidth_bps_ = 0;  // limit of the next migration; 0: none
  api::Mode mode_ = api::PRECOPY;    // of migrations, and of guests that arrive
  std::uint64_t pages_missing_ = 0;  // at the last switch
  api::Tracker tracker_ = api::TRACKER_AUTO;
  TwoHosts hosts_{daemon_program()};
  std::array<BridgeClient, 2> bridges_;
  std::array<std::unique_ptr<FakeQemu>, 2> guests_;
};

}  // namespace godwit::tests
