#pragma once
// Keeps the kernel's own IP stack away from what is for us on an interface that we share with it. A packet socket
// is shown each frame and the kernel handles it all the same: it looks for a route to an address that
// it does not know, at half a microsecond a frame, in the time of whoever sends over veth, and forwards it if the host
// is a router. Packet sockets see what is dropped here; the frames are the same for all lcores.
//
// Unfragmented UDP to one of our addresses and our port is dropped, nothing else. By a program of the kernel's at the
// ingress of the interface (BPF, tcx: Linux 6.6), which goes with its owner, however that ends. Control thread.
// Failure: attach() says why there is none; all works without it.

#include <cstdint>
#include <expected>
#include <span>
#include <string>

#include "base/unique_fd.h"
#include "dataplane/port/environment.h"
#include "dataplane/wire/address.h"

namespace godwit::port {

class IngressFilter {
 public:
  /// In the network namespace of the calling thread. Needs CAP_BPF and CAP_NET_ADMIN.
  static std::expected<IngressFilter, PortError> attach(const std::string& interface,
                                                        std::span<const wire::IpAddress> addresses,
                                                        std::uint16_t udp_port);

 private:
  explicit IngressFilter(UniqueFd link) : link_(std::move(link)) {}
  UniqueFd link_;
};

}  // namespace godwit::port
