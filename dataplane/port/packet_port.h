#pragma once
// A port on one of the kernel's interfaces, shared with the kernel: packet sockets, by which other hosts' data planes
// on any driver are reached. The interface keeps its address, MTU and offloads. No DPDK device is behind it. Failure:
// open_packet_port() says what it cannot have. An interface that goes down later loses what is sent, and works again
// when it is up.

#include <expected>
#include <memory>

#include "dataplane/port/port.h"

namespace godwit::port {

std::expected<std::unique_ptr<Port>, PortError> open_packet_port(const PortOptions& options);

}  // namespace godwit::port
