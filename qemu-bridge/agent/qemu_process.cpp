#include "qemu-bridge/agent/qemu_process.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pwd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/log.h"

namespace godwit::bridge {
namespace {

UniqueFd open_pidfd(pid_t pid) { return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))); }

/// A pidfd of just this process: opened first, compared after, so that a reused pid cannot slip in.
std::optional<UniqueFd> pidfd_of(const ProcessId& process) {
  UniqueFd fd = open_pidfd(process.pid);
  if (!fd.valid() || identify(process.pid) != process) {
    return std::nullopt;
  }
  return fd;
}

bool exits_within(int pidfd, std::chrono::milliseconds time) {
  const auto until = std::chrono::steady_clock::now() + time;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    pollfd ready{pidfd, POLLIN, 0};
    const int got = ::poll(&ready, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    if (got >= 0 || errno != EINTR) {
      return got > 0;
    }
  }
}

// What the child tells us through the pipe: its pid when it is about to run QEMU, then an errno if it could not.
struct ChildReport {
  pid_t pid = 0;
  int error = 0;
  char step[16] = {};
};

struct ChildPlan {
  std::vector<char*> argv;
  std::vector<gid_t> groups;
  std::optional<UserIds> user;
  int log_fd = -1;
  int null_fd = -1;
  int report_fd = -1;
};

[[noreturn]] void fail_child(const ChildPlan& plan, const char* step) {
  ChildReport report{0, errno, {}};
  std::strncpy(report.step, step, sizeof(report.step) - 1);
  [[maybe_unused]] const ssize_t written = ::write(plan.report_fd, &report, sizeof(report));
  ::_exit(127);
}

/// Between fork and exec of a process with threads: async-signal-safe calls only.
[[noreturn]] void run_child(const ChildPlan& plan) {
  if (::setsid() < 0) {
    fail_child(plan, "setsid");
  }
  const pid_t pid = ::fork();
  if (pid < 0) {
    fail_child(plan, "fork");
  }
  if (pid > 0) {
    ::_exit(0);
  }
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  if (::dup2(plan.null_fd, 0) < 0 || ::dup2(plan.log_fd, 1) < 0 || ::dup2(plan.log_fd, 2) < 0) {
    fail_child(plan, "dup2");
  }
  ::syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC);
  if (plan.user) {
    if (::setgroups(plan.groups.size(), plan.groups.data()) != 0 || ::setgid(plan.user->gid) != 0 ||
        ::setuid(plan.user->uid) != 0) {
      fail_child(plan, "setuid");
    }
  }
  ChildReport report{::getpid(), 0, {}};
  if (::write(plan.report_fd, &report, sizeof(report)) != static_cast<ssize_t>(sizeof(report))) {
    ::_exit(127);
  }
  ::execv(plan.argv[0], plan.argv.data());
  fail_child(plan, "execv");
}

std::unexpected<std::string> failed(const std::string& what) {
  return std::unexpected("cannot start QEMU: " + what + ": " + std::strerror(errno));
}

/// Of a regular file; nothing for anything else.
std::optional<off_t> size_of(const UniqueFd& file) {
  struct stat status {};
  const bool regular = ::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode);
  return regular ? std::optional(status.st_size) : std::nullopt;
}

}  // namespace

std::optional<ProcessId> identify(pid_t pid) {
  const auto stat = read_file("/proc/" + std::to_string(pid) + "/stat", 4096);
  if (!stat) {
    return std::nullopt;
  }
  // "pid (comm) state ppid ...": comm may hold anything, so count from the last ')'.
  const std::size_t close = stat->rfind(')');
  if (close == std::string::npos || close + 2 >= stat->size()) {
    return std::nullopt;
  }
  std::string_view rest = std::string_view(*stat).substr(close + 2);
  if (rest.starts_with('Z') || rest.starts_with('X')) {
    return std::nullopt;
  }
  constexpr int kFieldsBeforeStart = 19;  // from state (3) to starttime (22)
  for (int i = 0; i < kFieldsBeforeStart; ++i) {
    const std::size_t space = rest.find(' ');
    if (space == std::string_view::npos) {
      return std::nullopt;
    }
    rest.remove_prefix(space + 1);
  }
  ProcessId process{pid, 0};
  if (std::from_chars(rest.data(), rest.data() + rest.size(), process.start_ticks).ec != std::errc{}) {
    return std::nullopt;
  }
  return process;
}

bool is_alive(const ProcessId& process) { return process.pid > 0 && identify(process.pid) == process; }

std::optional<ProcessId> find_process(const std::string& argument) {
  const std::string wanted = '\0' + argument + '\0';
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc{} || pid <= 0) {
      continue;
    }
    const auto line = read_file(entry.path() / "cmdline");
    if (line && line->find(wanted) != std::string::npos) {
      return identify(pid);
    }
  }
  return std::nullopt;
}

std::expected<UserIds, std::string> find_user(const std::string& name) {
  std::vector<char> buffer(16384);
  passwd entry{};
  passwd* found = nullptr;
  ::getpwnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
  if (found == nullptr) {
    return std::unexpected("this host has no user '" + name + "': create it, or change 'user' of the VM definition");
  }
  return UserIds{found->pw_uid, found->pw_gid};
}

std::expected<ProcessId, std::string> launch(const Launch& launch) {
  GW_ASSERT(!launch.argv.empty());
  if (::access(launch.argv[0].c_str(), X_OK) != 0) {
    return failed(launch.argv[0] + " (install qemu-system-x86, or set qemu_binary)");
  }
  // The directory is QEMU's user's: a link there must not make us write elsewhere.
  UniqueFd log(
      ::open(launch.log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0640));
  if (log.valid() && !size_of(log)) {
    return std::unexpected(launch.log_file.string() + " is no regular file: remove it");
  }
  UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  int ends[2];
  if (!log.valid() || !null.valid() || ::pipe2(ends, O_CLOEXEC) != 0) {
    return failed(launch.log_file.string());
  }
  const UniqueFd from_child(ends[0]);
  UniqueFd to_us(ends[1]);
  ChildPlan plan{{}, {}, launch.user, log.get(), null.get(), to_us.get()};
  for (const auto& argument : launch.argv) {
    plan.argv.push_back(const_cast<char*>(argument.c_str()));
  }
  plan.argv.push_back(nullptr);
  if (launch.user) {
    int count = 256;
    plan.groups.resize(static_cast<std::size_t>(count));
    if (::getgrouplist(launch.user_name.c_str(), launch.user->gid, plan.groups.data(), &count) < 0) {
      count = 1;
      plan.groups[0] = launch.user->gid;
    }
    plan.groups.resize(static_cast<std::size_t>(count));
  }
  const pid_t child = ::fork();
  if (child == 0) {
    run_child(plan);
  }
  if (child < 0) {
    return failed("fork");
  }
  to_us.reset();
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  ChildReport report;
  ProcessId process;
  while (::read(from_child.get(), &report, sizeof(report)) == static_cast<ssize_t>(sizeof(report))) {
    if (report.error != 0) {
      errno = report.error;
      return failed(std::string(report.step, ::strnlen(report.step, sizeof(report.step))) + " " + launch.argv[0]);
    }
    process.pid = report.pid;
  }
  const auto identity = identify(process.pid);
  if (!identity) {
    return std::unexpected("QEMU ended at once: " + log_tail(launch.log_file));
  }
  return *identity;
}

bool wait_for_exit(const ProcessId& process, std::chrono::milliseconds time) {
  const auto fd = pidfd_of(process);
  return !fd || exits_within(fd->get(), time);
}

bool end_process(const ProcessId& process, std::chrono::milliseconds grace) {
  const auto fd = pidfd_of(process);
  if (!fd) {
    return true;
  }
  constexpr std::chrono::milliseconds kKillTime{10'000};  // a large guest's memory takes time to free
  if (grace.count() > 0) {
    ::syscall(SYS_pidfd_send_signal, fd->get(), SIGTERM, nullptr, 0);
    if (exits_within(fd->get(), grace)) {
      return true;
    }
  }
  ::syscall(SYS_pidfd_send_signal, fd->get(), SIGKILL, nullptr, 0);
  return exits_within(fd->get(), kKillTime);
}

ProcessWatch::ProcessWatch(const ProcessId& process, std::function<void()> on_exit)
    : wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  GW_ASSERT(wake_.valid());
  thread_ = std::thread([this, process, on_exit = std::move(on_exit)] {
    const auto fd = pidfd_of(process);
    while (fd) {
      pollfd ready[2] = {{fd->get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
      if (::poll(ready, 2, -1) < 0 && errno == EINTR) {
        continue;
      }
      if (ready[1].revents != 0) {
        return;
      }
      break;
    }
    on_exit();
  });
}

ProcessWatch::~ProcessWatch() {
  const std::uint64_t one = 1;
  GW_ASSERT(::write(wake_.get(), &one, sizeof(one)) == static_cast<ssize_t>(sizeof(one)));
  thread_.join();
}

config::Accel decide_accel(config::Accel asked) {
  if (asked != config::Accel::kAuto) {
    return asked;
  }
  const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm.valid() || ::ioctl(kvm.get(), KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
    return config::Accel::kTcg;
  }
  const UniqueFd vm(::ioctl(kvm.get(), KVM_CREATE_VM, 0));
  return vm.valid() ? config::Accel::kKvm : config::Accel::kTcg;
}

std::string log_tail(const std::filesystem::path& path) {
  // The directory is QEMU's user's: a link there must not show us, or anybody we tell, another file; nor a pipe stop
  // us.
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  const auto size = size_of(file);
  if (!size) {
    return {};
  }
  std::array<char, 400> bytes;
  const off_t wanted = std::min<off_t>(*size, bytes.size());
  const ssize_t got = ::pread(file.get(), bytes.data(), static_cast<std::size_t>(wanted), *size - wanted);
  std::string_view tail(bytes.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
  while (!tail.empty() && (tail.back() == '\n' || tail.back() == ' ')) {
    tail.remove_suffix(1);
  }
  return printable(tail);
}

}  // namespace godwit::bridge
