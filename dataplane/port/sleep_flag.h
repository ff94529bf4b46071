#pragma once
// Whether an lcore sleeps, so that others wake it, and pay for waking, only then.
//
// The sleeper says that it is about to sleep, and then looks for work once more; who has work for it puts it there, and
// then asks. Both are exchanges of one word, so one of them comes first, and the other sees what went before it: either
// the look finds the work, or who asks is told of the sleep. Plain stores and loads would not do: on x86 too, a load
// overtakes a store before it. Asking costs a locked instruction, as a fence would: once a burst, not a packet.
// Thread: as each method says. Failure: none.

#include <atomic>

namespace godwit::port {

class alignas(64) SleepFlag {  // a cache line of its own: askers write it
 public:
  // ---- the sleeper ----
  /// True before its last look, false when it is awake again.
  void set(bool asleep) { asleep_.exchange(asleep, std::memory_order_acq_rel); }
  // ---- any other thread ----
  /// True: wake it. Of several that ask only the first is told so.
  [[nodiscard]] bool take() { return asleep_.exchange(false, std::memory_order_acq_rel); }

 private:
  std::atomic<bool> asleep_{false};
};

}  // namespace godwit::port
