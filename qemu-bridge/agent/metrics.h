#pragma once
// What Prometheus is shown of the bridge; docs/operating.md, "Metrics", lists it. Pure; any thread; no failure.

#include "metrics/metric.h"
#include "qemu-bridge/agent/agent.h"

namespace godwit::bridge {

[[nodiscard]] metrics::MetricList metric_list();
[[nodiscard]] metrics::Samples make_samples(const AgentFigures& figures);

}  // namespace godwit::bridge
