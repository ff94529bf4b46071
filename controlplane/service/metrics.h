#pragma once
// What Prometheus is shown of the cluster; docs/operating.md, "Metrics", lists it. Pure; any thread; no failure.

#include "controlplane/service/coordinator.h"
#include "metrics/metric.h"

namespace godwit::controlplane {

[[nodiscard]] metrics::MetricList metric_list();
[[nodiscard]] metrics::Samples make_samples(const ClusterFigures& figures);

}  // namespace godwit::controlplane
