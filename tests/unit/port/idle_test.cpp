#include "dataplane/port/idle.h"

#include <gtest/gtest.h>

namespace godwit::port {
namespace {

IdleOptions options(bool doorbell) {
  IdleOptions result;
  result.has_doorbell = doorbell;
  result.empty_polls = 3;
  return result;
}

/// Runs empty turns until the loop may sleep; the decision then.
Idle::Decision first_sleep(Idle& idle, Instant& now, Instant deadline = kNever) {
  for (int i = 0; i < 100'000; ++i) {
    const auto decision = idle.after_turn(now, false, deadline);
    if (decision.wait == Wait::kSleep) {
      return decision;
    }
    now = now + microseconds(1);
  }
  return {};
}

TEST(Idle, GoesFromPollingOverPausesAndYieldsToSleep) {
  Idle idle(options(true));
  Instant now{1'000'000};
  EXPECT_EQ(idle.after_turn(now, false, kNever).wait, Wait::kNone);
  now = now + microseconds(10);
  for (int i = 0; i < 3; ++i) {
    idle.after_turn(now, false, kNever);
  }
  EXPECT_EQ(idle.after_turn(now, false, kNever).wait, Wait::kPause);
  now = now + microseconds(60);
  EXPECT_EQ(idle.after_turn(now, false, kNever).wait, Wait::kYield);
  now = now + microseconds(200);
  EXPECT_EQ(idle.after_turn(now, false, kNever).wait, Wait::kSleep);
}

TEST(Idle, WorkStartsOver) {
  Idle idle(options(true));
  Instant now{0};
  first_sleep(idle, now);
  EXPECT_EQ(idle.after_turn(now, true, kNever).wait, Wait::kNone);
  EXPECT_EQ(idle.after_turn(now, false, kNever).wait, Wait::kNone);
}

TEST(Idle, ASleepNeverPassesTheDeadline) {
  Idle idle(options(true));
  Instant now{0};
  first_sleep(idle, now);
  EXPECT_EQ(idle.after_turn(now, false, now + microseconds(7)).sleep, microseconds(7));
  EXPECT_EQ(idle.after_turn(now, false, now).wait, Wait::kNone) << "a deadline that is reached is work";
}

TEST(Idle, WithoutDoorbellSleepsAreShortAndDouble) {
  Idle idle(options(false));
  Instant now{0};
  EXPECT_EQ(first_sleep(idle, now).sleep, microseconds(50));
  EXPECT_EQ(idle.after_turn(now, false, kNever).sleep, microseconds(100));
  for (int i = 0; i < 10; ++i) {
    idle.after_turn(now, false, kNever);
  }
  EXPECT_EQ(idle.after_turn(now, false, kNever).sleep, IdleOptions{}.sleep_longest);
}

TEST(Idle, OnACoreThatOthersUseItSleepsAtOnce) {
  Idle idle(options(true));
  Instant now{0};
  idle.after_turn(now, false, kNever);
  now = now + microseconds(500);  // somebody else ran
  EXPECT_EQ(idle.after_turn(now, false, kNever).wait, Wait::kSleep);
  now = now + microseconds(10);
  EXPECT_EQ(idle.after_turn(now, true, kNever).wait, Wait::kNone);
  now = now + microseconds(10);
  EXPECT_EQ(idle.after_turn(now, false, kNever).wait, Wait::kSleep);
  now = now + milliseconds(30);  // asleep: that says nothing of others
  EXPECT_EQ(idle.after_turn(now, true, kNever).wait, Wait::kNone);
  EXPECT_EQ(idle.after_turn(now, false, kNever).wait, Wait::kNone);
}

TEST(Idle, ALongTurnWithWorkTellsOfNobody) {
  Idle idle(options(true));
  Instant now{0};
  idle.after_turn(now, false, kNever);
  now = now + microseconds(500);
  EXPECT_EQ(idle.after_turn(now, true, kNever).wait, Wait::kNone);
  EXPECT_EQ(idle.after_turn(now, false, kNever).wait, Wait::kNone);
}

TEST(Idle, PollModeNeverWaits) {
  IdleOptions poll = options(true);
  poll.mode = IdleMode::kPoll;
  Idle idle(poll);
  for (std::int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(idle.after_turn(Instant{i * 1'000'000}, false, kNever).wait, Wait::kNone);
  }
}

}  // namespace
}  // namespace godwit::port
