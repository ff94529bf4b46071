#include "dataplane/daemon/inbox.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace godwit::daemon {
namespace {

TEST(Inbox, WhatIsPostedWhileItRunsWaitsForTheNextTurn) {
  int wakes = 0;
  Inbox inbox([&wakes] { ++wakes; });
  EXPECT_FALSE(inbox.run());
  std::vector<int> ran;
  inbox.post([&] {
    ran.push_back(1);
    inbox.post([&ran] { ran.push_back(3); });
  });
  inbox.post([&ran] { ran.push_back(2); });
  EXPECT_TRUE(inbox.run());
  EXPECT_EQ(ran, (std::vector<int>{1, 2}));
  EXPECT_TRUE(inbox.run());
  EXPECT_EQ(ran, (std::vector<int>{1, 2, 3}));
  EXPECT_FALSE(inbox.run());
  EXPECT_EQ(wakes, 3);
}

/// The owner sleeps until it is woken, as a poll loop at its doorbell does: a post that nobody is woken for never runs.
TEST(Inbox, OfManyThreadsEachIsRunOnceAndInItsOrder) {
  constexpr std::uint64_t kThreads = 3, kPosts = 2000;
  std::atomic<std::uint64_t> rings{0};
  Inbox inbox([&rings] {
    rings.fetch_add(1);
    rings.notify_one();
  });
  std::vector<std::uint64_t> last(kThreads);  // plain: only commands touch it, on the owner's thread
  std::uint64_t ran = 0;
  std::uint64_t wrong = 0;
  std::vector<std::thread> posters;
  for (std::uint64_t thread = 0; thread < kThreads; ++thread) {
    posters.emplace_back([&, thread] {
      for (std::uint64_t number = 1; number <= kPosts; ++number) {
        const auto carried = std::make_shared<std::uint64_t>(number);  // plain: the inbox orders it
        inbox.post([&, thread, carried] {
          wrong += *carried == last[thread] + 1 ? 0U : 1U;
          last[thread] = *carried;
          ++ran;
        });
      }
    });
  }
  for (std::uint64_t heard = 0; ran < kThreads * kPosts;) {
    rings.wait(heard);
    heard = rings.load();
    inbox.run();
  }
  for (std::thread& poster : posters) {
    poster.join();
  }
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(last, std::vector<std::uint64_t>(kThreads, kPosts));
}

}  // namespace
}  // namespace godwit::daemon
