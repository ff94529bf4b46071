#pragma once
// The control thread's loop: the bridge's socket, signals, exits of QEMU processes, and the control inbox, in one
// epoll. run() returns on SIGTERM or SIGINT. It parses what the bridge sends and gives it to Service; replies go to the
// connection that asked, if it still stands. Failure: open() says which call; a bridge that sends garbage gets an error
// reply (or is disconnected by ControlSocket).

#include <cstdint>
#include <expected>
#include <functional>
#include <string>

#include "base/unique_fd.h"
#include "dataplane/daemon/control_socket.h"
#include "dataplane/daemon/inbox.h"
#include "dataplane/daemon/requests.h"

namespace godwit::daemon {

class Service;

class ControlLoop {
 public:
  /// Blocks SIGTERM and SIGINT for this thread and those that it starts later.
  static std::expected<ControlLoop, std::string> open(ControlSocket socket);
  ControlLoop(ControlLoop&&) noexcept = default;

  /// For Inbox: any thread, as long as the loop lives.
  [[nodiscard]] std::function<void()> waker() const;
  void emit(const api::Event& event);
  void watch_process(int pidfd);
  void run(Service& service, Inbox& inbox);

 private:
  explicit ControlLoop(ControlSocket socket) : socket_(std::move(socket)) {}
  void serve_bridge(Service& service);
  void watch_connection();

  ControlSocket socket_;
  UniqueFd epoll_;
  UniqueFd signals_;
  UniqueFd wake_;
  std::uint64_t connection_number_ = 0;
};

}  // namespace godwit::daemon
