#include "qemu-bridge/qmp/qmp_client.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace godwit::bridge {
namespace {

using std::chrono::steady_clock;

constexpr std::int64_t kUnixSecondsMax = INT64_MAX / 2'000'000;
constexpr int kFirstIdBits = 48;  // leaves room to count, and fits every JSON number

std::string errno_text(int error) { return std::strerror(error); }

/// Milliseconds until `until` for poll(), rounded up, never negative.
int poll_time_ms(steady_clock::time_point until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - steady_clock::now());
  return static_cast<int>(std::max<std::int64_t>(0, left.count()));
}

std::expected<UniqueFd, QmpError> connect_socket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return std::unexpected(
        QmpError{QmpErrorCode::kConnect, "QMP socket path '" + path + "' is empty or longer than 107 bytes"});
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid() || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return std::unexpected(
        QmpError{QmpErrorCode::kConnect, "cannot connect to QMP socket " + path + ": " + errno_text(errno)});
  }
  return fd;
}

}  // namespace

std::expected<std::unique_ptr<QmpClient>, QmpError> QmpClient::connect(const std::string& path, Handlers handlers,
                                                                       std::chrono::milliseconds time) {
  auto socket = connect_socket(path);
  if (!socket) {
    return std::unexpected(socket.error());
  }
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) {
    return std::unexpected(QmpError{QmpErrorCode::kConnect, "eventfd: " + errno_text(errno)});
  }
  std::uint64_t first_id = 0;
  if (::getrandom(&first_id, sizeof(first_id), 0) != static_cast<ssize_t>(sizeof(first_id))) {
    return std::unexpected(QmpError{QmpErrorCode::kConnect, "getrandom: " + errno_text(errno)});
  }
  first_id >>= 64 - kFirstIdBits;
  std::unique_ptr<QmpClient> client(
      new QmpClient(path, std::move(*socket), std::move(wake), first_id, std::move(handlers)));
  {
    std::unique_lock lock(client->mutex_);
    const bool answered =
        client->changed_.wait_for(lock, time, [&] { return client->greeted_ || client->closed_.has_value(); });
    if (client->closed_) {
      return std::unexpected(*client->closed_);
    }
    if (!answered) {
      return std::unexpected(
          QmpError{QmpErrorCode::kTimeout, "no QMP greeting on " + path + ": another client may hold this monitor"});
    }
  }
  if (auto ready = client->execute("qmp_capabilities", Json::object(), time); !ready) {
    return std::unexpected(ready.error());
  }
  return client;
}

QmpClient::QmpClient(std::string path, UniqueFd socket, UniqueFd wake, std::uint64_t first_id, Handlers handlers)
    : path_(std::move(path)),
      socket_(std::move(socket)),
      wake_(std::move(wake)),
      handlers_(std::move(handlers)),
      first_id_(first_id) {
  ucred peer{};
  socklen_t length = sizeof(peer);
  if (::getsockopt(socket_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0) {
    peer_pid_ = peer.pid;
    peer_uid_ = peer.uid;
  }
  reader_ = std::thread([this] { read_loop(); });
}

QmpClient::~QmpClient() {
  const std::uint64_t one = 1;
  GW_ASSERT(::write(wake_.get(), &one, sizeof(one)) == static_cast<ssize_t>(sizeof(one)));
  reader_.join();
}

bool QmpClient::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_.has_value();
}

std::expected<Json, QmpError> QmpClient::execute(const std::string& command, Json arguments,
                                                 std::chrono::milliseconds time, int fd) {
  GW_ASSERT(std::this_thread::get_id() != reader_.get_id());
  const auto until = steady_clock::now() + time;
  std::uint64_t id = 0;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) {
      return std::unexpected(*closed_);
    }
    id = next_id_++;
    waiting_.emplace(id, Waiter{});
  }
  Json message = {{"execute", command}, {"id", id}};
  if (!arguments.empty()) {
    message["arguments"] = std::move(arguments);
  }
  auto sent = send_line(dump_json(message) + "\n", fd, until);

  std::unique_lock lock(mutex_);
  if (!sent) {
    waiting_.erase(id);
    return std::unexpected(sent.error());
  }
  changed_.wait_until(lock, until, [&] { return closed_.has_value() || waiting_.at(id).reply.has_value(); });
  // A reply that comes after its time finds id < next_id_ and no waiter, and is dropped.
  auto node = waiting_.extract(id);
  if (!node.mapped().reply) {
    return std::unexpected(closed_ ? *closed_
                                   : QmpError{QmpErrorCode::kTimeout, "QEMU did not answer " + command + " within " +
                                                                          std::to_string(time.count()) + " ms"});
  }
  lock.unlock();
  Json reply = std::move(*node.mapped().reply);
  if (const Json* value = json_member(reply, "return")) {
    return *value;
  }
  const Json* error = json_member(reply, "error");
  const std::string text = error == nullptr ? std::string("no text") : json_string(*error, "desc").value_or("no text");
  return std::unexpected(QmpError{QmpErrorCode::kCommand, "QEMU refused " + command + ": " + text});
}

std::expected<void, QmpError> QmpClient::send_line(const std::string& line, int fd, steady_clock::time_point until) {
  const std::lock_guard lock(send_mutex_);
  std::size_t done = 0;
  while (done < line.size()) {
    iovec part{const_cast<char*>(line.data()) + done, line.size() - done};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    if (fd >= 0 && done == 0) {
      header.msg_control = control.data();
      header.msg_controllen = control.size();
      cmsghdr* message = CMSG_FIRSTHDR(&header);
      message->cmsg_level = SOL_SOCKET;
      message->cmsg_type = SCM_RIGHTS;
      message->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(message), &fd, sizeof(int));
    }
    const ssize_t sent = ::sendmsg(socket_.get(), &header, MSG_NOSIGNAL);
    if (sent > 0) {
      done += static_cast<std::size_t>(sent);
      continue;
    }
    if (sent < 0 && errno == EINTR) {
      continue;
    }
    if (sent < 0 && errno != EAGAIN) {
      return std::unexpected(QmpError{QmpErrorCode::kClosed, "QMP " + path_ + ": send: " + errno_text(errno)});
    }
    pollfd ready{socket_.get(), POLLOUT, 0};
    if (::poll(&ready, 1, poll_time_ms(until)) == 0) {
      QmpError error{QmpErrorCode::kTimeout, "QEMU does not read its monitor " + path_};
      if (done > 0) {
        // Half a command is on the wire: nothing sent later would be understood.
        error.code = QmpErrorCode::kClosed;
        ::shutdown(socket_.get(), SHUT_RDWR);
      }
      return std::unexpected(error);
    }
  }
  return {};
}

void QmpClient::read_loop() {
  std::string pending;
  std::array<char, 65536> buffer;
  while (true) {
    std::array<pollfd, 2> ready{pollfd{socket_.get(), POLLIN, 0}, pollfd{wake_.get(), POLLIN, 0}};
    if (::poll(ready.data(), ready.size(), -1) < 0 && errno != EINTR) {
      return close_with({QmpErrorCode::kClosed, "QMP " + path_ + ": poll: " + errno_text(errno)});
    }
    if (ready[1].revents != 0) {
      return;
    }
    const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (got == 0) {
      return close_with({QmpErrorCode::kClosed, "QEMU closed its monitor " + path_});
    }
    if (got < 0) {
      if (errno == EAGAIN || errno == EINTR) {
        continue;
      }
      return close_with({QmpErrorCode::kClosed, "QMP " + path_ + ": recv: " + errno_text(errno)});
    }
    if (auto error = consume(pending, {buffer.data(), static_cast<std::size_t>(got)})) {
      return close_with(std::move(*error));
    }
  }
}

std::optional<QmpError> QmpClient::consume(std::string& pending, std::string_view bytes) {
  while (!bytes.empty()) {
    const std::size_t end = bytes.find('\n');
    if (end == std::string_view::npos) {
      if (pending.size() + bytes.size() > kLineBytesMax) {
        return QmpError{QmpErrorCode::kFlood,
                        "QMP " + path_ + ": a line of more than " + std::to_string(kLineBytesMax) + " bytes"};
      }
      pending.append(bytes);
      return std::nullopt;
    }
    std::optional<QmpError> error;
    if (pending.empty()) {
      error = handle_line(bytes.substr(0, end));
    } else {
      pending.append(bytes.substr(0, end));
      error = handle_line(pending);
      pending.clear();
    }
    if (error) {
      return error;
    }
    bytes.remove_prefix(end + 1);
  }
  return std::nullopt;
}

std::optional<QmpError> QmpClient::handle_line(std::string_view line) {
  if (line.empty() || line == "\r") {
    return std::nullopt;
  }
  auto message = parse_json(line);
  if (!message || !message->is_object()) {
    return QmpError{QmpErrorCode::kProtocol, "QMP " + path_ + ": not a JSON object: '" +
                                                 std::string(line.substr(0, 80)) + "'; is this a QMP socket?"};
  }
  if (json_member(*message, "QMP") != nullptr) {
    const std::lock_guard lock(mutex_);
    greeted_ = true;
    changed_.notify_all();
    return std::nullopt;
  }
  if (auto name = json_string(*message, "event")) {
    if (const std::lock_guard lock(mutex_); !greeted_) {
      return std::nullopt;
    }
    QmpEvent event{std::move(*name), Json::object(), 0};
    if (const Json* data = json_member(*message, "data")) {
      event.data = *data;
    }
    if (const Json* stamp = json_member(*message, "timestamp")) {
      const auto seconds = json_int(*stamp, "seconds").value_or(0);
      const auto microseconds = json_int(*stamp, "microseconds").value_or(0);
      // QEMU writes -1 when it has no clock.
      if (seconds >= 0 && seconds <= kUnixSecondsMax && microseconds >= 0 && microseconds < 1'000'000) {
        event.unix_us = seconds * 1'000'000 + microseconds;
      }
    }
    if (handlers_.on_event) {
      handlers_.on_event(event);
    }
    return std::nullopt;
  }
  return handle_reply(std::move(*message));
}

std::optional<QmpError> QmpClient::handle_reply(Json message) {
  const auto id = json_uint(message, "id");
  const bool shaped = json_member(message, "return") != nullptr || json_member(message, "error") != nullptr;
  const std::lock_guard lock(mutex_);
  const bool ours = id && *id >= first_id_ && *id < next_id_;
  if (shaped && !ours && !answered_) {
    return std::nullopt;
  }
  if (!shaped || !ours) {
    return QmpError{QmpErrorCode::kProtocol,
                    "QMP " + path_ + ": a reply that answers nothing: '" + dump_json(message).substr(0, 80) + "'"};
  }
  answered_ = true;
  if (const auto waiter = waiting_.find(*id); waiter != waiting_.end()) {
    waiter->second.reply = std::move(message);
    changed_.notify_all();
  }
  return std::nullopt;
}

void QmpClient::close_with(QmpError error) {
  ::shutdown(socket_.get(), SHUT_RDWR);
  {
    const std::lock_guard lock(mutex_);
    closed_ = error;
    changed_.notify_all();
  }
  if (handlers_.on_closed) {
    handlers_.on_closed(error);
  }
}

}  // namespace godwit::bridge
