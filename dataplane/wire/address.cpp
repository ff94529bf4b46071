#include "dataplane/wire/address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>

namespace godwit::wire {

std::optional<IpAddress> parse_ip_address(std::string_view text) {
  char terminated[INET6_ADDRSTRLEN] = {};
  if (text.empty() || text.size() >= sizeof(terminated) || text.find('\0') != std::string_view::npos) {
    return std::nullopt;
  }
  std::memcpy(terminated, text.data(), text.size());
  IpAddress address;
  if (inet_pton(AF_INET, terminated, address.bytes.data()) == 1) {
    return address;
  }
  address = {.family = IpFamily::kV6};
  if (inet_pton(AF_INET6, terminated, address.bytes.data()) == 1) {
    return address;
  }
  return std::nullopt;
}

std::optional<MacAddress> parse_mac_address(std::string_view text) {
  constexpr std::size_t kTextBytes = 17;
  if (text.size() != kTextBytes) {
    return std::nullopt;
  }
  MacAddress mac;
  for (std::size_t i = 0; i < mac.bytes.size(); ++i) {
    const char* const at = text.data() + 3 * i;
    const auto [end, error] = std::from_chars(at, at + 2, mac.bytes[i], 16);
    if (error != std::errc{} || end != at + 2 || (i + 1 < mac.bytes.size() && at[2] != ':')) {
      return std::nullopt;
    }
  }
  return mac;
}

std::string to_string(const IpAddress& address) {
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(address.family == IpFamily::kV4 ? AF_INET : AF_INET6, address.bytes.data(), text, sizeof(text));
  return text;
}

std::string to_string(const MacAddress& address) {
  const auto& b = address.bytes;
  char text[18] = {};
  std::snprintf(text, sizeof(text), "%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5]);
  return text;
}

IpAddress solicited_node_group(const IpAddress& address) {
  IpAddress group{.family = IpFamily::kV6, .bytes = {0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff}};
  std::copy(address.bytes.begin() + 13, address.bytes.end(), group.bytes.begin() + 13);
  return group;
}

MacAddress multicast_mac(const IpAddress& group) {
  return {{0x33, 0x33, group.bytes[12], group.bytes[13], group.bytes[14], group.bytes[15]}};
}

}  // namespace godwit::wire
