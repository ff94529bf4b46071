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
  if (awake_ && empty_ > 0 && now - last_turn_ > options_.gap_of_others) {
    shared_until_ = now + options_.shared_for;
  }
  ++empty_;
  last_turn_ = now;
  awake_ = true;
  if (deadline <= now) {
    return {};
  }
  if (options_.has_doorbell && now < shared_until_) {
    return sleep(options_.sleep_with_doorbell, now, deadline);
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
  Duration longest = options_.sleep_with_doorbell;
  if (!options_.has_doorbell) {
    longest = sleep_next_;
    sleep_next_ = std::min(options_.sleep_longest, sleep_next_ * 2);
  }
  return sleep(longest, now, deadline);
}

Idle::Decision Idle::sleep(Duration longest, Instant now, Instant deadline) {
  awake_ = false;
  return {Wait::kSleep, deadline != kNever ? std::min(longest, deadline - now) : longest};
}

}  // namespace godwit::port
