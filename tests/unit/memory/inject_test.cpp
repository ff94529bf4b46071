#include "qemu-bridge/attach/inject.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <new>
#include <thread>

#include "tests/unit/memory/target_process.h"

namespace godwit::bridge::test {
namespace {

constexpr uid_t kNobody = 65534;

void expect_getpid(pid_t pid, int times) {
  for (int i = 0; i < times; ++i) {
    const auto result = inject(pid, {SYS_getpid, {}});
    ASSERT_TRUE(result) << result.error().text;
    ASSERT_EQ(*result, pid);
  }
}

/// A computation whose result shows any register or flag that was lost.
[[gnu::noipa]] std::uint64_t compute(std::uint64_t rounds) {
  std::uint64_t a = 1;
  double b = 1;
  for (std::uint64_t i = 0; i < rounds; ++i) {
    a ^= a << 13, a ^= a >> 7, a ^= a << 17;
    b = b * 0.5 + static_cast<double>(a & 0xff);
  }
  return a + static_cast<std::uint64_t>(b * 1024);
}

TEST(Inject, SleepingProcessSleepsOnWithoutEintr) {
  auto target = TargetProcess::fork_with([](const auto& ready) {
    const timespec time{0, 400'000'000};
    ready();
    return nanosleep(&time, nullptr) == 0 ? 0 : 1;  // tidy-allow(sleep): the process under test waits in it
  });
  expect_getpid(target.pid(), 20);
  EXPECT_EQ(target.finish(), 0);
}

TEST(Inject, WaitingCallsRestart) {
  const UniqueFd event(eventfd(0, 0));
  auto target = TargetProcess::fork_with([&](const auto& ready) {
    ready();
    pollfd polled{event.get(), POLLIN, 0};
    const timespec limit{60, 0};
    if (ppoll(&polled, 1, &limit, nullptr) != 1) {  // the call that QEMU's main loop waits in
      return 1;
    }
    std::uint64_t value = 0;
    if (read(event.get(), &value, sizeof value) != sizeof value) {
      return 2;
    }
    return read(event.get(), &value, sizeof value) == sizeof value ? 0 : 3;  // waits once more
  });
  const auto wake = [&] {
    const std::uint64_t one = 1;
    ASSERT_EQ(write(event.get(), &one, sizeof one), 8);
  };
  expect_getpid(target.pid(), 20);
  wake();
  expect_getpid(target.pid(), 20);
  wake();
  EXPECT_EQ(target.finish(), 0);
}

TEST(Inject, ComputingProcessComputesOnUndisturbed) {
  // In memory that both see: the process makes no system call at all.
  void* shared = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  auto& stop = *new (shared) std::atomic<bool>(false);
  auto target = TargetProcess::fork_with([&](const auto& ready) {
    const std::uint64_t expected = compute(10'000);
    ready();
    while (!stop) {
      if (compute(10'000) != expected) {
        return 1;
      }
    }
    return 0;
  });
  expect_getpid(target.pid(), 20);
  stop = true;
  EXPECT_EQ(target.finish(), 0);
  munmap(shared, 4096);
}

TEST(Inject, ThreadsOfManyKinds) {
  const UniqueFd event(eventfd(0, 0));
  auto target = TargetProcess::fork_with([&](const auto& ready) {
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        const std::uint64_t expected = compute(100'000);
        while (!stop) {
          wrong += compute(100'000) != expected ? 1 : 0;
        }
      });
    }
    threads.emplace_back([&] {
      std::uint64_t value = 0;
      wrong += read(event.get(), &value, sizeof value) != sizeof value ? 1 : 0;
      stop = true;
    });
    ready();
    for (std::thread& thread : threads) {
      thread.join();
    }
    return wrong.load();
  });
  expect_getpid(target.pid(), 50);
  const std::uint64_t one = 1;
  ASSERT_EQ(write(event.get(), &one, sizeof one), 8);
  EXPECT_EQ(target.finish(), 0);
}

/// kB of the process's code that are its own: written.
std::uint64_t written_code(pid_t pid) {
  std::ifstream maps("/proc/" + std::to_string(pid) + "/smaps");
  std::uint64_t sum = 0;
  bool is_code = false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long long kib = 0;
    if (line.find(" r-xp ") != std::string::npos || line.find(" rw-p ") != std::string::npos ||
        line.find(" r--p ") != std::string::npos) {
      is_code = line.find(" r-xp ") != std::string::npos;
    } else if (is_code && std::sscanf(line.c_str(), "Anonymous: %llu kB", &kib) == 1) {
      sum += kib;
    }
  }
  return sum;
}

// All are at the same instruction: code put there for one of them would be run by the others, too.
TEST(Inject, ThreadsInTheSameSystemCallGoOnUndisturbed) {
  const UniqueFd end(eventfd(0, 0));
  auto target = TargetProcess::fork_with([&](const auto& ready) {
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        pollfd polled{end.get(), POLLIN, 0};
        const timespec limit{0, 50'000};
        int came = 0;
        while ((came = ppoll(&polled, 1, &limit, nullptr)) == 0) {
        }
        wrong += came == 1 ? 0 : 1;
      });
    }
    ready();
    for (std::thread& thread : threads) {
      thread.join();
    }
    return wrong.load();
  });
  expect_getpid(target.pid(), 200);
  EXPECT_EQ(written_code(target.pid()), 0U);
  const std::uint64_t one = 1;
  ASSERT_EQ(write(end.get(), &one, sizeof one), 8);
  EXPECT_EQ(target.finish(), 0);
}

std::atomic<int> signals_seen{0};

TEST(Inject, SignalsArriveAndTheMaskIsPutBack) {
  const UniqueFd end(eventfd(0, 0));
  auto target = TargetProcess::fork_with([&](const auto& ready) {
    struct sigaction action {};
    action.sa_handler = [](int) { ++signals_seen; };
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, nullptr);
    sigset_t before;
    sigemptyset(&before);
    sigaddset(&before, SIGUSR2);
    sigprocmask(SIG_SETMASK, &before, nullptr);
    const itimerval often{{0, 300}, {0, 300}};
    setitimer(ITIMER_REAL, &often, nullptr);
    ready();
    std::uint64_t value = 0;
    if (read(end.get(), &value, sizeof value) != sizeof value) {
      return 1;
    }
    sigset_t after;
    sigprocmask(SIG_SETMASK, nullptr, &after);
    const int seen = signals_seen;
    while (signals_seen == seen) {  // a signal that stayed blocked would keep us here
      poll(nullptr, 0, 1);
    }
    for (int signal = 1; signal < 32; ++signal) {
      if (sigismember(&after, signal) != sigismember(&before, signal)) {
        return 2;
      }
    }
    return 0;
  });
  expect_getpid(target.pid(), 100);
  const std::uint64_t one = 1;
  ASSERT_EQ(write(end.get(), &one, sizeof one), 8);
  EXPECT_EQ(target.finish(), 0);
}

TEST(Inject, StoppedProcessStaysStopped) {
  auto target = TargetProcess::fork_with([](const auto& ready) {
    ready();
    const timespec time{0, 1'000'000};
    return nanosleep(&time, nullptr) == 0 ? 0 : 1;  // tidy-allow(sleep): the process under test waits in it
  });
  kill(target.pid(), SIGSTOP);
  ASSERT_EQ(waitpid(target.pid(), nullptr, WUNTRACED), target.pid());
  expect_getpid(target.pid(), 5);
  for (int tries = 0; tries < 1000 && target.state() != 'T'; ++tries) {
    usleep(1000);  // tidy-allow(sleep): lets the process enter its call
  }
  EXPECT_EQ(target.state(), 'T');
  kill(target.pid(), SIGCONT);
  EXPECT_EQ(target.finish(), 0);
}

TEST(Inject, ErrorsOfTheCallAreItsResult) {
  auto target = TargetProcess::fork_with([](const auto& ready) {
    ready();
    return pause();
  });
  const auto result = inject(target.pid(), {SYS_close, {12345}});
  ASSERT_TRUE(result) << result.error().text;
  EXPECT_EQ(*result, -EBADF);
}

TEST(Inject, ProcessThatIsGone) {
  auto target = TargetProcess::fork_with([](const auto& ready) {
    ready();
    return 0;
  });
  const pid_t pid = target.pid();
  siginfo_t ended;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(pid), &ended, WEXITED | WNOWAIT), 0);
  auto result = inject(pid, {SYS_getpid, {}});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().failure, InjectFailure::kProcessGone) << "not waited for: " << result.error().text;
  EXPECT_EQ(target.finish(), 0);
  result = inject(pid, {SYS_getpid, {}});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().failure, InjectFailure::kProcessGone) << result.error().text;
}

TEST(Inject, ProcessHeldByAnotherTracer) {
  auto target = TargetProcess::fork_with([](const auto& ready) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    ready();
    return pause();
  });
  const auto result = inject(target.pid(), {SYS_getpid, {}});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().failure, InjectFailure::kNotPermitted) << result.error().text;
}

TEST(InjectUserfault, StaysOpenThereIsFoundAgainAndCloses) {
  auto target = TargetProcess::fork_with([](const auto& ready) {
    ready();
    return pause();
  });
  const auto injected = inject_userfaultfd(target.pid(), UserfaultUse::kEvents);
  ASSERT_TRUE(injected) << injected.error().text;
  EXPECT_FALSE(injected->user_mode_only);
  EXPECT_EQ(find_userfaultfds(target.pid()).value(), std::vector<int>{injected->number_in_qemu});
  const auto again = fetch_userfaultfd(target.pid(), injected->number_in_qemu);
  ASSERT_TRUE(again) << again.error().text;
  EXPECT_EQ(syscall(SYS_kcmp, getpid(), getpid(), 0 /* KCMP_FILE */, injected->fd.get(), again->get()), 0);
  EXPECT_FALSE(fetch_userfaultfd(target.pid(), 0)) << "standard input is none";
  EXPECT_TRUE(close_in(target.pid(), injected->number_in_qemu));
  EXPECT_TRUE(find_userfaultfds(target.pid()).value().empty());
  EXPECT_FALSE(close_in(target.pid(), injected->number_in_qemu)) << "never closes what is not one";
}

TEST(InjectUserfault, ProcessThatIsNotRoot) {
  if (geteuid() != 0) {
    GTEST_SKIP() << "needs root to become another user and to set vm.unprivileged_userfaultfd";
  }
  const auto read_switch = [] {
    int value = -1;
    std::ifstream("/proc/sys/vm/unprivileged_userfaultfd") >> value;
    return value;
  };
  if (read_switch() != 0) {
    GTEST_SKIP() << "vm.unprivileged_userfaultfd is on: nothing is refused";
  }
  auto target = TargetProcess::fork_with([](const auto& ready) {
    if (setresgid(kNobody, kNobody, kNobody) != 0 || setresuid(kNobody, kNobody, kNobody) != 0) {
      return 1;
    }
    ready();
    return pause();
  });
  const auto tracking = inject_userfaultfd(target.pid(), UserfaultUse::kTracking);
  ASSERT_TRUE(tracking) << tracking.error().text;
  EXPECT_TRUE(tracking->user_mode_only);
  const auto events = inject_userfaultfd(target.pid(), UserfaultUse::kEvents);
  ASSERT_TRUE(events) << events.error().text;
  EXPECT_FALSE(events->user_mode_only);
  EXPECT_EQ(read_switch(), 0) << "put back";
  EXPECT_EQ(find_userfaultfds(target.pid())->size(), 2U);
}

}  // namespace
}  // namespace godwit::bridge::test
