#pragma once
// SerialQueue: runs tasks one after the other in a thread of its own: all decisions about one VM are made there, so
// they need no locks among each other. post() from any thread, also from a task. The destructor runs the task at hand
// to its end, drops the others and joins; it must not be called from a task.

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace godwit::bridge {

class SerialQueue {
 public:
  SerialQueue();
  ~SerialQueue();
  SerialQueue(const SerialQueue&) = delete;
  SerialQueue& operator=(const SerialQueue&) = delete;

  void post(std::function<void()> task);
  /// Drops what waits and refuses what comes; returns when the task at hand is done.
  void stop();
  [[nodiscard]] bool in_queue_thread() const { return std::this_thread::get_id() == thread_.get_id(); }

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace godwit::bridge
