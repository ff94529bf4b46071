#include "qemu-bridge/attach/tracee.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace godwit::bridge {
namespace {

constexpr std::uint64_t kCodeSegment64 = 0x33;
constexpr int kSyscallStopSignal = SIGTRAP | 0x80;  // PTRACE_O_TRACESYSGOOD
constexpr std::array<std::uint8_t, 2> kSyscallInstruction{0x0f, 0x05};

long request(int operation, pid_t thread, std::uint64_t address, std::uint64_t data) {
  return ptrace(static_cast<__ptrace_request>(operation), thread, address, data);
}

Tracee::Stop reason_of(int error_number) {
  switch (error_number) {
    case ESRCH:
      return Tracee::Stop::kGone;
    case EPERM:
    case EACCES:
      return Tracee::Stop::kNotPermitted;
    default:
      return Tracee::Stop::kKernel;
  }
}

bool read_memory(pid_t pid, std::uint64_t address, std::span<std::uint8_t> out) {
  const iovec here{out.data(), out.size()};
  const iovec there{reinterpret_cast<void*>(address), out.size()};
  return process_vm_readv(pid, &here, 1, &there, 1, 0) == static_cast<ssize_t>(out.size());
}

/// A process that has ended but was not waited for refuses ptrace with EPERM, as a protected one does.
bool has_ended(pid_t thread) {
  std::ifstream file("/proc/" + std::to_string(thread) + "/stat");
  std::string line;
  std::getline(file, line);
  const std::size_t after = line.rfind(") ");
  return after == std::string::npos || line.find_first_of("ZX", after) == after + 2;
}

bool is_event_stop(int status) { return status >> 16 == PTRACE_EVENT_STOP; }

}  // namespace

Tracee::Tracee(Tracee&& other) noexcept : thread_(std::exchange(other.thread_, 0)), registers_(other.registers_) {}

Tracee::~Tracee() {
  if (thread_ != 0) {
    request(PTRACE_DETACH, thread_, 0, 0);
  }
}

std::expected<Tracee, Tracee::Stop> Tracee::stop(pid_t thread, Deadline deadline) {
  if (request(PTRACE_SEIZE, thread, 0, PTRACE_O_TRACESYSGOOD) != 0) {
    const Stop reason = reason_of(errno);
    return std::unexpected(reason == Stop::kNotPermitted && has_ended(thread) ? Stop::kGone : reason);
  }
  Tracee tracee(thread);
  if (auto stopped = tracee.stop_in_signal_path(deadline); !stopped) {
    return std::unexpected(stopped.error());
  }
  if (request(PTRACE_GETREGS, thread, 0, reinterpret_cast<std::uint64_t>(&tracee.registers_)) != 0) {
    return std::unexpected(reason_of(errno));
  }
  if (tracee.registers_.cs != kCodeSegment64) {
    return std::unexpected(Stop::kUnsupported);
  }
  return tracee;
}

std::expected<int, Tracee::Stop> Tracee::wait(Deadline deadline) const {
  // Polled, because a thread may stay in an uninterruptible call for as long as its disk does.
  for (auto pause = std::chrono::microseconds(20);; pause = std::min(pause * 2, std::chrono::microseconds(2000))) {
    int status = 0;
    const pid_t got = waitpid(thread_, &status, __WALL | WNOHANG);
    if (got < 0 && errno != EINTR) {
      return std::unexpected(errno == ECHILD ? Stop::kGone : Stop::kKernel);
    }
    if (got == thread_) {
      if (!WIFSTOPPED(status)) {
        return std::unexpected(Stop::kGone);
      }
      return status;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return std::unexpected(Stop::kBusy);
    }
    std::this_thread::sleep_for(pause);
  }
}

std::expected<void, Tracee::Stop> Tracee::stop_in_signal_path(Deadline deadline) {
  for (int signal = -1;;) {
    if (request(PTRACE_INTERRUPT, thread_, 0, 0) != 0) {
      return std::unexpected(reason_of(errno));
    }
    if (signal >= 0 && request(PTRACE_CONT, thread_, 0, static_cast<std::uint64_t>(signal)) != 0) {
      return std::unexpected(reason_of(errno));
    }
    const auto status = wait(deadline);
    if (!status) {
      return std::unexpected(status.error());
    }
    if (is_event_stop(*status)) {
      return {};  // our interruption, or the stop of the whole process (SIGSTOP): both are in the signal path
    }
    // A signal was on its way: it is delivered, with all that came with it, and we ask again.
    signal = WSTOPSIG(*status) == kSyscallStopSignal ? 0 : WSTOPSIG(*status);
  }
}

std::optional<std::uint64_t> Tracee::waiting_call() const {
  std::array<std::uint8_t, 2> code{};
  const std::uint64_t address = registers_.rip - kSyscallInstruction.size();
  const bool in_call = static_cast<std::int64_t>(registers_.orig_rax) >= 0;
  if (!in_call || !read_memory(thread_, address, code) || code != kSyscallInstruction) {
    return std::nullopt;
  }
  return address;
}

bool Tracee::computes_safely() const {
  __ptrace_rseq_configuration rseq{};
  const long got = request(PTRACE_GET_RSEQ_CONFIGURATION, thread_, sizeof rseq, reinterpret_cast<std::uint64_t>(&rseq));
  if (got != sizeof rseq || rseq.rseq_abi_pointer == 0) {
    return got == sizeof rseq;
  }
  constexpr std::uint64_t kCriticalSectionOffset = 8;  // struct rseq: cpu_id_start, cpu_id, rseq_cs
  std::array<std::uint8_t, 8> section{};
  return read_memory(thread_, rseq.rseq_abi_pointer + kCriticalSectionOffset, section) &&
         section == std::array<std::uint8_t, 8>{};
}

std::expected<std::uint64_t, Tracee::Stop> Tracee::block_signals() {
  std::uint64_t mask = 0;
  const std::uint64_t all = UINT64_MAX;
  if (request(PTRACE_GETSIGMASK, thread_, sizeof mask, reinterpret_cast<std::uint64_t>(&mask)) != 0 ||
      request(PTRACE_SETSIGMASK, thread_, sizeof all, reinterpret_cast<std::uint64_t>(&all)) != 0) {
    return std::unexpected(reason_of(errno));
  }
  return mask;
}

std::expected<void, Tracee::Stop> Tracee::run_to_syscall_stop(Deadline deadline) {
  for (;;) {
    if (request(PTRACE_SYSCALL, thread_, 0, 0) != 0) {
      return std::unexpected(reason_of(errno));
    }
    const auto status = wait(deadline);
    if (!status) {
      return std::unexpected(status.error());
    }
    if (WSTOPSIG(*status) == kSyscallStopSignal) {
      return {};
    }
    // The whole process was told to stop meanwhile: it stays stopped after we let go.
    if (!is_event_stop(*status)) {
      return std::unexpected(Stop::kKernel);
    }
  }
}

std::expected<std::int64_t, Tracee::Stop> Tracee::run(std::uint64_t syscall_address, const SystemCall& call,
                                                      Deadline deadline) {
  const auto mask = block_signals();
  if (!mask) {
    return std::unexpected(mask.error());
  }
  user_regs_struct registers = registers_;
  registers.rip = syscall_address;
  registers.rax = static_cast<std::uint64_t>(call.number);
  registers.orig_rax = UINT64_MAX;  // no restart of the interrupted call yet
  registers.rdi = call.arguments[0];
  registers.rsi = call.arguments[1];
  registers.rdx = call.arguments[2];
  registers.r10 = call.arguments[3];
  registers.r8 = call.arguments[4];
  registers.r9 = call.arguments[5];
  std::expected<std::int64_t, Stop> result = std::unexpected(Stop::kKernel);
  const auto step = [&]() -> std::expected<void, Stop> {
    if (request(PTRACE_SETREGS, thread_, 0, reinterpret_cast<std::uint64_t>(&registers)) != 0) {
      return std::unexpected(reason_of(errno));
    }
    for ([[maybe_unused]] const char* stop : {"entry", "exit"}) {
      if (auto done = run_to_syscall_stop(deadline); !done) {
        return done;
      }
    }
    user_regs_struct after{};
    if (request(PTRACE_GETREGS, thread_, 0, reinterpret_cast<std::uint64_t>(&after)) != 0) {
      return std::unexpected(reason_of(errno));
    }
    result = static_cast<std::int64_t>(after.rax);
    return {};
  };
  const auto ran = step();
  // Also after a failure, with time of its own: the thread must not go on with our registers.
  const auto restored = restore(std::chrono::steady_clock::now() + std::chrono::seconds(2));
  const bool unmasked = request(PTRACE_SETSIGMASK, thread_, sizeof *mask, reinterpret_cast<std::uint64_t>(&*mask)) == 0;
  if (!ran || !restored || !unmasked) {
    return std::unexpected(!ran ? ran.error() : !restored ? restored.error() : Stop::kKernel);
  }
  return result;
}

std::expected<void, Tracee::Stop> Tracee::restore(Deadline deadline) {
  // At the exit of the call: stop again, in the signal path. The interruption is asked for first, so that not one
  // instruction runs.
  if (request(PTRACE_INTERRUPT, thread_, 0, 0) != 0 || request(PTRACE_CONT, thread_, 0, 0) != 0) {
    return std::unexpected(reason_of(errno));
  }
  const auto status = wait(deadline);
  if (!status) {
    return std::unexpected(status.error());
  }
  if (!is_event_stop(*status)) {
    return std::unexpected(Stop::kKernel);
  }
  if (request(PTRACE_SETREGS, thread_, 0, reinterpret_cast<std::uint64_t>(&registers_)) != 0) {
    return std::unexpected(reason_of(errno));
  }
  return {};
}

std::optional<std::uint64_t> find_vdso_syscall(pid_t pid) {
  std::ifstream maps("/proc/" + std::to_string(pid) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long long begin = 0;
    unsigned long long end = 0;
    if (!line.ends_with("[vdso]") || std::sscanf(line.c_str(), "%llx-%llx", &begin, &end) != 2 || end <= begin ||
        end - begin > (1U << 20)) {
      continue;
    }
    std::vector<std::uint8_t> code(end - begin);
    if (!read_memory(pid, begin, code)) {
      return std::nullopt;
    }
    const auto found = std::ranges::search(code, kSyscallInstruction);
    if (!found.empty()) {
      return begin + static_cast<std::uint64_t>(found.begin() - code.begin());
    }
  }
  return std::nullopt;
}

}  // namespace godwit::bridge
