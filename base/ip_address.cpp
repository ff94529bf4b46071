#include "base/ip_address.h"

#include <arpa/inet.h>

#include <charconv>

namespace godwit {

namespace {

int system_family(IpAddress::Family family) { return family == IpAddress::Family::kIpv6 ? AF_INET6 : AF_INET; }

}  // namespace

std::optional<IpAddress> IpAddress::parse(std::string_view text) {
  if (text.size() >= INET6_ADDRSTRLEN || text.find('\0') != std::string_view::npos) {
    return std::nullopt;
  }
  const std::string terminated(text);
  for (const auto family : {Family::kIpv4, Family::kIpv6}) {
    Bytes bytes{};
    if (::inet_pton(system_family(family), terminated.c_str(), bytes.data()) == 1) {
      return IpAddress(family, bytes);
    }
  }
  return std::nullopt;
}

std::string IpAddress::text() const {
  std::array<char, INET6_ADDRSTRLEN> buffer{};
  return ::inet_ntop(system_family(family_), bytes_.data(), buffer.data(), buffer.size());
}

std::optional<IpPrefix> IpPrefix::parse(std::string_view text) {
  const auto slash = text.find('/');
  if (slash == std::string_view::npos) {
    return std::nullopt;
  }
  const auto address = IpAddress::parse(text.substr(0, slash));
  const auto digits = text.substr(slash + 1);
  unsigned length = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), length);
  if (!address || error != std::errc() || end != digits.data() + digits.size() || length > address->bits()) {
    return std::nullopt;
  }
  return IpPrefix{*address, length};
}

std::string IpPrefix::text() const { return address.text() + "/" + std::to_string(length); }

bool IpPrefix::contains(const IpAddress& other) const {
  if (other.family() != address.family()) {
    return false;
  }
  for (unsigned bit = 0; bit < length; bit += 8) {
    const unsigned in_byte = length - bit < 8 ? length - bit : 8;
    const unsigned mask = 0xffU & (0xffU << (8 - in_byte));
    if (((address.bytes()[bit / 8] ^ other.bytes()[bit / 8]) & mask) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace godwit
