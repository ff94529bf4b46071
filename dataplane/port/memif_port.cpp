#include "dataplane/port/memif_port.h"

#include <poll.h>
#include <rte_ether.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/port/memif_link.h"
#include "dataplane/port/memif_queue.h"

namespace godwit::port::memif {
namespace {

constexpr int kRetryMs = 100;     // between two tries to connect
constexpr int kAnswerMs = 2'000;  // what the peer has for each step of the handshake

PortError failed(const std::string& what) { return {"port: memif " + what + ": " + std::strerror(errno)}; }

bool send_message(int socket, const Outgoing& out) {
  Message message = out.message;
  iovec data{&message, sizeof message};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  if (out.file >= 0) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &out.file, sizeof(int));
  }
  return sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(sizeof message);
}

/// The first descriptor that came along; any other is closed.
UniqueFd take_descriptor(msghdr& header) {
  UniqueFd first;
  for (cmsghdr* at = CMSG_FIRSTHDR(&header); at != nullptr; at = CMSG_NXTHDR(&header, at)) {
    if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    for (std::size_t i = 0; CMSG_LEN((i + 1) * sizeof(int)) <= at->cmsg_len; ++i) {
      int file = -1;
      std::memcpy(&file, CMSG_DATA(at) + i * sizeof(int), sizeof file);
      UniqueFd owned(file);
      if (!first.valid()) {
        first = std::move(owned);
      }
    }
  }
  return first;
}

/// False: the peer is gone, or what came is no message.
bool receive_message(int socket, Message& message, UniqueFd& file) {
  iovec data{&message, sizeof message};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int)) + CMSG_SPACE(sizeof(ucred))> control{};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  file = got >= 0 ? take_descriptor(header) : UniqueFd();
  return got == static_cast<ssize_t>(sizeof message);
}

class MemifPort final : public Port {
 public:
  explicit MemifPort(const PortOptions& options) : options_(options) {
    rte_ether_addr address{};
    rte_eth_random_addr(address.addr_bytes);
    std::copy_n(std::begin(address.addr_bytes), mac_.size(), mac_.begin());
  }
  ~MemifPort() override {
    if (thread_.joinable()) {
      stopping_ = true;
      const std::uint64_t one = 1;
      [[maybe_unused]] const ssize_t written = write(stop_.get(), &one, sizeof one);
      thread_.join();
    }
    if (listener_.valid()) {
      unlink(options_.socket.c_str());
    }
  }
  MemifPort(const MemifPort&) = delete;
  MemifPort& operator=(const MemifPort&) = delete;

  std::expected<void, PortError> start();

  [[nodiscard]] std::array<std::uint8_t, 6> mac() const override { return mac_; }
  [[nodiscard]] Queue& queue(std::uint16_t index) override { return *queues_.at(index); }
  [[nodiscard]] std::uint32_t frame_bytes_max() const override { return options_.mtu + kEthernetHeaderBytes; }
  [[nodiscard]] std::optional<wire::ReceiveSpread> receive_spread(wire::IpFamily) const override { return {}; }
  [[nodiscard]] PortDrops drops() const override { return {}; }
  [[nodiscard]] bool link_up() const override { return up_; }
  [[nodiscard]] int receive_interrupt(std::uint16_t queue) override { return queues_.at(queue)->descriptor(); }
  void enable_receive_interrupt(std::uint16_t queue, bool enable) override {
    queues_.at(queue)->enable_interrupt(enable);
  }
  std::expected<std::shared_ptr<Loan>, PortError> lend(std::shared_ptr<const void>, MemoryPieces) override {
    return std::unexpected(PortError{"port: memif copies guest RAM into its rings"});
  }
  std::size_t end_loans() override { return 0; }

 private:
  std::expected<void, PortError> listen();
  [[nodiscard]] UniqueFd next_peer();
  [[nodiscard]] std::expected<std::shared_ptr<Link>, std::string> shake_hands(int peer);
  /// False: stop, or nothing came in time.
  bool wait(int file, int ms) const;
  void serve();
  [[nodiscard]] std::uint16_t all_rings() const { return static_cast<std::uint16_t>(options_.queues + 1); }

  const PortOptions options_;
  std::array<std::uint8_t, 6> mac_{};
  std::vector<std::unique_ptr<MemifQueue>> queues_;
  UniqueFd stop_;
  UniqueFd listener_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> up_{false};
  std::uint16_t rings_ = all_rings();  // to ask for next time
  std::string said_;                   // of the last peer that failed; once
  std::thread thread_;
};

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy_n(path.begin(), std::min(path.size(), sizeof address.sun_path - 1), address.sun_path);
  return address;
}

UniqueFd connect_to(const std::string& path) {
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const sockaddr_un address = address_of(path);
  if (!socket.valid() || connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return {};
  }
  return socket;
}

std::expected<void, PortError> MemifPort::listen() {
  if (connect_to(options_.socket).valid()) {
    return std::unexpected(PortError{"port: memif socket " + options_.socket + " is served by another process"});
  }
  unlink(options_.socket.c_str());  // of one that is dead
  listener_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const sockaddr_un address = address_of(options_.socket);
  if (!listener_.valid() || bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 1) != 0) {
    PortError error = failed("socket " + options_.socket);
    listener_.reset();
    return std::unexpected(std::move(error));
  }
  return {};
}

std::expected<void, PortError> MemifPort::start() {
  stop_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_.valid()) {
    return std::unexpected(failed("eventfd"));
  }
  for (std::uint16_t queue = 0; queue < options_.queues; ++queue) {
    auto kept = KeptFrames::make("memif" + std::to_string(queue), options_.queues, frame_bytes_max());
    if (!kept) {
      return std::unexpected(kept.error());
    }
    queues_.push_back(std::make_unique<MemifQueue>(queue, frame_bytes_max(), std::move(*kept)));
    if (!queues_.back()->valid()) {
      return std::unexpected(failed("queue " + std::to_string(queue)));
    }
  }
  if (options_.memif_server) {
    if (auto done = listen(); !done) {
      return done;
    }
  }
  thread_ = std::thread([this] { serve(); });
  return {};
}

bool MemifPort::wait(int file, int ms) const {
  std::array<pollfd, 2> files{{{stop_.get(), POLLIN, 0}, {file, POLLIN, 0}}};
  while (poll(files.data(), files.size(), ms) < 0 && errno == EINTR) {
  }
  return !stopping_ && files[1].revents != 0;
}

UniqueFd MemifPort::next_peer() {
  if (!options_.memif_server) {
    UniqueFd peer = connect_to(options_.socket);
    if (!peer.valid()) {
      wait(-1, kRetryMs);
    }
    return peer;
  }
  if (!wait(listener_.get(), -1)) {
    return {};
  }
  return UniqueFd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

std::expected<std::shared_ptr<Link>, std::string> MemifPort::shake_hands(int peer) {
  // Room to begin a frame where its pages lie as they do in RAM.
  const std::uint32_t buffer_bytes = (frame_bytes_max() + 63) / 64 * 64 + 64;
  Handshake handshake(
      {.client = !options_.memif_server, .rings = std::exchange(rings_, all_rings()), .buffer_bytes = buffer_bytes});
  if (options_.memif_server && !send_message(peer, handshake.hello())) {
    return std::unexpected("it is gone");
  }
  while (!handshake.done()) {
    Message message;
    UniqueFd file;
    if (!wait(peer, kAnswerMs) || !receive_message(peer, message, file)) {
      return std::unexpected("it does not go on with the handshake");
    }
    auto answer = handshake.on_message(message, std::move(file));
    if (!answer) {
      if (handshake.peer_has_one_ring()) {
        rings_ = 1;
        return std::unexpected(answer.error() + "; next time with one ring");
      }
      Disconnect disconnect{};
      const std::size_t bytes = std::min(answer.error().size(), disconnect.reason.size() - 1);
      std::copy_n(answer.error().begin(), bytes, disconnect.reason.begin());
      send_message(peer, {.message = message_of(Type::kDisconnect, disconnect)});
      return std::unexpected(answer.error());
    }
    if (*answer && !send_message(peer, **answer)) {
      return std::unexpected("it is gone");
    }
  }
  return handshake.take();
}

void MemifPort::serve() {
  while (!stopping_) {
    const UniqueFd peer = next_peer();
    if (!peer.valid()) {
      continue;
    }
    auto link = shake_hands(peer.get());
    if (!link) {
      if (!stopping_ && std::exchange(said_, link.error()) != link.error()) {
        spdlog::warn("memif {}: the peer cannot be used: {}", options_.socket, link.error());
      }
      wait(-1, kRetryMs);
      continue;
    }
    said_.clear();
    for (const auto& queue : queues_) {
      queue->connect(*link);
    }
    link->reset();
    up_ = true;
    wait(peer.get(), -1);  // whatever it says now, or that it is gone: over
    up_ = false;
    for (const auto& queue : queues_) {
      queue->disconnect();
    }
  }
}

}  // namespace

std::expected<std::unique_ptr<Port>, PortError> open(const PortOptions& options) {
  auto port = std::make_unique<MemifPort>(options);
  if (auto done = port->start(); !done) {
    return std::unexpected(done.error());
  }
  return port;
}

}  // namespace godwit::port::memif
