#include "controlplane/service/timers.h"

#include <utility>

namespace godwit::controlplane {

void Timers::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) {
    thread_.join();
  }
}

Timers::Id Timers::schedule(Duration after, std::function<void()> function) {
  const std::lock_guard lock(mutex_);
  const Id id = ++last_id_;
  const auto due = Clock::now() + std::chrono::nanoseconds(after.ns);
  const auto item = items_.emplace(due, Item{id, std::move(function)});
  by_id_.emplace(id, item);
  if (item == items_.begin()) {
    wake_.notify_one();
  }
  return id;
}

void Timers::cancel(Id& id) {
  const std::lock_guard lock(mutex_);
  if (const auto found = by_id_.find(std::exchange(id, kNone)); found != by_id_.end()) {
    items_.erase(found->second);
    by_id_.erase(found);
  }
}

void Timers::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (items_.empty()) {
      wake_.wait(lock);
      continue;
    }
    if (const auto due = items_.begin()->first; Clock::now() < due) {
      wake_.wait_until(lock, due);
      continue;
    }
    lock.unlock();
    {
      const std::lock_guard guard(guard_);
      lock.lock();
      // The first may have been cancelled, or another have come before it, while neither lock was held.
      if (stopping_ || items_.empty() || Clock::now() < items_.begin()->first) {
        continue;
      }
      const auto item = items_.begin();
      const auto function = std::move(item->second.function);
      by_id_.erase(item->second.id);
      items_.erase(item);
      lock.unlock();
      function();
    }
    lock.lock();
  }
}

}  // namespace godwit::controlplane
