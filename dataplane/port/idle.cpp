#include "dataplane/port/idle.h"

#include <algorithm>

namespace godwit::port {

Idle::Decision Idle::after_turn(Instant now, bool found_work, Instant deadline) {
  if (found_work || options_.mode == IdleMode::kPoll) {
    empty_ = 0;
    return {};
  }
  if (empty_ == 0) {
    idle_since_ = now;
    sleep_next_ = options_.sleep_first;
  }
  ++empty_;
  if (deadline <= now) {
    return {};
  }
  if (empty_ <= options_.empty_polls && now - idle_since_ < options_.yield_after) {
    return {};
  }
  const Duration idle = now - idle_since_;
  if (idle < options_.yield_after) {
    return {Wait::kPause, {}};
  }
  if (idle < options_.sleep_after) {
    return {Wait::kYield, {}};
  }
  Duration sleep = options_.sleep_with_doorbell;
  if (!options_.has_doorbell) {
    sleep = sleep_next_;
    sleep_next_ = std::min(options_.sleep_longest, sleep_next_ * 2);
  }
  if (deadline != kNever) {
    sleep = std::min(sleep, deadline - now);
  }
  return {Wait::kSleep, sleep};
}

}  // namespace godwit::port
