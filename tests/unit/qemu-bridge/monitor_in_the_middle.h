#pragma once
// Stands between a bridge and the monitor of a real QEMU, and can keep replies or break the connection. QEMU needs a
// second monitor (kSecondMonitor among its arguments). We hold that one's only client and take the next client that
// calls at QEMU's own listening socket, so that the kernel says that it is QEMU's. Owns one thread; serves one client.

#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "qemu-bridge/qmp/json.h"

namespace godwit::bridge {

inline constexpr const char* kSecondMonitor = "unix:${run_dir}/second.qmp,server=on,wait=off";

class MonitorInTheMiddle {
 public:
  /// `usual`: where the bridge will look for the monitor from now on.
  MonitorInTheMiddle(pid_t qemu, const std::filesystem::path& usual) {
    const std::filesystem::path second = usual.parent_path() / "second.qmp";
    qemu_ = connect_to(second);
    listener_ = listener_of(qemu, second);
    // Its greeting says that QEMU has taken our call: from now on it takes no other, and the socket is ours to serve.
    pollfd greeted{qemu_.get(), POLLIN, 0};
    if (!qemu_.valid() || !listener_.valid() || ::poll(&greeted, 1, 30'000) != 1) {
      std::abort();
    }
    std::filesystem::rename(second, usual);
    thread_ = std::thread([this] { serve(); });
  }
  ~MonitorInTheMiddle() {
    stopping_ = true;
    ::shutdown(qemu_.get(), SHUT_RDWR);
    thread_.join();
  }

  /// From now on the first reply to this command is kept from the client.
  void swallow_reply_to(const std::string& command) {
    const std::lock_guard lock(mutex_);
    swallow_ = command;
  }
  [[nodiscard]] bool swallowed() const { return swallowed_; }
  [[nodiscard]] int count_of(const std::string& command) const {
    const std::lock_guard lock(mutex_);
    return static_cast<int>(std::ranges::count(commands_, command));
  }

 private:
  static UniqueFd connect_to(const std::filesystem::path& path) {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    const bool connected = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
    return connected ? std::move(fd) : UniqueFd();
  }
  static UniqueFd listener_of(pid_t qemu, const std::filesystem::path& path) {
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, qemu, 0)));
    for (int number = 0; number < 256; ++number) {
      UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0)));
      sockaddr_un name{};
      socklen_t length = sizeof(name);
      int listening = 0;
      socklen_t size = sizeof(listening);
      if (fd.valid() && ::getsockopt(fd.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening != 0 &&
          ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&name), &length) == 0 && path == name.sun_path) {
        return fd;
      }
    }
    return {};
  }

  void serve() {
    pollfd calls{listener_.get(), POLLIN, 0};
    while (!stopping_ && ::poll(&calls, 1, 20) <= 0) {
    }
    if (stopping_) {
      return;
    }
    client_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    std::string from_client;
    std::string from_qemu;
    while (true) {
      pollfd ready[2] = {{client_.get(), POLLIN, 0}, {qemu_.get(), POLLIN, 0}};
      ::poll(ready, 2, -1);
      if ((ready[0].revents != 0 && !pass(client_, from_client, qemu_, &MonitorInTheMiddle::note_command)) ||
          (ready[1].revents != 0 && !pass(qemu_, from_qemu, client_, &MonitorInTheMiddle::keep_reply))) {
        break;
      }
    }
    client_.reset();
  }

  /// Whole lines, with the descriptor that may travel with them; `keep` true: the line goes no further.
  bool pass(UniqueFd& from, std::string& pending, UniqueFd& to, bool (MonitorInTheMiddle::*keep)(const Json&)) {
    char buffer[65536];
    iovec part{buffer, sizeof(buffer)};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    const ssize_t got = ::recvmsg(from.get(), &header, MSG_CMSG_CLOEXEC);
    if (got <= 0) {
      return false;
    }
    UniqueFd passed;
    if (const cmsghdr* message = CMSG_FIRSTHDR(&header)) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(message), sizeof(fd));
      passed.reset(fd);
    }
    pending.append(buffer, static_cast<std::size_t>(got));
    for (std::size_t end = 0; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1)) {
      const auto line = parse_json(std::string_view(pending).substr(0, end));
      if (line && (this->*keep)(*line)) {
        continue;
      }
      iovec whole{pending.data(), end + 1};
      msghdr out{};
      out.msg_iov = &whole;
      out.msg_iovlen = 1;
      if (passed.valid()) {
        out.msg_control = control;
        out.msg_controllen = sizeof(control);
        cmsghdr* message = CMSG_FIRSTHDR(&out);
        const int fd = passed.get();
        std::memcpy(CMSG_DATA(message), &fd, sizeof(fd));
      }
      if (::sendmsg(to.get(), &out, MSG_NOSIGNAL) != static_cast<ssize_t>(end + 1)) {
        return false;
      }
      passed.reset();
    }
    return true;
  }

  bool note_command(const Json& line) {
    const std::lock_guard lock(mutex_);
    const std::string command = json_string(line, "execute").value_or("");
    commands_.push_back(command);
    if (!swallow_.empty() && command == swallow_) {
      swallow_.clear();
      swallow_id_ = json_uint(line, "id").value_or(0);
    }
    return false;
  }
  bool keep_reply(const Json& line) {
    const std::lock_guard lock(mutex_);
    if (swallow_id_ == 0 || json_uint(line, "id") != swallow_id_) {
      return false;
    }
    swallow_id_ = 0;
    swallowed_ = true;
    return true;
  }

  UniqueFd qemu_;
  UniqueFd listener_;
  UniqueFd client_;
  mutable std::mutex mutex_;
  std::string swallow_;
  std::uint64_t swallow_id_ = 0;
  std::vector<std::string> commands_;
  std::atomic<bool> swallowed_ = false;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

/// Breaks every connection of this process to the monitor at `path`, as a crash of it would: none of ours is told.
inline int break_connections_to(const std::filesystem::path& path) {
  int broken = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(entry.path().filename());
    sockaddr_un name{};
    socklen_t length = sizeof(name);
    if (::getpeername(fd, reinterpret_cast<sockaddr*>(&name), &length) == 0 && name.sun_family == AF_UNIX &&
        path == name.sun_path && ::shutdown(fd, SHUT_RDWR) == 0) {
      ++broken;
    }
  }
  return broken;
}

}  // namespace godwit::bridge
