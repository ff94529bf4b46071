#include "dataplane/daemon/control_socket.h"

#include <fcntl.h>
#include <grp.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace godwit::daemon {
namespace {

constexpr int kSendBufferBytes = 4 * 1024 * 1024;

std::string system_error(const std::string& what) { return what + ": " + std::strerror(errno); }

/// A socket file that nobody listens on is left over from a daemon that was killed; one that answers is another
/// daemon's.
std::expected<void, std::string> remove_stale(const sockaddr_un& address, socklen_t length, const std::string& path) {
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0) {
    return {};
  }
  if (!S_ISSOCK(status.st_mode)) {
    return std::unexpected("control socket " + path +
                           ": the file exists and is no socket; remove it or choose another path");
  }
  const UniqueFd probe(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0) {
    return std::unexpected("control socket " + path + ": another daemon listens there; stop it or choose another path");
  }
  if (unlink(path.c_str()) != 0) {
    return std::unexpected(system_error("control socket " + path + ": unlink"));
  }
  return {};
}

std::expected<void, std::string> give_to_group(const std::string& path, const std::string& group) {
  if (group.empty()) {
    return {};
  }
  const struct group* const entry = getgrnam(group.c_str());
  if (entry == nullptr) {
    return std::unexpected("control socket " + path + ": there is no group " + group);
  }
  if (chown(path.c_str(), static_cast<uid_t>(-1), entry->gr_gid) != 0 || chmod(path.c_str(), 0660) != 0) {
    return std::unexpected(system_error("control socket " + path + ": giving it to group " + group));
  }
  return {};
}

/// Takes the descriptors out of the control data; every one of them is owned from here on.
std::vector<UniqueFd> take_descriptors(msghdr& header) {
  std::vector<UniqueFd> descriptors;
  for (cmsghdr* item = CMSG_FIRSTHDR(&header); item != nullptr; item = CMSG_NXTHDR(&header, item)) {
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const std::size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof fd);
      descriptors.emplace_back(fd);
    }
  }
  return descriptors;
}

}  // namespace

std::expected<ControlSocket, std::string> ControlSocket::listen(const Options& options) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (options.path.empty() || options.path.size() >= sizeof address.sun_path) {
    return std::unexpected("control socket: path \"" + options.path + "\" is empty or longer than " +
                           std::to_string(sizeof address.sun_path - 1) + " characters");
  }
  std::memcpy(address.sun_path, options.path.data(), options.path.size());
  const auto length = static_cast<socklen_t>(sizeof address);
  if (auto removed = remove_stale(address, length, options.path); !removed) {
    return std::unexpected(removed.error());
  }
  ControlSocket result;
  result.listener_.reset(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!result.listener_.valid()) {
    return std::unexpected(system_error("control socket: socket"));
  }
  // fchmod before bind: there is no moment at which the file is open to others.
  if (fchmod(result.listener_.get(), 0600) != 0 ||
      bind(result.listener_.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    return std::unexpected(system_error("control socket " + options.path + ": bind"));
  }
  result.path_ = options.path;
  if (chmod(options.path.c_str(), 0600) != 0 || ::listen(result.listener_.get(), 4) != 0) {
    return std::unexpected(system_error("control socket " + options.path + ": listen"));
  }
  if (auto given = give_to_group(options.path, options.group); !given) {
    return std::unexpected(given.error());
  }
  return result;
}

ControlSocket::~ControlSocket() {
  if (listener_.valid()) {
    unlink(path_.c_str());
  }
}

bool ControlSocket::accept_pending() {
  bool replaced = false;
  for (;;) {
    UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      return replaced;
    }
    if (connection_.valid()) {
      disconnect("another bridge has connected");
    }
    // Best effort: the limit is the administrator's, the backlog takes what does not fit.
    setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof kSendBufferBytes);
    connection_ = std::move(fd);
    replaced = true;
  }
}

std::optional<ReceivedMessage> ControlSocket::receive() {
  if (!connection_.valid()) {
    return std::nullopt;
  }
  ReceivedMessage message;
  message.bytes.resize(kMessageBytesMax);
  iovec part{.iov_base = message.bytes.data(), .iov_len = message.bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kDescriptorsMax * sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t bytes = recvmsg(connection_.get(), &header, MSG_CMSG_CLOEXEC);
  if (bytes < 0) {
    if (errno != EAGAIN && errno != EINTR) {
      disconnect(std::strerror(errno));
    }
    return std::nullopt;
  }
  message.descriptors = take_descriptors(header);
  if (bytes == 0) {
    disconnect("closed by the bridge");
    return std::nullopt;
  }
  if ((header.msg_flags & MSG_TRUNC) != 0) {
    disconnect("a message is longer than " + std::to_string(kMessageBytesMax) + " bytes");
    return std::nullopt;
  }
  if ((header.msg_flags & MSG_CTRUNC) != 0) {
    disconnect("a message carries more than " + std::to_string(kDescriptorsMax) +
               " descriptors, or we may open no more");
    return std::nullopt;
  }
  message.bytes.resize(static_cast<std::size_t>(bytes));
  return message;
}

void ControlSocket::send(std::string message) {
  GW_ASSERT(message.size() <= kMessageBytesMax);
  if (!connection_.valid()) {
    return;
  }
  backlog_bytes_ += message.size();
  backlog_.push_back(std::move(message));
  if (backlog_bytes_ > kBacklogBytesMax) {
    disconnect("it reads nothing: " + std::to_string(backlog_bytes_) + " bytes wait");
    return;
  }
  flush();
}

void ControlSocket::flush() {
  while (!backlog_.empty() && connection_.valid()) {
    const std::string& message = backlog_.front();
    if (::send(connection_.get(), message.data(), message.size(), MSG_NOSIGNAL) < 0) {
      if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS) {
        disconnect(std::strerror(errno));
      }
      return;
    }
    backlog_bytes_ -= message.size();
    backlog_.pop_front();
  }
}

void ControlSocket::disconnect(const std::string& reason) {
  spdlog::info("control socket {}: bridge disconnected: {}", path_, reason);
  connection_.reset();
  backlog_.clear();
  backlog_bytes_ = 0;
}

}  // namespace godwit::daemon
