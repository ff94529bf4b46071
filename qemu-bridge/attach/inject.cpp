#include "qemu-bridge/attach/inject.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <thread>

#include "qemu-bridge/attach/tracee.h"

namespace godwit::bridge {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kThreadLimit = std::chrono::milliseconds(100);  // how long one thread may take to stop
constexpr const char* kUnprivilegedSwitch = "/proc/sys/vm/unprivileged_userfaultfd";

std::string process_name(pid_t pid) { return "process " + std::to_string(pid); }

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

std::optional<int> parse_number(const char* text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text, text + std::strlen(text), value);
  return error == std::errc{} && *end == '\0' ? std::optional(value) : std::nullopt;
}

/// Numeric names in /proc/PID/`what`, ascending: the main thread comes first, as its id is the process's.
std::vector<int> numbers_in(pid_t pid, const char* what) {
  std::vector<int> numbers;
  if (DIR* opened = opendir(("/proc/" + std::to_string(pid) + "/" + what).c_str())) {
    while (const dirent* entry = readdir(opened)) {
      if (const auto number = parse_number(entry->d_name)) {
        numbers.push_back(*number);
      }
    }
    closedir(opened);
  }
  std::ranges::sort(numbers);
  return numbers;
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

InjectError fetch_error(const std::string& call, pid_t pid, int error_number) {
  const InjectFailure failure = error_number == ESRCH                             ? InjectFailure::kProcessGone
                                : error_number == EPERM || error_number == EACCES ? InjectFailure::kNotPermitted
                                                                                  : InjectFailure::kKernel;
  return {failure, error_number, call + " of " + process_name(pid) + ": " + std::strerror(error_number)};
}

bool is_userfaultfd(pid_t pid, int number) {
  const std::string link = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(number);
  std::array<char, 64> target{};
  const ssize_t length = readlink(link.c_str(), target.data(), target.size());
  return length > 0 && std::string_view(target.data(), static_cast<std::size_t>(length)) == "anon_inode:[userfaultfd]";
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
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!process.valid()) {
    return std::unexpected(fetch_error("pidfd_open", pid, errno));
  }
  if (!is_userfaultfd(pid, number)) {
    return std::unexpected(InjectError{
        InjectFailure::kKernel, EBADF,
        "descriptor " + std::to_string(number) + " of " + process_name(pid) + " is no userfaultfd (any more)"});
  }
  UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), number, 0)));
  if (!fd.valid()) {
    return std::unexpected(fetch_error("pidfd_getfd", pid, errno));
  }
  return fd;
}

std::expected<std::vector<int>, InjectError> find_userfaultfds(pid_t pid) {
  if (access(("/proc/" + std::to_string(pid) + "/fd").c_str(), R_OK) != 0) {
    return std::unexpected(fetch_error("/proc/PID/fd", pid, errno == ENOENT ? ESRCH : errno));
  }
  std::vector<int> numbers = numbers_in(pid, "fd");
  std::erase_if(numbers, [&](int number) { return !is_userfaultfd(pid, number); });
  return numbers;
}

std::expected<void, InjectError> close_in(pid_t pid, int number) {
  if (!is_userfaultfd(pid, number)) {
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
