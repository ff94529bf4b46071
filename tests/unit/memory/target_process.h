#pragma once
// Processes to inject into: each runs a body of its own after fork and says at its end whether everything was as if
// nothing had been.
//
// Owned by one test; the destructor ends the process by pid.

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

namespace godwit::bridge::test {

class TargetProcess {
 public:
  /// Forks; `body` calls ready() and its return value is the exit status.
  static TargetProcess fork_with(const std::function<int(const std::function<void()>& ready)>& body);
  /// Starts a program; its output goes nowhere. uid 0: as we are.
  static TargetProcess execute(const std::vector<std::string>& command, uid_t uid);
  TargetProcess(TargetProcess&& other) noexcept;
  TargetProcess& operator=(TargetProcess&&) = delete;
  ~TargetProcess();

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Waits for its end; exit status, or -signal.
  int finish();
  [[nodiscard]] bool runs() const;
  /// State letter of its main thread in /proc/PID/stat.
  [[nodiscard]] char state() const;

 private:
  explicit TargetProcess(pid_t pid) : pid_(pid) {}
  pid_t pid_;
};

}  // namespace godwit::bridge::test
