#pragma once
// Runs one lcore's loop: a turn of its user, then as much waiting as Idle allows, until told to stop. run() on the
// lcore, the rest anywhere. It keeps no queue and no state of the data path; those are its user's.

#include <atomic>
#include <cstdint>

#include "base/single_writer.h"
#include "base/time.h"
#include "dataplane/port/doorbell.h"
#include "dataplane/port/idle.h"

namespace godwit::port {

/// The only clock of the data path: CLOCK_MONOTONIC.
Instant now();
/// A counter of the CPU's that runs at this many a second, whatever its clock does. x86-64.
inline std::uint64_t cycles() { return __builtin_ia32_rdtsc(); }
std::uint64_t cycles_per_s();

class PollLoopUser {
 public:
  virtual ~PollLoopUser() = default;
  /// One pass over everything; true: found work.
  virtual bool turn(Instant now) = 0;
  /// When turn() must be called at the latest, though nothing arrives.
  [[nodiscard]] virtual Instant deadline() const = 0;
  /// Before (true) and after (false) the lcore sleeps.
  virtual void sleeping(bool) {}
};

/// Where an lcore's time has gone: turns that found work, turns that did not, sleep. One writer, the lcore.
struct LoopCounters {
  SingleWriter<std::uint64_t> turns, sleeps, busy_ns, polling_ns, asleep_ns;
};

class PollLoop {
 public:
  PollLoop(PollLoopUser& user, Doorbell& doorbell, const IdleOptions& options)
      : user_(user), doorbell_(doorbell), idle_(options) {}

  void run();
  void stop();
  /// Something for the loop to find: wakes it if it sleeps.
  void kick() const { doorbell_.kick(); }
  [[nodiscard]] const LoopCounters& counters() const { return counters_; }

 private:
  void sleep(Duration longest);
  /// Up to now the lcore did this.
  void spent(SingleWriter<std::uint64_t>& on, Instant now);

  PollLoopUser& user_;
  Doorbell& doorbell_;
  Idle idle_;
  std::atomic<bool> stop_{false};
  Instant counted_to_{};
  LoopCounters counters_;
};

}  // namespace godwit::port
