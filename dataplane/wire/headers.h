#pragma once
// Internal to wire: numbers and field access that datagram.cpp and neighbour.cpp share. Pure.

#include <algorithm>

#include "dataplane/wire/address.h"
#include "dataplane/wire/bytes.h"

namespace godwit::wire {

inline constexpr std::size_t kAtEtherType = 12;
inline constexpr std::uint16_t kEtherTypeIpv4 = 0x0800;
inline constexpr std::uint16_t kEtherTypeArp = 0x0806;
inline constexpr std::uint16_t kEtherTypeIpv6 = 0x86dd;
inline constexpr std::uint8_t kProtocolUdp = 17;
inline constexpr std::uint8_t kProtocolIcmpv6 = 58;

[[nodiscard]] constexpr std::size_t address_bytes(IpFamily family) { return family == IpFamily::kV4 ? 4 : 16; }

/// `address` is new: its bytes are zero.
inline void load_ip(std::span<const std::byte> bytes, std::size_t at, IpFamily family, IpAddress& address) {
  GW_ASSERT(at + address_bytes(family) <= bytes.size());
  address.family = family;
  std::memcpy(address.bytes.data(), bytes.data() + at, address_bytes(family));
}
[[nodiscard]] inline IpAddress load_ip(std::span<const std::byte> bytes, std::size_t at, IpFamily family) {
  IpAddress address;
  load_ip(bytes, at, family, address);
  return address;
}

inline void store_ip(std::span<std::byte> bytes, std::size_t at, const IpAddress& address) {
  GW_ASSERT(at + address_bytes(address.family) <= bytes.size());
  std::memcpy(bytes.data() + at, address.bytes.data(), address_bytes(address.family));
}

[[nodiscard]] inline MacAddress load_mac(std::span<const std::byte> bytes, std::size_t at) {
  MacAddress mac;
  GW_ASSERT(at + mac.bytes.size() <= bytes.size());
  std::memcpy(mac.bytes.data(), bytes.data() + at, mac.bytes.size());
  return mac;
}

inline void store_mac(std::span<std::byte> bytes, std::size_t at, const MacAddress& mac) {
  GW_ASSERT(at + mac.bytes.size() <= bytes.size());
  std::memcpy(bytes.data() + at, mac.bytes.data(), mac.bytes.size());
}

inline void write_ethernet(std::span<std::byte> frame, const MacAddress& destination, const MacAddress& source,
                           std::uint16_t type) {
  store_mac(frame, 0, destination);
  store_mac(frame, 6, source);
  store_be<std::uint16_t>(frame, kAtEtherType, type);
}

}  // namespace godwit::wire
