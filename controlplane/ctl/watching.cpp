#include "controlplane/ctl/watching.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <thread>

#include "controlplane/ctl/format.h"
#include "controlplane/ctl/json.h"

namespace godwit::ctl {
namespace {

constexpr std::size_t kColumnsDefault = 100;
constexpr int kEndedSignal = SIGUSR1;  // the watching thread to the one that waits for Ctrl-C

sigset_t own_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, kEndedSignal);
  return signals;
}

/// Writes updates; the question of Ctrl-C holds them back meanwhile.
class Display {
 public:
  explicit Display(WatchOutput output) : output_(output), live_(isatty(STDOUT_FILENO) != 0) {}

  void update(const api::Migration& migration) {
    const std::lock_guard lock(mutex_);
    committed_ = migration.state() == api::PULLING;
    if (output_ == WatchOutput::kJsonEach) {
      fmt::print("{}\n", to_json(migration).dump());
      std::fflush(stdout);
    } else if (output_ == WatchOutput::kPeople && !held_) {
      show(migration);
    }
  }

  /// There is nothing to cancel any more.
  [[nodiscard]] bool committed() {
    const std::lock_guard lock(mutex_);
    return committed_;
  }

  void hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
  }

  void finish(const api::Migration& migration) {
    const std::lock_guard lock(mutex_);
    if (output_ == WatchOutput::kJsonLast) {
      fmt::print("{}\n", to_json(migration).dump(2));
    } else if (output_ == WatchOutput::kPeople) {
      fmt::print("{}{}", live_ ? "\r\033[K" : "", summary(migration));
    }
    std::fflush(stdout);
  }

 private:
  void show(const api::Migration& migration) {
    if (live_) {
      fmt::print("\r\033[K{}", progress_line(migration, terminal_columns()));
      std::fflush(stdout);
      return;
    }
    const auto now = std::chrono::steady_clock::now();
    if (migration.state() != shown_ || now - shown_at_ >= std::chrono::seconds(1)) {
      shown_ = migration.state();
      shown_at_ = now;
      fmt::print("{}\n", progress_line(migration, kColumnsDefault * 3));
      std::fflush(stdout);
    }
  }

  const WatchOutput output_;
  const bool live_;
  std::mutex mutex_;
  bool held_ = false;
  bool committed_ = false;
  api::MigrationState shown_ = api::STATE_UNSPECIFIED;
  std::chrono::steady_clock::time_point shown_at_;
};

enum class Answer : std::uint8_t { kCancel, kLeave, kGoOn };

Answer ask() {
  if (isatty(STDIN_FILENO) == 0 || isatty(STDERR_FILENO) == 0) {
    return Answer::kLeave;
  }
  fmt::print(stderr, "\r\033[Kcancel the migration? [y]es, [n]o; Ctrl-C again leaves it running: ");
  const sigset_t interrupt = own_signals();
  for (;;) {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    if (poll(&input, 1, 200) > 0) {
      char line[64];
      const ssize_t length = read(STDIN_FILENO, line, sizeof line);
      if (length <= 0) {
        return Answer::kLeave;
      }
      return line[0] == 'y' || line[0] == 'Y' ? Answer::kCancel : Answer::kGoOn;
    }
    const timespec at_once{};
    const int signal = sigtimedwait(&interrupt, nullptr, &at_once);
    if (signal == SIGINT) {
      return Answer::kLeave;
    }
    if (signal == kEndedSignal) {
      raise(kEndedSignal);
      return Answer::kGoOn;
    }
  }
}

}  // namespace

std::size_t terminal_columns() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col - 1U : kColumnsDefault;
}

void block_interrupt() {
  const sigset_t signals = own_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

int watch_to_end(Client& client, const std::string& migration_id, WatchOutput output) {
  Display display(output);
  Client::Result<api::Migration> last = std::unexpected(std::string());
  const pthread_t waiting = pthread_self();
  std::thread watching([&] {
    last = client.watch(migration_id, [&](const api::Migration& migration) { display.update(migration); });
    pthread_kill(waiting, kEndedSignal);
  });
  bool left = false;
  const sigset_t signals = own_signals();
  for (int signal = 0; sigwait(&signals, &signal) == 0 && signal != kEndedSignal;) {
    display.hold(true);
    const Answer answer = display.committed() ? Answer::kLeave : ask();
    if (answer == Answer::kLeave) {
      left = true;
      client.stop();
    } else if (answer == Answer::kCancel) {
      if (const auto cancelled = client.cancel_migration(migration_id); !cancelled) {
        fmt::print(stderr, "not cancelled: {}\n", cancelled.error());
      }
    }
    display.hold(false);
  }
  watching.join();
  if (!last) {
    if (left) {
      fmt::print(stderr, "\nmigration {} goes on: godwitctl watch {}\n", id_text(migration_id), id_text(migration_id));
    } else {
      fmt::print(stderr, "godwitctl: {}\n", last.error());
    }
    return 1;
  }
  display.finish(*last);
  return last->state() == api::COMMITTED ? 0 : 1;
}

}  // namespace godwit::ctl
