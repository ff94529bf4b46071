#pragma once
// Link and network addresses as values. Pure; any thread.

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

namespace godwit::wire {

namespace detail {
/// Compares in the units in which an address is taken from a packet, of which it is a multiple: the processor hands a
/// store on to a load of as much, but what is loaded in larger units waits for all stores before it, and those may be
/// pages.
template <class Unit, std::size_t kBytes>
[[nodiscard]] inline bool equal_by(const std::array<std::uint8_t, kBytes>& a,
                                   const std::array<std::uint8_t, kBytes>& b) {
  static_assert(kBytes % sizeof(Unit) == 0);
  bool same = true;
  for (std::size_t at = 0; at < kBytes; at += sizeof(Unit)) {
    Unit x, y;
    std::memcpy(&x, a.data() + at, sizeof x);
    std::memcpy(&y, b.data() + at, sizeof y);
    same = same && x == y;
  }
  return same;
}
}  // namespace detail

struct MacAddress {
  std::array<std::uint8_t, 6> bytes{};
  auto operator<=>(const MacAddress&) const = default;
  bool operator==(const MacAddress& other) const { return detail::equal_by<std::uint16_t>(bytes, other.bytes); }
};

inline constexpr MacAddress kBroadcastMac{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};

enum class IpFamily : std::uint8_t { kV4, kV6 };

/// An IPv4 address occupies the first four bytes, the others are zero.
struct IpAddress {
  IpFamily family = IpFamily::kV4;
  alignas(std::uint32_t) std::array<std::uint8_t, 16> bytes{};
  auto operator<=>(const IpAddress&) const = default;
  bool operator==(const IpAddress& other) const {
    return family == other.family && detail::equal_by<std::uint32_t>(bytes, other.bytes);
  }
};

struct UdpEndpoint {
  IpAddress address;
  std::uint16_t port = 0;
  auto operator<=>(const UdpEndpoint&) const = default;
};

/// "10.0.0.1" or "fd00::1"; nullopt for anything else (no port, no prefix length, no zone).
[[nodiscard]] std::optional<IpAddress> parse_ip_address(std::string_view text);
/// "02:00:00:00:00:01"; nullopt for anything else.
[[nodiscard]] std::optional<MacAddress> parse_mac_address(std::string_view text);
[[nodiscard]] std::string to_string(const IpAddress& address);
[[nodiscard]] std::string to_string(const MacAddress& address);

/// The IPv6 group that a neighbour solicitation for `address` is sent to (RFC 4291 §2.7.1).
[[nodiscard]] IpAddress solicited_node_group(const IpAddress& address);
/// The Ethernet address of an IPv6 multicast group (RFC 2464 §7).
[[nodiscard]] MacAddress multicast_mac(const IpAddress& group);

}  // namespace godwit::wire
