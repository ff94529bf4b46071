#pragma once
// QmpClient: one connection to a QEMU's monitor. It owns the socket and one reader thread, which delivers replies to
// the waiting callers and events to the handler the moment QEMU writes them (nothing is polled). Threads: execute()
// from any thread but the reader; the handlers run in the reader thread and must not call execute(). Everything that
// QEMU sends is checked: a line over kLineBytesMax, something that is not QMP, a reply nobody asked for or the end of
// the socket closes the connection for good; every waiting and later execute() then returns that error, and `on_closed`
// is called once. The monitor's text is never trusted to be small, valid or timely.
//
// QEMU sends to a new client what the one before (a daemon that died) left unread: events ahead of the greeting, and
// replies until it answers the first command, for it handles one at a time. Both are dropped; ids begin at random, so
// that no such reply is taken for an answer to us.

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <expected>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/unique_fd.h"
#include "qemu-bridge/qmp/json.h"

namespace godwit::bridge {

enum class QmpErrorCode {
  kConnect,   // no socket there, or nobody accepts on it
  kProtocol,  // what came is not QMP
  kFlood,     // a line longer than kLineBytesMax
  kClosed,    // QEMU closed the monitor: it exited or died
  kTimeout,   // no reply in time; the connection stays usable
  kCommand,   // QEMU refused the command; text is QEMU's own
  kReply,     // QEMU's reply lacks a field that its schema promises
};

struct QmpError {
  QmpErrorCode code = QmpErrorCode::kClosed;
  std::string text;
};

struct QmpEvent {
  std::string name;
  Json data;
  std::int64_t unix_us = 0;  // QEMU's own timestamp
};

class QmpClient {
 public:
  static constexpr std::size_t kLineBytesMax = 8u << 20;  // query-qmp-schema of QEMU 7.2 is 0.2 MiB
  static constexpr std::chrono::milliseconds kReplyTime{10'000};

  struct Handlers {
    std::function<void(const QmpEvent&)> on_event;
    std::function<void(const QmpError&)> on_closed;
  };

  /// Connects, reads the greeting, leaves negotiation mode. QEMU serves one client a monitor: a busy one times out.
  static std::expected<std::unique_ptr<QmpClient>, QmpError> connect(const std::string& path, Handlers handlers,
                                                                     std::chrono::milliseconds time = kReplyTime);
  ~QmpClient();
  QmpClient(const QmpClient&) = delete;
  QmpClient& operator=(const QmpClient&) = delete;

  /// The value of "return". `fd` travels with the command (getfd).
  std::expected<Json, QmpError> execute(const std::string& command, Json arguments = Json::object(),
                                        std::chrono::milliseconds time = kReplyTime, int fd = -1);

  /// Of the process that listens: QEMU's, or that of whoever created the socket for it.
  [[nodiscard]] pid_t peer_pid() const { return peer_pid_; }
  [[nodiscard]] uid_t peer_uid() const { return peer_uid_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] bool closed() const;

 private:
  struct Waiter {
    std::optional<Json> reply;
  };

  QmpClient(std::string path, UniqueFd socket, UniqueFd wake, std::uint64_t first_id, Handlers handlers);
  std::expected<void, QmpError> send_line(const std::string& line, int fd, std::chrono::steady_clock::time_point until);
  void read_loop();
  std::optional<QmpError> consume(std::string& pending, std::string_view bytes);
  std::optional<QmpError> handle_line(std::string_view line);
  std::optional<QmpError> handle_reply(Json message);
  void close_with(QmpError error);

  const std::string path_;
  const UniqueFd socket_;
  const UniqueFd wake_;  // eventfd: ends the reader
  const Handlers handlers_;
  pid_t peer_pid_ = -1;
  uid_t peer_uid_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, Waiter> waiting_;
  const std::uint64_t first_id_;
  std::uint64_t next_id_ = first_id_;
  bool greeted_ = false;
  bool answered_ = false;  // our first command: nothing of another client's follows
  std::optional<QmpError> closed_;

  std::mutex send_mutex_;
  std::thread reader_;
};

}  // namespace godwit::bridge
