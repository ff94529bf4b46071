#include "dataplane/port/poll_loop.h"

#include <rte_pause.h>
#include <sched.h>

#include <algorithm>
#include <ctime>

namespace godwit::port {

Instant now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return {static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec};
}

void PollLoop::run() {
  while (!stop_.load(std::memory_order_relaxed)) {
    const Instant start = now();
    const bool found = user_.turn(start);
    turns_.fetch_add(1, std::memory_order_relaxed);
    const Idle::Decision decision = idle_.after_turn(start, found, user_.deadline());
    switch (decision.wait) {
      case Wait::kNone:
        break;
      case Wait::kPause:
        rte_pause();
        break;
      case Wait::kYield:
        sched_yield();
        break;
      case Wait::kSleep:
        sleep(decision.sleep);
        break;
    }
  }
}

void PollLoop::sleep(Duration longest) {
  // Forget old rings, look once more, and only then sleep: what comes in between rings again.
  doorbell_.clear();
  user_.sleeping(true);
  const Instant start = now();
  if (!user_.turn(start)) {
    sleeps_.fetch_add(1, std::memory_order_relaxed);
    const Instant deadline = user_.deadline();
    doorbell_.wait(deadline == kNever ? longest : std::min(longest, deadline - start));
  }
  user_.sleeping(false);
}

void PollLoop::stop() {
  stop_.store(true, std::memory_order_relaxed);
  doorbell_.kick();
}

}  // namespace godwit::port
