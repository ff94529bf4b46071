#pragma once
// Decides how an lcore's loop waits when a turn found nothing to do: keeps polling, pauses, yields, and at last sleeps.
// Pure: told the time, never reads it. One per lcore. A poll that finds work at any step starts over at POLL.
//
// On a core that others use too it sleeps at once. A time in which the loop did not run between two empty turns tells
// of them; the kernel would make each of them wait for a slice of milliseconds behind a loop that only looks.

#include <cstdint>

#include "base/time.h"

namespace godwit::port {

enum class IdleMode : std::uint8_t { kAdaptive, kPoll };
enum class Wait : std::uint8_t { kNone, kPause, kYield, kSleep };

struct IdleOptions {
  IdleMode mode = IdleMode::kAdaptive;
  /// What wakes a sleeping loop at once. Without a doorbell for received frames the sleep is short and doubles.
  bool has_doorbell = false;
  std::uint32_t empty_polls = 200;
  /// Other threads (vCPUs) want this core: yield after this long, sleep after that.
  Duration yield_after = microseconds(50);
  /// Between two empty turns; a turn takes one or two, an interrupt less than this, and whoever computes longer.
  Duration gap_of_others = microseconds(100);
  Duration shared_for = milliseconds(20);  // after such a gap
  Duration sleep_after = microseconds(200);
  Duration sleep_first = microseconds(50);
  Duration sleep_longest = milliseconds(2);  // 1 ms cost more than 2 % of a core over memif
  Duration sleep_with_doorbell = milliseconds(100);
};

class Idle {
 public:
  explicit Idle(const IdleOptions& options) : options_(options) {}

  struct Decision {
    Wait wait = Wait::kNone;
    Duration sleep{0};  // kSleep only, at most
  };
  /// After each turn. `deadline` is the loop's next timer; a sleep never passes it.
  Decision after_turn(Instant now, bool found_work, Instant deadline);

 private:
  Decision sleep(Duration longest, Instant now, Instant deadline);

  IdleOptions options_;
  std::uint32_t empty_ = 0;
  Instant idle_since_{0};
  Instant last_turn_{0};
  bool awake_ = false;  // ever since
  Instant shared_until_{0};
  Duration sleep_next_{0};
};

}  // namespace godwit::port
