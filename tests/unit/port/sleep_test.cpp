// Threads that sleep and threads that wake them. A wake-up that is lost shows as a wrong count, or as a test that does
// not end; an order that is missing, to ThreadSanitizer.

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/spsc_ring.h"
#include "dataplane/port/doorbell.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/port/sleep_flag.h"

namespace godwit::port {
namespace {

/// And for so long that whoever is not woken does not end the test.
constexpr IdleOptions kSleepsAtOnce{.has_doorbell = true,
                                    .empty_polls = 0,
                                    .yield_after = {0},
                                    .sleep_after = {0},
                                    .sleep_with_doorbell = milliseconds(3'600'000)};

/// Where two threads wait for each other, again and again.
class Gate {
 public:
  void pass() {
    const std::uint64_t both = arrived_.fetch_add(1, std::memory_order_acq_rel) / 2 * 2 + 2;
    for (int tries = 0; arrived_.load(std::memory_order_acquire) < both; ++tries) {
      if (tries > 1000) {
        std::this_thread::yield();  // the other has no core
      }
    }
  }

 private:
  std::atomic<std::uint64_t> arrived_{0};
};

/// Onto the `index`-th CPU that this process may use: threads that take turns on one CPU never meet.
void run_on(std::size_t index) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  ASSERT_EQ(sched_getaffinity(getpid(), sizeof allowed, &allowed), 0);
  index %= static_cast<std::size_t>(CPU_COUNT(&allowed));
  std::size_t cpu = 0;
  while (!CPU_ISSET(cpu, &allowed) || index-- > 0) {
    ++cpu;
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  ASSERT_EQ(pthread_setaffinity_np(pthread_self(), sizeof one, &one), 0);
}

void linger(std::uint64_t turns) {
  for (volatile std::uint64_t left = turns; left > 0;) {
    left = left - 1;
  }
}

TEST(SleepFlag, EitherTheSleeperSeesTheWorkOrWhoBringsItSeesTheSleep) {
  constexpr std::uint64_t kRounds = 50'000;
  SleepFlag flag;
  std::atomic<std::uint64_t> work{0};
  Gate gate;
  std::vector<std::uint8_t> told(kRounds + 1);
  std::thread bringer([&] {
    run_on(0);
    for (std::uint64_t round = 1; round <= kRounds; ++round) {
      gate.pass();
      linger(round % 16);
      work.store(round, std::memory_order_relaxed);
      told[round] = flag.take() ? 1 : 0;
      gate.pass();
    }
  });
  std::vector<std::uint8_t> seen(kRounds + 1);
  std::thread sleeper([&] {
    run_on(1);
    for (std::uint64_t round = 1; round <= kRounds; ++round) {
      gate.pass();
      linger(round / 16 % 16);
      flag.set(true);
      seen[round] = work.load(std::memory_order_relaxed) == round ? 1 : 0;
      gate.pass();
      flag.set(false);
    }
  });
  bringer.join();
  sleeper.join();
  std::uint64_t slept_through = 0;
  for (std::uint64_t round = 1; round <= kRounds; ++round) {
    slept_through += told[round] == 0 && seen[round] == 0 ? 1U : 0U;
  }
  EXPECT_EQ(slept_through, 0U) << "of " << kRounds;
}

TEST(SleepFlag, WhoIsToldOfTheSleepSeesAllThatTheSleeperDidBefore) {
  constexpr std::uint64_t kRounds = 20'000;
  SleepFlag flag;
  std::uint64_t written = 0;  // plain: the flag alone orders it
  std::atomic<std::uint64_t> asked{0};
  std::thread asker([&] {
    for (std::uint64_t round = 1; round <= kRounds; ++round) {
      while (!flag.take()) {
        std::this_thread::yield();
      }
      EXPECT_EQ(written, round);
      asked.store(round, std::memory_order_release);
    }
  });
  for (std::uint64_t round = 1; round <= kRounds; ++round) {
    written = round;
    flag.set(true);
    while (asked.load(std::memory_order_acquire) < round) {
      std::this_thread::yield();
    }
  }
  asker.join();
}

TEST(SleepFlag, OfSeveralOneIsToldToWake) {
  SleepFlag flag;
  EXPECT_FALSE(flag.take());
  flag.set(true);
  EXPECT_TRUE(flag.take());
  EXPECT_FALSE(flag.take());
  flag.set(true);
  flag.set(false);
  EXPECT_FALSE(flag.take());
}

/// A loop that has nothing to do but what comes through the ring, and sleeps as soon as it may.
class Sleeper final : public PollLoopUser {
 public:
  bool turn(Instant) override {
    bool found = false;
    for (std::uint64_t item = 0; work.pop(item); found = true) {
      in_order = in_order && item == taken + 1;
      taken = item;
      idle.store(false, std::memory_order_relaxed);
      done.store(item, std::memory_order_release);
    }
    return found;
  }
  [[nodiscard]] Instant deadline() const override { return kNever; }
  void sleeping(bool asleep) override {
    flag.set(asleep);
    idle.store(true, std::memory_order_relaxed);
  }

  SpscRing<std::uint64_t> work{16};
  SleepFlag flag;
  std::uint64_t taken = 0;  // the loop's own
  bool in_order = true;
  std::atomic<std::uint64_t> done{0};
  std::atomic<bool> idle{false};  // since the last item
};

/// Work comes after the turn that found nothing, and before it is said that the lcore sleeps: nobody wakes it.
TEST(PollLoop, LooksOnceMoreAfterItHasSaidThatItSleeps) {
  class User final : public PollLoopUser {
   public:
    bool turn(Instant) override {
      if (work_came) {
        loop->stop();
      }
      return work_came;
    }
    [[nodiscard]] Instant deadline() const override { return kNever; }
    void sleeping(bool) override { work_came = true; }

    PollLoop* loop = nullptr;
    bool work_came = false;
  };
  auto doorbell = Doorbell::open();
  ASSERT_TRUE(doorbell) << doorbell.error().text;
  User user;
  PollLoop loop(user, *doorbell, kSleepsAtOnce);
  user.loop = &loop;
  loop.run();
  EXPECT_EQ(loop.counters().sleeps.get(), 0U);
}

TEST(PollLoop, EveryNudgeEndsASleepThatWouldLastForever) {
  constexpr std::uint64_t kItems = 2000;
  auto doorbell = Doorbell::open();
  ASSERT_TRUE(doorbell) << doorbell.error().text;
  Sleeper sleeper;
  PollLoop loop(sleeper, *doorbell, kSleepsAtOnce);
  std::thread lcore([&loop] { loop.run(); });
  for (std::uint64_t item = 1; item <= kItems; ++item) {
    std::uint64_t copy = item;
    EXPECT_TRUE(sleeper.work.push(std::move(copy)));
    if (sleeper.flag.take()) {
      loop.kick();
    }
    while (sleeper.done.load(std::memory_order_acquire) < item) {
      std::this_thread::yield();
    }
    while (item % 2 == 0 && !sleeper.idle.load(std::memory_order_relaxed)) {
      std::this_thread::yield();  // every other item meets it on its way to sleep, or asleep
    }
    EXPECT_LE(loop.counters().sleeps, loop.counters().turns);  // read while they are written
  }
  loop.stop();
  lcore.join();
  EXPECT_TRUE(sleeper.in_order);
  EXPECT_EQ(sleeper.taken, kItems);
  EXPECT_GT(loop.counters().sleeps.get(), 0U);
}

}  // namespace
}  // namespace godwit::port
