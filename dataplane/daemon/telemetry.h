#pragma once
// What dpdk-telemetry.py shows of this daemon (docs/operating.md, "Metrics", has the commands). Read on DPDK's
// telemetry thread, without stopping an lcore: counters of one writer each, possibly a moment old. What it points to
// outlives the publications.

#include <string>
#include <string_view>
#include <vector>

#include "dataplane/daemon/data_path.h"
#include "dataplane/daemon/figures.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/port/telemetry.h"

namespace godwit::daemon {

struct LcoreFigures {
  const DataPath* data_path = nullptr;
  const port::PollLoop* loop = nullptr;
};

/// A datagram that changed nothing: where it ended and why, as both telemetry and metrics name it.
struct DropCount {
  std::string_view layer;   // "port", "neighbour", "frame", "datagram", "packet", "lane"
  std::string_view reason;  // lower case, digits, '_'
  std::uint64_t count = 0;
};
[[nodiscard]] std::vector<DropCount> drop_counts(const std::vector<LcoreFigures>& lcores, const port::Port& port);

[[nodiscard]] std::vector<port::Publication> publish_telemetry(const std::vector<LcoreFigures>& lcores,
                                                               const port::Port& port, const FigureBook& figures);

}  // namespace godwit::daemon
