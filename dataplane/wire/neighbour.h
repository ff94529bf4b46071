#pragma once
// Finding a neighbour's Ethernet address: ARP (RFC 826) for IPv4, neighbour discovery (RFC 4861) for IPv6, as bytes.
// Pure; any thread. Input is hostile: every rule of the RFCs' validation sections is checked, and the first broken one
// named. Policy (when to ask, what to believe, how long) belongs to the port.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string_view>

#include "dataplane/wire/address.h"

namespace godwit::wire {

/// Room for any frame built here.
inline constexpr std::size_t kNeighbourFrameBytesMax = 86;

enum class NeighbourReject : std::uint8_t {
  kTooShort,
  kNotNeighbour,
  kBadFormat,
  kBadOperation,
  kBadAddress,
  kHopLimit,
  kBadLength,
  kBadChecksum,
  kBadOption,
  kCount,
};
[[nodiscard]] std::string_view to_string(NeighbourReject reject);

struct ArpMessage {
  bool request = true;
  MacAddress sender_mac;
  IpAddress sender;       // IPv4; all zero in a probe (RFC 5227)
  MacAddress target_mac;  // zero in a request
  IpAddress target;       // IPv4
};

/// Builds a padded Ethernet frame (60 bytes); a request goes to the broadcast address, a reply to target_mac. Returns
/// its length.
std::size_t build_arp(const ArpMessage& message, std::span<std::byte> frame);
[[nodiscard]] std::expected<ArpMessage, NeighbourReject> parse_arp(std::span<const std::byte> frame);

struct NeighbourMessage {
  bool solicitation = true;  // otherwise an advertisement
  MacAddress source_mac;     // of the Ethernet header
  MacAddress destination_mac;
  IpAddress source;  // IPv6; unspecified in duplicate address detection
  IpAddress destination;
  IpAddress target;                        // whose address is asked or told
  std::optional<MacAddress> link_address;  // source (solicitation) or target (advertisement) link-layer address option
  bool solicited = false;                  // advertisement only
  bool override_cache = false;             // advertisement only
};

/// Builds an Ethernet frame; returns its length.
std::size_t build_neighbour(const NeighbourMessage& message, std::span<std::byte> frame);
[[nodiscard]] std::expected<NeighbourMessage, NeighbourReject> parse_neighbour(std::span<const std::byte> frame);

}  // namespace godwit::wire
