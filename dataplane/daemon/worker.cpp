#include "dataplane/daemon/worker.h"

#include <pthread.h>

#include <utility>

namespace godwit::daemon {

Worker::Worker() : thread_([this](const std::stop_token& stop) { run(stop); }) {
  pthread_setname_np(thread_.native_handle(), "gw-worker");
}

Worker::~Worker() {
  thread_.request_stop();
  thread_.join();
}

void Worker::submit(std::function<void()> work, Inbox& inbox, std::function<void()> done) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back({std::move(work), &inbox, std::move(done)});
  }
  changed_.notify_one();
}

void Worker::run(const std::stop_token& stop) {
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [this] { return !jobs_.empty(); })) {
        return;
      }
      if (stop.stop_requested()) {
        return;
      }
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job.work();
    job.inbox->post(std::move(job.done));
  }
}

}  // namespace godwit::daemon
