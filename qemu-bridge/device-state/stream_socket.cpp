#include "qemu-bridge/device-state/stream_socket.h"

#include <sys/socket.h>

#include <cerrno>

namespace godwit::bridge {
namespace {

constexpr int kBufferBytes = 8 << 20;

void enlarge(int fd) {
  // FORCE needs CAP_NET_ADMIN; without it the kernel's limit stands, and the stream is only slower.
  if (::setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &kBufferBytes, sizeof(kBufferBytes)) != 0) {
    ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kBufferBytes, sizeof(kBufferBytes));
  }
}

}  // namespace

std::expected<StreamSockets, int> make_stream_sockets() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return std::unexpected(errno);
  }
  StreamSockets sockets{UniqueFd(ends[0]), UniqueFd(ends[1])};
  enlarge(sockets.ours.get());
  enlarge(sockets.qemu.get());
  return sockets;
}

}  // namespace godwit::bridge
