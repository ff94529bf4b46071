#include "dataplane/daemon/telemetry.h"

#include <string>

namespace godwit::daemon {
namespace {

port::Figures loop_figures(std::span<const LcoreFigures> lcores) {
  std::uint64_t turns = 0, sleeps = 0, handed_over = 0;
  port::QueueCounters sum;
  for (const LcoreFigures& lcore : lcores) {
    const port::QueueCounters& queue = lcore.data_path->queue().counters();
    turns += lcore.loop->turns();
    sleeps += lcore.loop->sleeps();
    handed_over += lcore.data_path->counters().handed_over;
    sum.frames_received += queue.frames_received;
    sum.bytes_received += queue.bytes_received;
    sum.frames_sent += queue.frames_sent;
    sum.bytes_sent += queue.bytes_sent;
    sum.transmit_stalls += queue.transmit_stalls;
    sum.drops_no_buffer += queue.drops_no_buffer;
  }
  return {{"turns", turns},
          {"sleeps", sleeps},
          {"frames_received", sum.frames_received},
          {"bytes_received", sum.bytes_received},
          {"frames_sent", sum.frames_sent},
          {"bytes_sent", sum.bytes_sent},
          {"transmit_stalls", sum.transmit_stalls},
          {"no_buffer", sum.drops_no_buffer},
          {"handed_over", handed_over}};
}

/// Sums the counters that `of` picks, over all lcores; each named by its enumerator.
template <class Kind, class Of>
void add(port::Figures& figures, const std::string& prefix, const std::vector<LcoreFigures>& lcores, Of of) {
  for (std::size_t i = 0; i < static_cast<std::size_t>(Kind::kCount); ++i) {
    std::uint64_t sum = 0;
    for (const LcoreFigures& lcore : lcores) {
      sum += of(lcore.data_path->counters())[i];
    }
    figures.emplace_back(prefix + std::string(to_string(static_cast<Kind>(i))), sum);
  }
}

}  // namespace

void register_telemetry(const std::vector<LcoreFigures>& lcores, port::Port& port) {
  port::publish("/godwit/drops", "Datagrams that changed nothing, by reason", [lcores, &port] {
    port::Figures figures;
    add<Drop>(
        figures, "", lcores, [](const DataPathCounters& c) -> const auto& { return c.drops; });
    figures.emplace_back("missed_by_driver", port.missed());
    return figures;
  });
  port::publish(
      "/godwit/received", "What became of datagrams: by the lane, by the packet's header, by IP and UDP", [lcores] {
        port::Figures figures;
        add<transport::Received>(
            figures, "", lcores, [](const DataPathCounters& c) -> const auto& { return c.received; });
        add<wire::Reject>(
            figures, "packet_", lcores, [](const DataPathCounters& c) -> const auto& { return c.packet_rejects; });
        add<wire::DatagramReject>(
            figures, "datagram_", lcores, [](const DataPathCounters& c) -> const auto& { return c.datagram_rejects; });
        return figures;
      });
  port::publish("/godwit/loop", "Turns, sleeps, frames and bytes of all lcores",
                [lcores] { return loop_figures(lcores); });
  for (std::size_t i = 0; i < lcores.size(); ++i) {
    port::publish("/godwit/lcore" + std::to_string(i) + "/loop", "Turns, sleeps, frames and bytes of one lcore",
                  [lcore = lcores[i]] { return loop_figures(std::span(&lcore, 1)); });
  }
}

}  // namespace godwit::daemon
