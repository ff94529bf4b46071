#pragma once
// What a migration's lanes have counted, as its Stats tell it. Pure; any thread, as long as the lanes live.

#include <span>

#include "dataplane/transfer/migration.h"

namespace godwit::transfer {

/// lanes[0] is the priority lane; header_bytes: IP and UDP, of each packet.
void put_transport(std::span<transport::Lane* const> lanes, std::uint32_t header_bytes, Stats& stats);

}  // namespace godwit::transfer
