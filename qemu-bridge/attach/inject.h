#pragma once
// Makes a running QEMU execute one system call, by ptrace and without writing its text; above all userfaultfd, which
// tracks and pages its RAM from outside.
//
// Stateless. Any thread: each injection runs on a thread of its own, because a tracer is a thread and its end detaches
// whatever a failure left attached. Needs CAP_SYS_PTRACE or the right to trace the process. x86-64 only. Failure:
// InjectError; the process is left as it was found (registers, signal mask, pending signals, stopped or not).

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <expected>
#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace godwit::bridge {

enum class InjectFailure : std::uint8_t {
  kProcessGone,
  kNotPermitted,  // ptrace or pidfd_getfd refused: capability, user namespace, another tracer
  kNoThread,      // no thread came to a point where a call can be run, within the limit
  kRefused,       // QEMU's kernel refused the injected call: error_number
  kUnsupported,   // not a 64-bit x86 process
  kKernel,
};

struct InjectError {
  InjectFailure failure = InjectFailure::kKernel;
  int error_number = 0;
  std::string text;  // one line for a person
};

struct SystemCall {
  std::int64_t number = 0;
  std::array<std::uint64_t, 6> arguments{};
};

/// Runs the call in some thread of the process; returns what the kernel returned (-errno included). A thread that waits
/// in a system call is taken first, and its call restarts afterwards as if nothing had been; a computing thread if none
/// waits.
std::expected<std::int64_t, InjectError> inject(pid_t pid, const SystemCall& call,
                                                std::chrono::milliseconds limit = std::chrono::seconds(5));

/// What the userfaultfd must be able to see.
enum class UserfaultUse : std::uint8_t {
  kTracking,  // WP_ASYNC: for an unprivileged QEMU a user-mode-only descriptor serves as well (KVM's accesses are still
              // seen)
  kEvents,    // MISSING or synchronous write-protect events, which the kernel's own accesses raise too
};

struct InjectedUserfault {
  UniqueFd fd;              // ours
  int number_in_qemu = -1;  // stays open there: keeps the registration when we die; remember it for re-attachment
  bool user_mode_only = false;
};

/// Creates a userfaultfd in QEMU and fetches it. Events for an unprivileged QEMU need vm.unprivileged_userfaultfd = 1
/// while the call runs: it is set and put back here.
std::expected<InjectedUserfault, InjectError> inject_userfaultfd(pid_t pid, UserfaultUse use);
/// Fetches descriptor `number` of the process, which must be a userfaultfd.
std::expected<UniqueFd, InjectError> fetch_userfaultfd(pid_t pid, int number);
/// Numbers of all userfaultfds that the process holds, ascending. QEMU makes some of its own (post-copy, background
/// snapshot).
std::expected<std::vector<int>, InjectError> find_userfaultfds(pid_t pid);
/// Closes descriptor `number` in the process: takes our registration off it, after the last use.
std::expected<void, InjectError> close_in(pid_t pid, int number);

}  // namespace godwit::bridge
