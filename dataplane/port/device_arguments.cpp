#include <algorithm>
#include <cctype>

#include "dataplane/port/port.h"

namespace godwit::port {
namespace {

/// Devargs split at commas and colons of their own: a value with one would become another option.
bool plain_value(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(),
                                      [](unsigned char c) { return std::isgraph(c) != 0 && c != ',' && c != '='; });
}

}  // namespace

std::expected<std::string, PortError> device_arguments(const PortOptions& options) {
  if (options.mtu < kMtuMin || options.mtu > kMtuMax) {
    return std::unexpected(PortError{"port: mtu " + std::to_string(options.mtu) + " is not between " +
                                     std::to_string(kMtuMin) + " and " + std::to_string(kMtuMax)});
  }
  if (options.queues == 0 || options.queues > 64) {
    return std::unexpected(PortError{"port: " + std::to_string(options.queues) + " queues; give 1 to 64"});
  }
  switch (options.driver) {
    case Driver::kPci:
      return std::string();
    case Driver::kAfPacket:
      if (!plain_value(options.interface)) {
        return std::unexpected(
            PortError{"port: net_af_packet needs interface = \"NAME\", not \"" + options.interface + "\""});
      }
      return std::string();
    case Driver::kMemif:
      if (!plain_value(options.socket) || options.socket.front() != '/' || options.socket.size() > 107) {
        return std::unexpected(
            PortError{"port: net_memif needs socket = \"/absolute/path\" of at most 107 characters, not \"" +
                      options.socket + "\""});
      }
      return std::string();
    case Driver::kOther:
      if (options.device.empty()) {
        return std::unexpected(
            PortError{"port: device is empty; give a PCI address, net_af_packet, net_memif or DPDK devargs"});
      }
      return options.device;
  }
  return std::unexpected(PortError{"port: unknown driver"});
}

}  // namespace godwit::port
