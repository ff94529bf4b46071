#include "dataplane/daemon/flow.h"

#include <algorithm>

namespace godwit::daemon {
namespace {

/// How long packets wait for the peer's Ethernet address; after that they count as lost on the way.
constexpr Duration kUnresolvedGrace = milliseconds(500);

}  // namespace

void Flow::resolve(Instant now, port::Neighbours& neighbours) {
  to_ = neighbours.resolve(now, config_.peer.address);
  unresolved_since_ = to_ ? kNever : std::min(unresolved_since_, now);
  peer_mac_.set(to_);
}

std::size_t Flow::transmit(Instant now, std::size_t index, port::Queue& queue, const wire::MacAddress& mac,
                           std::size_t budget) {
  if (!to_ && now - unresolved_since_ < kUnresolvedGrace) {
    return 0;
  }
  return lanes_.transmit(now, index, queue, mac, to_, budget);
}

}  // namespace godwit::daemon
