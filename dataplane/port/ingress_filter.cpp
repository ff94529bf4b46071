#include "dataplane/port/ingress_filter.h"

#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <net/if.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <utility>
#include <vector>

namespace godwit::port {
namespace {

// Newer than Debian 12's headers (6.1); values as in the kernel's uapi.
constexpr std::uint32_t kTcxIngress = 46;  // BPF_TCX_INGRESS
constexpr std::int32_t kTcxNext = -1;      // TCX_NEXT: not ours, whoever comes after us decides
constexpr std::int32_t kTcxDrop = 2;       // TCX_DROP

PortError failed(const std::string& operation) {
  return {"ingress filter: " + operation + ": " + std::strerror(errno)};
}

/// A value as it lies in a frame.
std::int32_t in_network_order(std::uint16_t value) { return htons(value); }

using Program = std::vector<bpf_insn>;

constexpr bpf_insn instruction(std::uint8_t code, std::uint8_t to, std::uint8_t from, std::int16_t offset,
                               std::int32_t value) {
  bpf_insn made{};
  made.code = code;
  made.dst_reg = to & 0xfU;
  made.src_reg = from & 0xfU;
  made.off = offset;
  made.imm = value;
  return made;
}
/// `size`: BPF_B, BPF_H, BPF_W.
constexpr bpf_insn load(std::uint8_t size, std::uint8_t to, std::uint8_t from, std::int16_t offset) {
  return instruction(static_cast<std::uint8_t>(BPF_LDX | BPF_MEM | size), to, from, offset, 0);
}
constexpr bpf_insn move(std::uint8_t to, std::uint8_t from) {
  return instruction(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}
constexpr bpf_insn set(std::uint8_t to, std::int32_t value) {
  return instruction(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}
constexpr bpf_insn add(std::uint8_t to, std::int32_t value) {
  return instruction(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value);
}
constexpr std::uint8_t kJumpUnless = BPF_JMP32 | BPF_JNE | BPF_K;
/// To the end of its rule, which is not known yet.
constexpr bpf_insn leave_unless(std::uint8_t reg, std::int32_t value) {
  return instruction(kJumpUnless, reg, 0, 0, value);
}
constexpr bpf_insn kCallLoadBytes = instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_skb_load_bytes);
constexpr bpf_insn kExit = instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);

/// So many bytes (1, 2 or 4) of the IP packet at `offset` must be `value`.
struct Match {
  std::uint8_t size;  // BPF_B, BPF_H, BPF_W
  std::int16_t offset;
  std::int32_t value;
};

constexpr std::int16_t kPortOffset = 2;  // in a UDP header

std::vector<Match> matches(const wire::IpAddress& address, std::uint16_t udp_port) {
  constexpr std::int16_t kV4Bytes = 20;
  constexpr std::int16_t kV6Bytes = 40;
  const bool v4 = address.family == wire::IpFamily::kV4;
  std::vector<Match> all;
  if (v4) {
    constexpr std::uint16_t kDontFragment = 0x4000;  // and no fragment; our frames have it (docs/protocol.md)
    all = {{BPF_B, 0, 0x45}, {BPF_H, 6, in_network_order(kDontFragment)}, {BPF_B, 9, IPPROTO_UDP}};
  } else {
    all = {{BPF_B, 6, IPPROTO_UDP}};
  }
  const std::int16_t header = v4 ? kV4Bytes : kV6Bytes;
  const std::int16_t bytes = v4 ? 4 : 16;
  for (std::int16_t at = 0; at < bytes; at = static_cast<std::int16_t>(at + 4)) {
    std::int32_t word = 0;
    std::memcpy(&word, address.bytes.data() + at, sizeof word);
    all.push_back({BPF_W, static_cast<std::int16_t>(header - bytes + at), word});
  }
  all.push_back({BPF_H, static_cast<std::int16_t>(header + kPortOffset), in_network_order(udp_port)});
  return all;
}

/// Drops what is for this address; falls through to what follows otherwise. The frame is in register 6.
void append_rule(Program& program, const wire::IpAddress& address, std::uint16_t udp_port) {
  constexpr std::int16_t kCopyBytes = 44;  // of the IP packet, to the stack: an IPv6 header and two ports
  constexpr std::int16_t kStack = -48;     // in multiples of 8
  const bool v4 = address.family == wire::IpFamily::kV4;
  const std::size_t begin = program.size();
  program.push_back(load(BPF_W, BPF_REG_0, BPF_REG_6, offsetof(__sk_buff, vlan_present)));
  program.push_back(leave_unless(BPF_REG_0, 0));
  program.push_back(load(BPF_W, BPF_REG_0, BPF_REG_6, offsetof(__sk_buff, protocol)));
  program.push_back(leave_unless(BPF_REG_0, in_network_order(v4 ? ETH_P_IP : ETH_P_IPV6)));
  program.push_back(move(BPF_REG_1, BPF_REG_6));
  program.push_back(set(BPF_REG_2, ETH_HLEN));
  program.push_back(move(BPF_REG_3, BPF_REG_10));
  program.push_back(add(BPF_REG_3, kStack));
  program.push_back(set(BPF_REG_4, v4 ? kCopyBytes - 20 : kCopyBytes));
  program.push_back(kCallLoadBytes);
  program.push_back(leave_unless(BPF_REG_0, 0));
  for (const Match& match : matches(address, udp_port)) {
    program.push_back(load(match.size, BPF_REG_0, BPF_REG_10, static_cast<std::int16_t>(kStack + match.offset)));
    program.push_back(leave_unless(BPF_REG_0, match.value));
  }
  program.push_back(set(BPF_REG_0, kTcxDrop));
  program.push_back(kExit);
  for (std::size_t i = begin; i < program.size(); ++i) {
    if (program[i].code == kJumpUnless) {
      program[i].off = static_cast<std::int16_t>(program.size() - i - 1);
    }
  }
}

int bpf(bpf_cmd command, bpf_attr& attributes) {
  return static_cast<int>(::syscall(SYS_bpf, command, &attributes, sizeof attributes));
}

}  // namespace

std::expected<IngressFilter, PortError> IngressFilter::attach(const std::string& interface,
                                                              std::span<const wire::IpAddress> addresses,
                                                              std::uint16_t udp_port) {
  const unsigned index = if_nametoindex(interface.c_str());
  if (index == 0) {
    return std::unexpected(failed("interface " + interface));
  }
  Program program{move(BPF_REG_6, BPF_REG_1)};
  for (const wire::IpAddress& address : addresses) {
    append_rule(program, address, udp_port);
  }
  program.push_back(set(BPF_REG_0, kTcxNext));
  program.push_back(kExit);

  bpf_attr program_attributes{};
  program_attributes.prog_type = BPF_PROG_TYPE_SCHED_CLS;
  program_attributes.insns = reinterpret_cast<std::uintptr_t>(program.data());
  program_attributes.insn_cnt = static_cast<std::uint32_t>(program.size());
  program_attributes.license = reinterpret_cast<std::uintptr_t>("Apache-2.0");
  std::memcpy(program_attributes.prog_name, "godwit", sizeof "godwit");
  const UniqueFd loaded(bpf(BPF_PROG_LOAD, program_attributes));
  if (!loaded.valid()) {
    return std::unexpected(failed("loading its program"));
  }
  bpf_attr link{};
  link.link_create.prog_fd = static_cast<std::uint32_t>(loaded.get());
  link.link_create.target_ifindex = index;
  link.link_create.attach_type = kTcxIngress;
  UniqueFd attached(bpf(BPF_LINK_CREATE, link));
  if (!attached.valid()) {
    return std::unexpected(failed("attaching to " + interface + " (Linux 6.6)"));
  }
  return IngressFilter(std::move(attached));
}

}  // namespace godwit::port
