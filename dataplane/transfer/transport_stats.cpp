#include "dataplane/transfer/transport_stats.h"

#include <algorithm>

namespace godwit::transfer {

void put_transport(std::span<transport::Lane* const> lanes, std::uint32_t header_bytes, Stats& stats) {
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const transport::LaneCounters& c = lanes[i]->counters();
    stats.retransmitted_pages += c.pages_retransmitted;
    stats.wire_bytes += c.bytes_sent + c.bytes_received + (c.packets_sent + c.packets_received) * header_bytes;
    stats.packets_sent += c.packets_sent;
    stats.packets_lost += c.packets_lost;
    stats.probe_timeouts += c.probe_timeouts;
    stats.spurious_losses += c.spurious_losses;
    if (i > 0) {
      stats.rtt_us = std::max(stats.rtt_us, c.smoothed_rtt_ns / 1000);
      stats.window_packets += c.window_packets;
    }
  }
}

}  // namespace godwit::transfer
