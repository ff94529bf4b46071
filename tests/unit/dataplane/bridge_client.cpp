#include "tests/unit/dataplane/bridge_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstring>
#include <utility>

namespace godwit::tests {
namespace {

constexpr int kWaitMs = 20'000;
constexpr int kMessagesMax = 200;  // progress comes five times a second
constexpr int kConnectMs = 5'000;
constexpr std::size_t kMessageBytesMax = 256 * 1024;

}  // namespace

bool BridgeClient::connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  for (int i = 0; i < kConnectMs / 20; ++i) {
    socket_.reset(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      return true;
    }
    poll(nullptr, 0, 20);
  }
  return false;
}

bool BridgeClient::send_bytes(const std::string& bytes, const std::vector<int>& descriptors) {
  iovec part{.iov_base = const_cast<char*>(bytes.data()), .iov_len = bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(128 * sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (!descriptors.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
    cmsghdr* const item = CMSG_FIRSTHDR(&header);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(item), descriptors.data(), descriptors.size() * sizeof(int));
  }
  return sendmsg(socket_.get(), &header, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

std::optional<api::FromDataplane> BridgeClient::receive() {
  pollfd waiting{.fd = socket_.get(), .events = POLLIN, .revents = 0};
  if (poll(&waiting, 1, kWaitMs) != 1) {
    return std::nullopt;
  }
  std::string bytes(kMessageBytesMax, '\0');
  const ssize_t got = recv(socket_.get(), bytes.data(), bytes.size(), 0);
  api::FromDataplane message;
  if (got <= 0 || !message.ParseFromArray(bytes.data(), static_cast<int>(got))) {
    return std::nullopt;
  }
  return message;
}

std::optional<api::Reply> BridgeClient::next_reply() {
  while (auto message = receive()) {
    if (message->has_reply()) {
      return std::move(*message->mutable_reply());
    }
    events_.push_back(std::move(*message->mutable_event()));
  }
  return std::nullopt;
}

std::optional<api::Reply> BridgeClient::ask(api::ToDataplane request, const std::vector<int>& descriptors) {
  request.set_id(next_id_++);
  if (!send_bytes(request.SerializeAsString(), descriptors)) {
    return std::nullopt;
  }
  auto reply = next_reply();
  return reply && reply->id() == request.id() ? reply : std::nullopt;
}

std::optional<api::Event> BridgeClient::wait_event(const std::function<bool(const api::Event&)>& wanted) {
  for (int messages = 0; messages < kMessagesMax; ++messages) {
    while (!events_.empty()) {
      api::Event event = std::move(events_.front());
      events_.pop_front();
      if (wanted(event)) {
        return event;
      }
    }
    auto message = receive();
    if (!message) {
      return std::nullopt;
    }
    if (message->has_event()) {
      events_.push_back(std::move(*message->mutable_event()));
    }
  }
  return std::nullopt;
}

}  // namespace godwit::tests
