#pragma once
// Runs one lcore's loop: a turn of its user, then as much waiting as Idle allows, until told to stop. run() on the
// lcore, the rest anywhere. It keeps no queue and no state of the data path; those are its user's.

#include <atomic>
#include <cstdint>

#include "base/time.h"
#include "dataplane/port/doorbell.h"
#include "dataplane/port/idle.h"

namespace godwit::port {

/// The only clock of the data path: CLOCK_MONOTONIC.
Instant now();

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

class PollLoop {
 public:
  PollLoop(PollLoopUser& user, Doorbell& doorbell, const IdleOptions& options)
      : user_(user), doorbell_(doorbell), idle_(options) {}

  void run();
  void stop();
  /// Something for the loop to find: wakes it if it sleeps.
  void kick() const { doorbell_.kick(); }
  [[nodiscard]] std::uint64_t turns() const { return turns_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t sleeps() const { return sleeps_.load(std::memory_order_relaxed); }

 private:
  void sleep(Duration longest);

  PollLoopUser& user_;
  Doorbell& doorbell_;
  Idle idle_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> turns_{0};
  std::atomic<std::uint64_t> sleeps_{0};
};

}  // namespace godwit::port
