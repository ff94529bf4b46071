#pragma once
// A packet socket on one of the kernel's interfaces, bare: what it is shown, how much may wait. It is shown only what
// concerns us (our UDP port, ARP, IPv6 neighbour discovery), nothing that this host sends, nothing with a VLAN tag.
// Owner: a queue; opened by the control thread, in whose network namespace the interface is. Each frame has a
// virtio_net_hdr in front, on either way (PACKET_VNET_HDR). Needs CAP_NET_RAW, and CAP_NET_ADMIN for its buffers.
// Failure: open() says which call.

#include <cstdint>
#include <expected>
#include <string>

#include "base/unique_fd.h"
#include "dataplane/port/environment.h"
#include "dataplane/port/send_queue.h"

namespace godwit::port {

struct PacketSocketOptions {
  std::string interface;
  std::uint16_t udp_port = 0;
  /// Urgent: ARP, neighbour discovery, the priority lane. Bulk: the other lanes.
  Priority priority = Priority::kBulk;
  std::uint32_t receive_bytes = 0;  // of frames that may wait for us
  std::uint32_t send_bytes = 0;     // of ours that may wait for the interface
};

std::expected<UniqueFd, PortError> open_packet_socket(const PacketSocketOptions& options);

/// Of several sockets of bulk on one interface, in the order of their queues, each is shown the lanes whose owner its
/// queue's lcore is (docs/architecture.md, "Several lcores"). `group`: 0 for the first; what it returns for the others.
std::expected<int, PortError> join_packet_group(const UniqueFd& socket, int group);

/// Whether this kernel hands super-frames (super_frame.h) to packet sockets: Linux 6.2.
[[nodiscard]] bool kernel_knows_super_frames();

}  // namespace godwit::port
