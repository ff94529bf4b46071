#include "dataplane/port/packet_socket.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_sched.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/utsname.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace godwit::port {
namespace {

PortError failed(const std::string& operation) { return {"port: " + operation + ": " + std::strerror(errno)}; }

constexpr std::uint16_t kLoadWord = BPF_LD | BPF_W | BPF_ABS;
constexpr std::uint16_t kLoadHalf = BPF_LD | BPF_H | BPF_ABS;
constexpr std::uint16_t kLoadByte = BPF_LD | BPF_B | BPF_ABS;
constexpr std::uint16_t kLoadIpv4Bytes = BPF_LDX | BPF_B | BPF_MSH;  // of the header, to the index
constexpr std::uint16_t kLoadHalfBehind = BPF_LD | BPF_H | BPF_IND;
constexpr std::uint16_t kLoadByteBehind = BPF_LD | BPF_B | BPF_IND;
constexpr std::uint16_t kEqual = BPF_JMP | BPF_JEQ | BPF_K;
constexpr std::uint16_t kJump = BPF_JMP | BPF_JA;
constexpr std::uint16_t kReturn = BPF_RET | BPF_K;
constexpr auto kVlanPresent = static_cast<std::uint32_t>(SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT);
constexpr auto kEtherType = static_cast<std::uint32_t>(SKF_AD_OFF + SKF_AD_PROTOCOL);
constexpr std::uint32_t kAll = 0xffff'ffff;
// A lane stands two bytes into a UDP payload (docs/protocol.md, "Packets"), little-endian.
constexpr std::uint32_t kLaneBehindIpv4 = ETH_HLEN + 8 + 2;
constexpr std::uint32_t kLaneBehindIpv6 = ETH_HLEN + 40 + 8 + 2;

/// What cannot be loaded, because the frame is too short, is not shown.
std::array<sock_filter, 23> frame_filter(std::uint16_t port, Priority priority) {
  const std::uint32_t urgent = priority == Priority::kUrgent ? kAll : 0;
  return {{
      /* 0*/ {kLoadWord, 0, 0, kVlanPresent},
      /* 1*/ {kEqual, 0, 20, 0},
      /* 2*/ {kLoadHalf, 0, 0, 12},
      /* 3*/ {kEqual, 16, 0, ETH_P_ARP},
      /* 4*/ {kEqual, 0, 7, ETH_P_IP},
      /* 5*/ {kLoadByte, 0, 0, 23},
      /* 6*/ {kEqual, 0, 15, IPPROTO_UDP},
      /* 7*/ {kLoadIpv4Bytes, 0, 0, 14},
      /* 8*/ {kLoadHalfBehind, 0, 0, 16},
      /* 9*/ {kEqual, 0, 12, port},
      /*10*/ {kLoadHalfBehind, 0, 0, kLaneBehindIpv4},
      /*11*/ {kJump, 0, 0, 7},
      /*12*/ {kEqual, 0, 9, ETH_P_IPV6},
      /*13*/ {kLoadByte, 0, 0, 20},
      /*14*/ {kEqual, 5, 0, IPPROTO_ICMPV6},
      /*15*/ {kEqual, 0, 6, IPPROTO_UDP},
      /*16*/ {kLoadHalf, 0, 0, 56},
      /*17*/ {kEqual, 0, 4, port},
      /*18*/ {kLoadHalf, 0, 0, kLaneBehindIpv6},
      /*19*/ {kEqual, 0, 1, 0},
      /*20*/ {kReturn, 0, 0, urgent},
      /*21*/ {kReturn, 0, 0, ~urgent},
      /*22*/ {kReturn, 0, 0, 0},
  }};
}

/// Lane k belongs to the queue (k - 1) mod n; the kernel takes the remainder. Lane 0 is not shown here. Unlike a
/// filter, this sees a packet from its IP header on.
std::array<sock_filter, 8> queue_chooser() {
  return {{
      /*0*/ {kLoadHalf, 0, 0, kEtherType},
      /*1*/ {kEqual, 0, 3, ETH_P_IP},
      /*2*/ {kLoadIpv4Bytes, 0, 0, 0},
      /*3*/ {kLoadByteBehind, 0, 0, kLaneBehindIpv4 - ETH_HLEN},
      /*4*/ {kJump, 0, 0, 1},
      /*5*/ {kLoadByte, 0, 0, kLaneBehindIpv6 - ETH_HLEN},
      /*6*/ {BPF_ALU | BPF_SUB | BPF_K, 0, 0, 1},
      /*7*/ {BPF_RET | BPF_A, 0, 0, 0},
  }};
}

template <class Value>
bool set(int socket, int level, int option, const Value& value) {
  return ::setsockopt(socket, level, option, &value, sizeof value) == 0;
}

/// Beyond net.core.*mem_max with CAP_NET_ADMIN, else up to it.
bool set_room(int socket, int forced, int option, std::uint32_t bytes) {
  const int value = static_cast<int>(bytes);
  return set(socket, SOL_SOCKET, forced, value) || set(socket, SOL_SOCKET, option, value);
}

}  // namespace

std::expected<UniqueFd, PortError> open_packet_socket(const PacketSocketOptions& options) {
  const unsigned index = if_nametoindex(options.interface.c_str());
  if (index == 0) {
    return std::unexpected(failed("interface " + options.interface));
  }
  UniqueFd fd(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));  // protocol 0: deaf until bound
  if (!fd.valid()) {
    return std::unexpected(failed("packet socket (needs CAP_NET_RAW)"));
  }
  auto program = frame_filter(options.udp_port, options.priority);
  const sock_fprog filter{.len = program.size(), .filter = program.data()};
  // Queueing disciplines that look at it send urgent frames first.
  const int priority = options.priority == Priority::kUrgent ? TC_PRIO_INTERACTIVE : TC_PRIO_BESTEFFORT;
  if (!set(fd.get(), SOL_SOCKET, SO_ATTACH_FILTER, filter) || !set(fd.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, 1) ||
      !set(fd.get(), SOL_PACKET, PACKET_VNET_HDR, 1) || !set(fd.get(), SOL_SOCKET, SO_PRIORITY, priority) ||
      !set_room(fd.get(), SO_RCVBUFFORCE, SO_RCVBUF, options.receive_bytes) ||
      !set_room(fd.get(), SO_SNDBUFFORCE, SO_SNDBUF, options.send_bytes)) {
    return std::unexpected(failed("setsockopt of a packet socket on " + options.interface));
  }
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(index);
  // The kernel's interface: sockaddr_ll is passed as sockaddr.
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return std::unexpected(failed("bind to " + options.interface));
  }
  return fd;
}

std::expected<int, PortError> join_packet_group(const UniqueFd& socket, int group) {
  const std::uint32_t flags = group == 0 ? PACKET_FANOUT_FLAG_UNIQUEID : 0;
  const std::uint32_t wanted = (PACKET_FANOUT_CBPF | flags) << 16 | static_cast<std::uint32_t>(group);
  if (!set(socket.get(), SOL_PACKET, PACKET_FANOUT, wanted)) {
    return std::unexpected(failed("sharing the interface among lcores (PACKET_FANOUT; it must be up)"));
  }
  std::uint32_t joined = 0;
  socklen_t bytes = sizeof joined;
  auto program = queue_chooser();
  const sock_fprog chooser{.len = program.size(), .filter = program.data()};
  if (!set(socket.get(), SOL_PACKET, PACKET_FANOUT_DATA, chooser) ||
      getsockopt(socket.get(), SOL_PACKET, PACKET_FANOUT, &joined, &bytes) != 0) {
    return std::unexpected(failed("sharing the interface among lcores (PACKET_FANOUT_DATA)"));
  }
  return static_cast<int>(joined & 0xffff);
}

bool kernel_knows_super_frames() {
  utsname name{};
  int major = 0;
  int minor = 0;
  return uname(&name) == 0 && std::sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
         (major > 6 || (major == 6 && minor >= 2));
}

}  // namespace godwit::port
