#include "qemu-bridge/agent/serial_queue.h"

#include "base/check.h"

namespace godwit::bridge {

SerialQueue::SerialQueue() : thread_([this] { run(); }) {}

SerialQueue::~SerialQueue() { stop(); }

void SerialQueue::post(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  if (!stopping_) {
    tasks_.push_back(std::move(task));
    changed_.notify_one();
  }
}

void SerialQueue::stop() {
  GW_ASSERT(!in_queue_thread());
  std::deque<std::function<void()>> dropped;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    dropped.swap(tasks_);
    changed_.notify_one();
  }
  if (thread_.joinable()) {
    thread_.join();
  }
}

void SerialQueue::run() {
  while (true) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
      if (stopping_) {
        return;
      }
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace godwit::bridge
