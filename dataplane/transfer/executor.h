#pragma once
// Where transfer runs what takes long (scans, comparisons, hashing, codecs, files), so that no lcore ever waits.
// The daemon runs jobs on a worker thread; the simulation runs them in virtual time.

#include <functional>

namespace godwit::transfer {

class Executor {
 public:
  virtual ~Executor() = default;
  /// Runs `work` somewhere else, one job of this executor at a time and in order, then `done` on the caller's lcore.
  virtual void submit(std::function<void()> work, std::function<void()> done) = 0;
};

}  // namespace godwit::transfer
