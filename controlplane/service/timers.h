#pragma once
// One thread that runs functions later, each with the coordinator's mutex held. Callers of schedule() and cancel() hold
// it too; so a cancelled function never runs. Functions scheduled when Timers goes are dropped. Delays are monotonic
// time.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "base/time.h"

namespace godwit::controlplane {

class Timers {
 public:
  using Id = std::uint64_t;
  static constexpr Id kNone = 0;

  explicit Timers(std::mutex& guard) : guard_(guard), thread_([this] { run(); }) {}
  ~Timers() { stop(); }
  Timers(const Timers&) = delete;
  Timers& operator=(const Timers&) = delete;

  Id schedule(Duration after, std::function<void()> function);
  /// Sets `id` to kNone; one that ran already or kNone is no error.
  void cancel(Id& id);
  /// No function runs any more once this returns. Not under the guard.
  void stop();

 private:
  using Clock = std::chrono::steady_clock;
  struct Item {
    Id id;
    std::function<void()> function;
  };

  void run();

  std::mutex& guard_;
  std::mutex mutex_;  // taken after guard_
  std::condition_variable wake_;
  std::multimap<Clock::time_point, Item> items_;
  std::unordered_map<Id, std::multimap<Clock::time_point, Item>::iterator> by_id_;
  Id last_id_ = kNone;
  bool stopping_ = false;
  std::thread thread_;  // last: started when all else is there
};

}  // namespace godwit::controlplane
