#pragma once
// What a benchmark of several processes needs around them: a directory, signals that end it cleanly, children that
// never outlive it, memory that they share, a CPU for each. Owner: one benchmark; its main thread. Failure: as a text.

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <expected>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "base/time.h"

namespace godwit::perf {

class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& under = "/tmp");
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] bool made() const { return made_; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool made_;
};

/// While it lives, SIGINT and SIGTERM only say that somebody wants the end, so that everything is cleaned up.
class Interruptible {
 public:
  Interruptible();
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;
  [[nodiscard]] static bool interrupted() { return interrupted_ != 0; }

 private:
  static constexpr std::array<int, 2> kSignals{SIGINT, SIGTERM};
  static inline volatile sig_atomic_t interrupted_ = 0;
  std::array<struct sigaction, 2> before_{};
};

/// Forked children; whatever happens, none outlives this object.
class Children {
 public:
  Children() = default;
  ~Children();
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  /// `body` is the child's main. Error: fork failed.
  std::expected<void, std::string> start(const std::function<int()>& body);
  /// Until all have ended, or one has died, or the time or the user's patience is over; the error says which.
  std::expected<void, std::string> wait(Duration longest);

 private:
  std::vector<pid_t> pids_;  // 0: has ended
};

/// The end of a child that is done, without closing its port: where both ends of a memif are closed at once, DPDK's
/// interrupt thread uses what ours frees.
[[noreturn]] inline void leave_port_open() { ::_exit(0); }

/// A T that children share; null if there is no memory.
template <class T>
class SharedMemory {
 public:
  SharedMemory() {
    void* const at = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at != MAP_FAILED) shared_ = new (at) T;
  }
  ~SharedMemory() {
    if (shared_ != nullptr) ::munmap(shared_, sizeof(T));
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  [[nodiscard]] T* get() const { return shared_; }

 private:
  T* shared_ = nullptr;
};

/// The first two CPUs that this process may use, as EAL wants them.
std::expected<std::array<std::string, 2>, std::string> two_cpus();

}  // namespace godwit::perf
