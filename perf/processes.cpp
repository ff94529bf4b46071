#include "perf/processes.h"

#include <fmt/core.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "dataplane/port/poll_loop.h"

namespace godwit::perf {

TemporaryDirectory::TemporaryDirectory(const std::string& under)
    : path_(under + "/godwit-perf-XXXXXX"), made_(::mkdtemp(path_.data()) != nullptr) {}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  if (made_) std::filesystem::remove_all(path_, ignored);
}

Interruptible::Interruptible() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted_ = 1; };
  for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &before_[i]);
}

Interruptible::~Interruptible() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
}

Children::~Children() {
  for (const pid_t pid : pids_) {
    if (pid > 0) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
  }
}

std::expected<void, std::string> Children::start(const std::function<int()>& body) {
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    ::_exit(body());
  }
  if (pid < 0) return std::unexpected("fork: " + std::string(std::strerror(errno)));
  pids_.push_back(pid);
  return {};
}

std::expected<void, std::string> Children::wait(Duration longest) {
  const Instant end = port::now() + longest;
  while (std::ranges::any_of(pids_, [](pid_t pid) { return pid > 0; })) {
    for (pid_t& pid : pids_) {
      int status = 0;
      if (pid <= 0 || ::waitpid(pid, &status, WNOHANG) == 0) continue;
      pid = 0;
      if (WIFSIGNALED(status)) return std::unexpected(fmt::format("an end died of signal {}", WTERMSIG(status)));
    }
    if (Interruptible::interrupted()) return std::unexpected("interrupted");
    if (port::now() > end) return std::unexpected(fmt::format("not done after {} s", longest.us() / 1'000'000));
    ::usleep(20'000);
  }
  return {};
}

std::expected<std::array<std::string, 2>, std::string> two_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<std::string> cpus;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) {
    for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(std::to_string(cpu));
    }
  }
  if (cpus.size() < 2) return std::unexpected("needs two CPUs, one for each end");
  return std::array{cpus[0], cpus[1]};
}

}  // namespace godwit::perf
