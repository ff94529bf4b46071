#pragma once
// One thread of another process, held by ptrace at a point where a system call can be run in it.
//
// Owner: an injection, on the thread that is the tracer. Failure: the thread goes on as it was; Tracee::Stop tells why
// not.
//
// How a call is run without touching text: the instruction pointer is set to a `syscall` instruction that is there
// already (two bytes before the place where a waiting thread is stopped, or in the vdso), signals are blocked for the
// thread, and the kernel's own stops at entry and exit of the call are used. Before letting go, the thread is stopped
// once more in the signal path: from there the kernel restarts the call that we interrupted, as it finds the registers
// as they were, and nothing hangs on what detaching from another kind of stop may do besides.

#include <sys/types.h>
#include <sys/user.h>

#include <chrono>
#include <cstdint>
#include <expected>
#include <optional>

#include "qemu-bridge/attach/inject.h"

namespace godwit::bridge {

class Tracee {
 public:
  enum class Stop : std::uint8_t { kBusy, kGone, kNotPermitted, kUnsupported, kKernel };
  using Deadline = std::chrono::steady_clock::time_point;

  /// Attaches and stops the thread. kBusy: it did not stop in time.
  static std::expected<Tracee, Stop> stop(pid_t thread, Deadline deadline);
  Tracee(Tracee&& other) noexcept;
  Tracee& operator=(Tracee&&) = delete;
  /// Puts registers and signal mask back and lets the thread go on, stopped if its process is.
  ~Tracee();

  /// Address of a `syscall` instruction if the thread waits in a system call.
  [[nodiscard]] std::optional<std::uint64_t> waiting_call() const;
  /// The thread computes, outside any restartable sequence (rseq) that moving its instruction pointer would break.
  [[nodiscard]] bool computes_safely() const;
  /// Runs the call by the instruction at `syscall_address`. An error leaves nothing changed.
  std::expected<std::int64_t, Stop> run(std::uint64_t syscall_address, const SystemCall& call, Deadline deadline);

 private:
  explicit Tracee(pid_t thread) : thread_(thread) {}
  std::expected<int, Stop> wait(Deadline deadline) const;
  std::expected<void, Stop> stop_in_signal_path(Deadline deadline);
  std::expected<void, Stop> run_to_syscall_stop(Deadline deadline);
  std::expected<void, Stop> restore(Deadline deadline);
  std::expected<std::uint64_t, Stop> block_signals();

  pid_t thread_;
  user_regs_struct registers_{};
};

/// Address of a `syscall` instruction in the process's vdso.
std::optional<std::uint64_t> find_vdso_syscall(pid_t pid);

}  // namespace godwit::bridge
