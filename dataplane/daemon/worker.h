#pragma once
// The Executor of one guest: a thread of its own for what takes long (scans, comparisons, files), one job at a time, in
// order. Anyone may submit; `done` comes back through the inbox given, on that inbox's thread. Destruction lets the
// running job end and drops the rest.

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

#include "dataplane/daemon/inbox.h"
#include "dataplane/transfer/executor.h"

namespace godwit::daemon {

class Worker {
 public:
  Worker();
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void submit(std::function<void()> work, Inbox& inbox, std::function<void()> done);

 private:
  struct Job {
    std::function<void()> work;
    Inbox* inbox;
    std::function<void()> done;
  };
  void run(const std::stop_token& stop);

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Job> jobs_;
  std::jthread thread_;
};

/// The Executor that transfer sees: jobs on the worker, `done` on the lcore of this inbox.
class WorkerExecutor final : public transfer::Executor {
 public:
  WorkerExecutor(Worker& worker, Inbox& inbox) : worker_(worker), inbox_(inbox) {}
  void submit(std::function<void()> work, std::function<void()> done) override {
    worker_.submit(std::move(work), inbox_, std::move(done));
  }

 private:
  Worker& worker_;
  Inbox& inbox_;
};

}  // namespace godwit::daemon
