#include "qemu-bridge/attach/inject.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <thread>

#include "qemu-bridge/attach/descriptors.h"
#include "qemu-bridge/attach/tracee.h"

namespace godwit::bridge {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kThreadLimit = std::chrono::milliseconds(100);  // how long one thread may take to stop
constexpr std::string_view kUserfaultfd = "anon_inode:[userfaultfd]";
constexpr const char* kUnprivilegedSwitch = "/proc/sys/vm/unprivileged_userfaultfd";

InjectError error_of(Tracee::Stop stop, pid_t pid) {
  switch (stop) {
    case Tracee::Stop::kGone:
      return {InjectFailure::kProcessGone, ESRCH, process_name(pid) + " has exited"};
    case Tracee::Stop::kNotPermitted:
      return {InjectFailure::kNotPermitted, EPERM,
              "ptrace of " + process_name(pid) +
                  " is not permitted: run the bridge with CAP_SYS_PTRACE in the process's user namespace, and let no "
                  "debugger hold it"};
    case Tracee::Stop::kUnsupported:
      return {InjectFailure::kUnsupported, 0, process_name(pid) + " is no 64-bit x86 process"};
    case Tracee::Stop::kBusy:
      return {InjectFailure::kNoThread, ETIMEDOUT, "no thread of " + process_name(pid) + " could be stopped in time"};
    case Tracee::Stop::kKernel:
      break;
  }
  return {InjectFailure::kKernel, 0, "ptrace of " + process_name(pid) + " did not do what it should"};
}

/// One pass over the threads; kBusy: none was at a good point.
std::expected<std::int64_t, Tracee::Stop> try_threads(pid_t pid, const SystemCall& call, bool computing_too,
                                                      std::optional<std::uint64_t> vdso, Clock::time_point deadline) {
  const std::vector<int> threads = numbers_in(pid, "task");
  if (threads.empty()) {
    return std::unexpected(Tracee::Stop::kGone);
  }
  Tracee::Stop last = Tracee::Stop::kGone;  // unless a thread is found that lives
  for (const pid_t thread : threads) {
    auto tracee = Tracee::stop(thread, std::min(deadline, Clock::now() + kThreadLimit));
    if (!tracee) {
      if (tracee.error() != Tracee::Stop::kGone) {
        return std::unexpected(tracee.error());  // the tracer must end to let this thread go; the next one begins anew
      }
      continue;
    }
    last = Tracee::Stop::kBusy;
    auto address = tracee->waiting_call();
    if (!address && computing_too && vdso && tracee->computes_safely()) {
      address = vdso;
    }
    if (address) {
      return tracee->run(*address, call, deadline);
    }
  }
  return std::unexpected(last);
}

/// vm.unprivileged_userfaultfd = 1 as long as it lives. A crash in between leaves it on; setting it again then changes
/// nothing.
class AllowUnprivileged {
 public:
  AllowUnprivileged() {
    std::ifstream(kUnprivilegedSwitch) >> before_;
    set(1);
  }
  AllowUnprivileged(const AllowUnprivileged&) = delete;
  AllowUnprivileged& operator=(const AllowUnprivileged&) = delete;
  ~AllowUnprivileged() { set(before_); }

 private:
  static void set(int value) { std::ofstream(kUnprivilegedSwitch) << value; }
  int before_ = 0;
};

std::expected<std::int64_t, InjectError> create_userfaultfd(pid_t pid, int flags) {
  auto number = inject(pid, {SYS_userfaultfd, {static_cast<std::uint64_t>(O_CLOEXEC | O_NONBLOCK | flags)}});
  if (number && *number < 0) {
    const int error_number = static_cast<int>(-*number);
    return std::unexpected(InjectError{InjectFailure::kRefused, error_number,
                                       "userfaultfd in " + process_name(pid) + ": " + std::strerror(error_number)});
  }
  return number;
}

bool refused_for_privilege(const std::expected<std::int64_t, InjectError>& result) {
  return !result && result.error().failure == InjectFailure::kRefused && result.error().error_number == EPERM;
}

}  // namespace

std::expected<std::int64_t, InjectError> inject(pid_t pid, const SystemCall& call, std::chrono::milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  const auto vdso = find_vdso_syscall(pid);
  // A few passes for a waiting thread, as its state is the simplest; after them a computing one will do.
  constexpr int kPassesForWaiting = 8;
  std::expected<std::int64_t, Tracee::Stop> result = std::unexpected(Tracee::Stop::kBusy);
  for (int pass = 0; !result && result.error() == Tracee::Stop::kBusy && Clock::now() < deadline; ++pass) {
    std::thread([&] { result = try_threads(pid, call, pass >= kPassesForWaiting, vdso, deadline); }).join();
    if (!result && result.error() == Tracee::Stop::kBusy) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  if (!result) {
    return std::unexpected(error_of(result.error(), pid));
  }
  return *result;
}

std::expected<InjectedUserfault, InjectError> inject_userfaultfd(pid_t pid, UserfaultUse use) {
  InjectedUserfault injected;
  auto number = create_userfaultfd(pid, 0);
  if (refused_for_privilege(number)) {
    if (use == UserfaultUse::kTracking) {
      number = create_userfaultfd(pid, UFFD_USER_MODE_ONLY);
      injected.user_mode_only = true;
    } else {
      const AllowUnprivileged allow;
      number = create_userfaultfd(pid, 0);
    }
  }
  if (!number) {
    return std::unexpected(number.error());
  }
  injected.number_in_qemu = static_cast<int>(*number);
  auto fd = fetch_userfaultfd(pid, injected.number_in_qemu);
  if (!fd) {
    // Best effort: what matters to the caller is why it could not be fetched.
    static_cast<void>(close_in(pid, injected.number_in_qemu));
    return std::unexpected(fd.error());
  }
  injected.fd = std::move(*fd);
  return injected;
}

std::expected<UniqueFd, InjectError> fetch_userfaultfd(pid_t pid, int number) {
  return fetch_descriptor(pid, number, kUserfaultfd);
}

std::expected<std::vector<int>, InjectError> find_userfaultfds(pid_t pid) {
  return find_descriptors(pid, kUserfaultfd);
}

std::expected<void, InjectError> close_in(pid_t pid, int number) {
  if (!is_descriptor(pid, number, kUserfaultfd)) {
    return std::unexpected(InjectError{
        InjectFailure::kKernel, EBADF,
        "descriptor " + std::to_string(number) + " of " + process_name(pid) + " is no userfaultfd: not closed"});
  }
  const auto result = inject(pid, {SYS_close, {static_cast<std::uint64_t>(number)}});
  if (!result) {
    return std::unexpected(result.error());
  }
  if (*result < 0) {
    return std::unexpected(
        InjectError{InjectFailure::kRefused, static_cast<int>(-*result),
                    "close in " + process_name(pid) + ": " + std::strerror(static_cast<int>(-*result))});
  }
  return {};
}

}  // namespace godwit::bridge
