// Goal: eviction over the network under load loses no write and brings nothing of before back. Method: threads of this
// process, the guest, add to counters in its memory, each of which they know, while its main host keeps to a budget of
// a quarter of it and two real daemons carry pages over a veth pair; round after round the page store that has them
// hands all over to another one. Counted in pages and rounds; how long: a minute where CI is set, else some seconds, or
// GODWIT_TORTURE_SECONDS.

#include <poll.h>

#include <cinttypes>
#include <cstdlib>
#include <optional>

#include "tests/unit/dataplane/split_vm.h"
#include "tests/unit/memory/counters.h"

namespace godwit::tests {
namespace {

constexpr std::uint32_t kThreads = 2;
constexpr std::uint32_t kRoundsMin = 2;
constexpr std::uint64_t kRefetchedMin = 2 * kPages;
constexpr int kLookEveryMs = 20;
constexpr int kLooksMax = 6'000;  // two minutes: only to end a test that hangs
constexpr std::chrono::seconds kStopLimit(60);

std::string store_of(std::uint32_t round) {
  return round == 0 ? kStore : std::string(12, 'r') + std::to_string(1000 + round);
}

class SplitTorture : public SplitVm {
 protected:
  void TearDown() override {
    if (counters_ && !counters_->stop_within(std::chrono::seconds(0))) {
      guests_[0]->give_up_waiting();
    }
    counters_.reset();
    SplitVm::TearDown();
  }

  bool begin_under_load() {
    make_guest(0);
    if (IsSkipped()) {
      return false;
    }
    fill(0);
    const auto ram = guests_[0]->data();
    counters_.emplace(ram.data(), kPages, kThreads);
    for (std::uint64_t page = 0; page < kPages; ++page) {
      counters_->write_to(page, ram.subspan(page * 4096, 4096));
    }
    expected_.assign(ram.begin(), ram.end());
    counters_->begin();
    attach_and_split();
    connect(true, 's');
    return !HasFailure();
  }

  /// The store of this round, and the one before if there is one, which is to hand over what it has.
  static api::ToDataplane request_of(std::uint32_t round, bool with_former) {
    auto request = split_request();
    api::SplitGuest& split = *request.mutable_split_guest();
    split.clear_stores();
    for (std::uint32_t store = with_former ? round - 1 : round; store <= round; ++store) {
      api::SubStore& its = *split.add_stores();
      its.set_store_id(store_of(store));
      its.set_sub(store);
      its.set_drain(store < round);
    }
    return request;
  }
  /// Until it holds; the resident set is looked at meanwhile.
  bool wait_until(const std::function<bool(const api::SplitStatus&)>& holds) {
    for (int looks = 0; looks < kLooksMax && !HasFailure(); ++looks) {
      const auto now = status(0);
      if (now.splits_size() == 1 && holds(now.splits(0))) {
        return true;
      }
      resident_most_ = std::max(resident_most_, resident());
      poll(nullptr, 0, kLookEveryMs);
    }
    return false;
  }
  void hand_over(std::uint32_t round) {
    ask(0, request_of(round, true), {pipe_[0], pipe_[1]});
    connect(true, 't', store_of(round));
    ASSERT_TRUE(wait_until([](const api::SplitStatus& now) { return now.subs(0).drained(); })) << round;
    ask(0, request_of(round, false), {pipe_[0], pipe_[1]});
    api::ToDataplane drop;
    drop.mutable_drop_store()->set_store_id(store_of(round - 1));
    ask(1, drop);
  }
  /// All of them, wherever they are.
  std::uint64_t wrong_pages() {
    std::uint64_t wrong = 0;
    for (std::uint64_t page = 0; page < kPages; ++page) {
      const auto expected = std::span(expected_).subspan(page * 4096, 4096);
      counters_->write_to(page, expected);
      wrong += std::ranges::equal(guests_[0]->data().subspan(page * 4096, 4096), expected) ? 0U : 1U;
    }
    return wrong;
  }

  std::optional<memory::test::Counters> counters_;
};

TEST_F(SplitTorture, NoWriteIsLostOnItsWayThereAndBack) {
  if (!begin_under_load()) {
    return;
  }
  ASSERT_TRUE(wait_until([](const api::SplitStatus& now) { return now.resident_bytes() <= kBudget; }));
  resident_most_ = 0;
  const auto time = memory::test::torture_time(std::chrono::seconds(std::getenv("CI") != nullptr ? 60 : 5));
  const auto end = std::chrono::steady_clock::now() + time;
  std::uint32_t round = 0;
  while (std::chrono::steady_clock::now() < end || round < kRoundsMin) {
    ASSERT_NO_FATAL_FAILURE(hand_over(++round));
  }
  ASSERT_TRUE(wait_until([](const api::SplitStatus& now) { return now.refetched_pages() >= kRefetchedMin; }));
  ASSERT_TRUE(counters_->stop_within(kStopLimit)) << "somebody waits for a page in vain";
  const std::uint64_t wrong = wrong_pages();
  const api::SplitStatus now = status(0).splits(0);
  std::printf("rounds %u, pages refetched %" PRIu64 ", recalled %" PRIu64 ", moved %" PRIu64 ", additions %" PRIu64
              ", resident at most %" PRIu64 " KiB\n",
              round, now.refetched_pages(), now.recalled_pages(), now.moved_pages(), counters_->additions(),
              resident_most_ >> 10);
  EXPECT_EQ(counters_->wrong_met(), 0U) << "counters were not what was written last";
  EXPECT_EQ(wrong, 0U) << "pages";
  EXPECT_GT(now.recalled_pages(), 0U);
  EXPECT_GT(now.moved_pages(), 0U);
  EXPECT_EQ(now.subs(0).pages_lost(), 0U);
  EXPECT_EQ(now.problem(), "");
  EXPECT_LE(resident_most_, kBudget);
}

}  // namespace
}  // namespace godwit::tests
