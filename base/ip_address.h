#pragma once
// IP addresses as values: an IPv4 or IPv6 address, and one with its prefix length. In network byte order, as on the
// wire. Any thread, no allocation but for text(). Text from outside becomes one of these once, or nothing.

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace godwit {

class IpAddress {
 public:
  enum class Family : std::uint8_t { kIpv4, kIpv6 };
  using Bytes = std::array<std::uint8_t, 16>;

  /// 0.0.0.0
  constexpr IpAddress() = default;
  /// IPv4 uses the first 4 bytes; the rest must be zero.
  constexpr IpAddress(Family family, const Bytes& bytes) : family_(family), bytes_(bytes) {}

  /// "10.0.0.1" or "fd00::1"; no zone, no port.
  [[nodiscard]] static std::optional<IpAddress> parse(std::string_view text);

  [[nodiscard]] std::string text() const;
  [[nodiscard]] constexpr Family family() const { return family_; }
  [[nodiscard]] constexpr bool is_ipv6() const { return family_ == Family::kIpv6; }
  [[nodiscard]] constexpr const Bytes& bytes() const { return bytes_; }
  /// 32 or 128.
  [[nodiscard]] constexpr unsigned bits() const { return is_ipv6() ? 128 : 32; }
  [[nodiscard]] constexpr bool is_unspecified() const { return bytes_ == Bytes{}; }
  /// 224.0.0.0/4 or ff00::/8.
  [[nodiscard]] constexpr bool is_multicast() const {
    return is_ipv6() ? bytes_[0] == 0xff : (bytes_[0] & 0xf0) == 0xe0;
  }

  constexpr auto operator<=>(const IpAddress&) const = default;

 private:
  Family family_ = Family::kIpv4;
  Bytes bytes_{};
};

/// A host's own address and how much of it is the subnet's.
struct IpPrefix {
  IpAddress address;
  unsigned length = 0;  // bits, at most address.bits()

  /// "10.0.0.1/24"; the length is not optional.
  [[nodiscard]] static std::optional<IpPrefix> parse(std::string_view text);
  [[nodiscard]] std::string text() const;
  /// Is `other` in the same subnet?
  [[nodiscard]] bool contains(const IpAddress& other) const;

  constexpr auto operator<=>(const IpPrefix&) const = default;
};

}  // namespace godwit
