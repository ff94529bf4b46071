#include "dataplane/daemon/telemetry.h"

#include <string>

namespace godwit::daemon {

void register_telemetry(const DataPath& data_path, const port::PollLoop& loop, port::Port& port) {
  port::publish("/godwit/drops", "Datagrams that changed nothing, by reason", [&data_path, &port] {
    port::Figures figures;
    for (std::size_t i = 0; i < static_cast<std::size_t>(Drop::kCount); ++i) {
      figures.emplace_back(std::string(to_string(static_cast<Drop>(i))), data_path.counters().drops[i]);
    }
    figures.emplace_back("missed_by_driver", port.missed());
    return figures;
  });
  port::publish("/godwit/loop", "Turns, sleeps, frames and bytes of the lcore", [&data_path, &loop] {
    const port::QueueCounters& queue = data_path.queue().counters();
    return port::Figures{{"turns", loop.turns()},
                         {"sleeps", loop.sleeps()},
                         {"frames_received", queue.frames_received},
                         {"bytes_received", queue.bytes_received},
                         {"frames_sent", queue.frames_sent},
                         {"bytes_sent", queue.bytes_sent},
                         {"transmit_stalls", queue.transmit_stalls},
                         {"no_buffer", queue.drops_no_buffer}};
  });
}

}  // namespace godwit::daemon
