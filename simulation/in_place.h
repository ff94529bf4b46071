#pragma once
// What a driver makes of a packet whose pages lie elsewhere: it reads them when it sends. Pure.

#include <cstddef>
#include <span>
#include <vector>

#include "dataplane/transport/lane.h"
#include "dataplane/wire/packet.h"

namespace godwit::simulation {

/// The datagram as it goes out now.
inline std::vector<std::byte> as_sent(std::span<const std::byte> buffer, const transport::PagesInPlace& in_place) {
  const auto tail = buffer.end() - (in_place.count == 0 ? 0 : wire::kTagBytes);
  std::vector<std::byte> datagram(buffer.begin(), tail);
  for (const std::span<const std::byte> piece : in_place.view()) {
    datagram.insert(datagram.end(), piece.begin(), piece.end());
  }
  datagram.insert(datagram.end(), tail, buffer.end());
  return datagram;
}

}  // namespace godwit::simulation
