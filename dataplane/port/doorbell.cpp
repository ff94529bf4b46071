#include "dataplane/port/doorbell.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>

namespace godwit::port {
namespace {

PortError failed(const std::string& operation) { return {"doorbell: " + operation + ": " + std::strerror(errno)}; }

constexpr int kReceiveBytes =
    4096;  // of the socket's queue: a few frames are enough to be readable, the rest is dropped for free

/// Passes one byte of ARP, of IPv6 neighbour discovery, and of UDP to `port`. Unfragmented IPv4 with any header length.
std::array<sock_filter, 17> frame_filter(std::uint16_t port) {
  constexpr std::uint16_t kLoadHalf = BPF_LD | BPF_H | BPF_ABS;
  constexpr std::uint16_t kLoadByte = BPF_LD | BPF_B | BPF_ABS;
  constexpr std::uint16_t kEqual = BPF_JMP | BPF_JEQ | BPF_K;
  return {{
      /* 0*/ {kLoadHalf, 0, 0, 12},
      /* 1*/ {kEqual, 14, 0, ETH_P_ARP},
      /* 2*/ {kEqual, 0, 5, ETH_P_IP},
      /* 3*/ {kLoadByte, 0, 0, 23},
      /* 4*/ {kEqual, 0, 10, IPPROTO_UDP},
      /* 5*/ {BPF_LDX | BPF_B | BPF_MSH, 0, 0, 14},
      /* 6*/ {BPF_LD | BPF_H | BPF_IND, 0, 0, 16},
      /* 7*/ {kEqual, 8, 7, port},
      /* 8*/ {kEqual, 0, 6, ETH_P_IPV6},
      /* 9*/ {kLoadByte, 0, 0, 20},
      /*10*/ {kEqual, 0, 2, IPPROTO_UDP},
      /*11*/ {kLoadHalf, 0, 0, 56},
      /*12*/ {kEqual, 3, 2, port},
      /*13*/ {kEqual, 0, 1, IPPROTO_ICMPV6},
      /*14*/ {BPF_JMP | BPF_JA, 0, 0, 1},
      /*15*/ {BPF_RET | BPF_K, 0, 0, 0},
      /*16*/ {BPF_RET | BPF_K, 0, 0, 1},
  }};
}

std::expected<void, PortError> add(int epoll, int fd, std::uint32_t events) {
  epoll_event event{.events = events, .data = {.fd = fd}};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
    return std::unexpected(failed("epoll_ctl"));
  }
  return {};
}

}  // namespace

std::expected<Doorbell, PortError> Doorbell::open() {
  Doorbell doorbell;
  doorbell.epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  doorbell.kick_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!doorbell.epoll_.valid() || !doorbell.kick_.valid()) {
    return std::unexpected(failed("epoll_create1, eventfd"));
  }
  if (auto added = add(doorbell.epoll_.get(), doorbell.kick_.get(), EPOLLIN); !added) {
    return std::unexpected(added.error());
  }
  return doorbell;
}

std::expected<void, PortError> Doorbell::watch_interface(const std::string& interface, std::uint16_t udp_port) {
  const unsigned index = if_nametoindex(interface.c_str());
  if (index == 0) {
    return std::unexpected(failed("interface " + interface));
  }
  UniqueFd fd(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));  // protocol 0: deaf until bound
  if (!fd.valid()) {
    return std::unexpected(failed("packet socket (needs CAP_NET_RAW)"));
  }
  auto program = frame_filter(udp_port);
  const sock_fprog filter{.len = program.size(), .filter = program.data()};
  const int one = 1;
  const int queue_bytes = kReceiveBytes;
  if (setsockopt(fd.get(), SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) != 0 ||
      setsockopt(fd.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) != 0 ||
      setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &queue_bytes, sizeof queue_bytes) != 0) {
    return std::unexpected(failed("setsockopt on " + interface));
  }
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(index);
  // The kernel's interface: sockaddr_ll is passed as sockaddr.
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return std::unexpected(failed("bind to " + interface));
  }
  if (auto added = add(epoll_.get(), fd.get(), EPOLLIN); !added) {
    return added;
  }
  frames_ = std::move(fd);
  watches_frames_ = true;
  return {};
}

std::expected<void, PortError> Doorbell::watch_descriptor(int fd) {
  if (auto added = add(epoll_.get(), fd, EPOLLIN | EPOLLET); !added) {
    return added;
  }
  watches_frames_ = true;
  return {};
}

std::expected<void, PortError> Doorbell::watch_while_readable(int fd) { return add(epoll_.get(), fd, EPOLLIN); }

void Doorbell::unwatch(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

void Doorbell::kick() const {
  const std::uint64_t one = 1;
  // A full counter (EAGAIN) is readable already.
  [[maybe_unused]] const ssize_t written = write(kick_.get(), &one, sizeof one);
}

void Doorbell::clear() {
  if (!frames_.valid()) {
    return;
  }
  char byte = 0;
  while (recv(frames_.get(), &byte, 1, MSG_TRUNC) >= 0) {
  }
}

void Doorbell::wait(Duration longest) {
  std::array<epoll_event, 4> events{};
  const std::int64_t ns = std::max<std::int64_t>(longest.ns, 0);
  const timespec timeout{.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
  if (epoll_pwait2(epoll_.get(), events.data(), events.size(), &timeout, nullptr) <= 0) {
    return;
  }
  std::uint64_t kicks = 0;
  [[maybe_unused]] const ssize_t got = read(kick_.get(), &kicks, sizeof kicks);
}

}  // namespace godwit::port
