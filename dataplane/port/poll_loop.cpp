#include "dataplane/port/poll_loop.h"

#include <rte_cycles.h>
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

std::uint64_t cycles_per_s() { return rte_get_tsc_hz(); }

void PollLoop::run() {
  counted_to_ = now();
  bool found = false;
  while (!stop_.load(std::memory_order_relaxed)) {
    const Instant start = now();
    spent(found ? counters_.busy_ns : counters_.polling_ns, start);  // the turn before
    found = user_.turn(start);
    ++counters_.turns;
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
  // Look once more, and only then sleep: what comes in between rings.
  user_.sleeping(true);
  const Instant start = now();
  if (!user_.turn(start)) {
    ++counters_.sleeps;
    spent(counters_.polling_ns, start);
    const Instant deadline = user_.deadline();
    doorbell_.wait(deadline == kNever ? longest : std::min(longest, deadline - start));
    spent(counters_.asleep_ns, now());
  }
  user_.sleeping(false);
}

void PollLoop::spent(SingleWriter<std::uint64_t>& on, Instant now) {
  on += static_cast<std::uint64_t>((now - counted_to_).ns);
  counted_to_ = now;
}

void PollLoop::stop() {
  stop_.store(true, std::memory_order_relaxed);
  doorbell_.kick();
}

}  // namespace godwit::port
