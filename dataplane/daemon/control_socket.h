#pragma once
// The local socket of the bridge: SOCK_SEQPACKET, one datagram a message, descriptors by SCM_RIGHTS. Control thread
// only; never blocks. One connection at a time: a new one replaces the old. What arrives is bytes and descriptors,
// nothing of it is believed here but its size. Failure: a peer that breaks the framing (too long, too many
// descriptors), reads nothing for kBacklogBytesMax, or is not one of the allowed users is disconnected, with a reason
// in the log; the socket itself lives on.

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <expected>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace godwit::daemon {

inline constexpr std::size_t kMessageBytesMax = 256 * 1024;
inline constexpr std::size_t kDescriptorsMax = 64;
inline constexpr std::size_t kBacklogBytesMax = 64 * 1024 * 1024;

struct ReceivedMessage {
  std::string bytes;
  std::vector<UniqueFd> descriptors;
};

class ControlSocket {
 public:
  struct Options {
    std::string path;
    std::string group;  // may connect besides our own user and root; empty: nobody else
  };

  static std::expected<ControlSocket, std::string> listen(const Options& options);
  ControlSocket(ControlSocket&&) noexcept = default;
  ControlSocket& operator=(ControlSocket&&) = delete;
  ~ControlSocket();

  /// To be added to the control thread's epoll, edge or level triggered; readable (or writable, connection) means: call
  /// serve().
  [[nodiscard]] int listener() const { return listener_.get(); }
  [[nodiscard]] int connection() const { return connection_.get(); }
  [[nodiscard]] bool wants_write() const { return !backlog_.empty(); }

  /// Accepts and replaces the connection; true: there is a new one.
  bool accept_pending();
  /// The next message; nullopt: none now, or the connection is gone (connected() tells).
  std::optional<ReceivedMessage> receive();
  [[nodiscard]] bool connected() const { return connection_.valid(); }
  /// Queues and sends as far as the peer reads. Without a connection the message is dropped: a bridge that connects
  /// asks for the status.
  void send(std::string message);
  void flush();

 private:
  ControlSocket() = default;
  void disconnect(const std::string& reason);

  std::string path_;
  UniqueFd listener_;
  UniqueFd connection_;
  std::deque<std::string> backlog_;
  std::size_t backlog_bytes_ = 0;
};

}  // namespace godwit::daemon
