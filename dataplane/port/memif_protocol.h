#pragma once
// memif as other programs speak it (DPDK's net_memif, VPP's libmemif, version 2.0): the messages of its control socket,
// SOCK_SEQPACKET, a message a packet, descriptors by SCM_RIGHTS; and what lies in the shared memory. Little-endian,
// this machine's. The client makes the memory; the server maps it. Pure; no failure.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace godwit::port::memif {

inline constexpr std::uint16_t kVersion = 2 << 8;
inline constexpr std::uint32_t kCookie = 0x3E31F20;
using Name = std::array<char, 32>;

enum class Type : std::uint16_t { kAck = 1, kHello, kInit, kAddRegion, kAddRing, kConnect, kConnected, kDisconnect };

// clang-format off
struct [[gnu::packed]] Hello { Name name; std::uint16_t version_min, version_max, region_max, s2c_ring_max, c2s_ring_max; std::uint8_t log2_slots_max; };
struct [[gnu::packed]] Init { std::uint16_t version; std::uint32_t id; std::uint8_t mode; std::array<char, 24> secret; Name name; };
struct [[gnu::packed]] AddRegion { std::uint16_t index; std::uint64_t bytes; };
struct [[gnu::packed]] AddRing { std::uint16_t flags, index, region; std::uint32_t offset; std::uint8_t log2_slots; std::uint16_t private_bytes; };
struct [[gnu::packed]] Connect { Name name; };  // and kConnected
struct [[gnu::packed]] Disconnect { std::uint32_t code; std::array<char, 96> reason; };
// clang-format on
inline constexpr std::uint16_t kToServer = 1;  // AddRing::flags

struct Message {
  Type type{};
  std::array<std::byte, 126> bytes{};

  /// The body as that of its type.
  template <class Body>
  [[nodiscard]] Body as() const {
    static_assert(sizeof(Body) <= sizeof bytes);
    Body body;
    std::memcpy(&body, bytes.data(), sizeof body);
    return body;
  }
};
static_assert(sizeof(Message) == 128);

template <class Body>
Message message_of(Type type, const Body& body) {
  Message message{.type = type};
  static_assert(sizeof(Body) <= sizeof message.bytes);
  std::memcpy(message.bytes.data(), &body, sizeof body);
  return message;
}

struct Descriptor {
  std::uint16_t flags;
  std::uint16_t region;
  std::uint32_t length;
  std::uint32_t offset;
  std::uint32_t metadata;
};
static_assert(sizeof(Descriptor) == 16);
inline constexpr std::uint16_t kNext = 1;  // Descriptor::flags: the frame goes on in the next slot

/// The sender of a ring that the client fills moves head and the receiver tail. Of one that the server fills, the
/// client's head says which buffers it may fill, and its tail which it has filled.
struct RingHead {
  alignas(64) std::uint32_t cookie;
  std::atomic<std::uint16_t> flags;
  std::atomic<std::uint16_t> head;
  alignas(64) std::atomic<std::uint16_t> tail;
};
static_assert(sizeof(RingHead) == 128 && offsetof(RingHead, head) == 6 && offsetof(RingHead, tail) == 64);
inline constexpr std::uint16_t kMaskInterrupt = 1;  // RingHead::flags: the receiver polls

}  // namespace godwit::port::memif
