#pragma once
// Rare commands from one thread to another: post() anywhere, run() on the owner. Looking for work costs one relaxed
// load, so a poll loop may ask every turn. What is posted runs in order, exactly once; what is still there when the
// inbox goes is never run.

#include <atomic>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace godwit::daemon {

class Inbox {
 public:
  /// `wake` is called after each post, on the posting thread: it makes the owner look.
  explicit Inbox(std::function<void()> wake) : wake_(std::move(wake)) {}

  void post(std::function<void()> command) {
    {
      const std::lock_guard lock(mutex_);
      commands_.push_back(std::move(command));
      pending_.store(true, std::memory_order_release);
    }
    wake_();
  }

  /// True: something ran.
  bool run() {
    if (!pending_.load(std::memory_order_acquire)) {
      return false;
    }
    std::vector<std::function<void()>> commands;
    {
      const std::lock_guard lock(mutex_);
      commands.swap(commands_);
      pending_.store(false, std::memory_order_relaxed);
    }
    for (const auto& command : commands) {
      command();
    }
    return !commands.empty();
  }

 private:
  const std::function<void()> wake_;
  std::mutex mutex_;
  std::vector<std::function<void()>> commands_;
  std::atomic<bool> pending_{false};
};

}  // namespace godwit::daemon
