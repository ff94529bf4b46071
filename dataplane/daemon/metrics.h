#pragma once
// What Prometheus is shown of this daemon; docs/operating.md, "Metrics", lists it. read() on whatever thread, one call
// at a time; it stops no lcore and waits for no job. What it points to outlives it. Failure: what cannot be read now
// (the images, while one is saved) is shown as it was last time.

#include <cstdint>

#include "dataplane/daemon/figures.h"
#include "dataplane/daemon/telemetry.h"
#include "metrics/metric.h"

namespace godwit::daemon {

[[nodiscard]] metrics::MetricList metric_list();

struct MetricSources {
  const std::vector<LcoreFigures>& lcores;
  const port::Port& port;
  const FigureBook& figures;
  std::uint64_t memory_budget_bytes = 0;
};
[[nodiscard]] metrics::Samples read_metrics(const MetricSources& sources);

}  // namespace godwit::daemon
