#pragma once
// A memif port: one connection at a time, to one peer, over a unix socket; either role. A thread of its own listens or
// connects, again and again, shakes hands and notices when the peer is gone. No DPDK device is behind it.
// Failure: open() says what it cannot have; what is wrong with a peer is logged, and the connection tried anew.

#include <expected>
#include <memory>

#include "dataplane/port/port.h"

namespace godwit::port::memif {

std::expected<std::unique_ptr<Port>, PortError> open(const PortOptions& options);

}  // namespace godwit::port::memif
