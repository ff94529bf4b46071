#include "qemu-bridge/agent/metrics.h"

#include <array>
#include <map>

namespace godwit::bridge {
namespace {

using metrics::Kind;
using metrics::Metric;

constexpr Metric kDataplane{"godwit_bridge_dataplane_connected", Kind::kGauge, "",
                            "1 while the data plane of this host answers"};
constexpr Metric kControlplane{"godwit_bridge_controlplane_connected", Kind::kGauge, "",
                               "1 while registered with the control plane"};
constexpr Metric kVms{"godwit_bridge_vms", Kind::kGauge, "run_state", "VMs here, by QEMU's run state"};
constexpr Metric kMigrations{"godwit_bridge_migrations", Kind::kGauge, "role",
                             "VMs here that are in a migration, until its outcome is in effect"};

constexpr std::array kAll{&kDataplane, &kControlplane, &kVms, &kMigrations};

}  // namespace

metrics::MetricList metric_list() { return kAll; }

metrics::Samples make_samples(const AgentFigures& figures) {
  metrics::Samples samples(kAll);
  samples.add(kDataplane, {}, std::uint64_t{figures.dataplane_connected ? 1U : 0U});
  samples.add(kControlplane, {}, std::uint64_t{figures.controlplane_connected ? 1U : 0U});
  // Shown at 0 too, so that there is something to compare with.
  std::map<std::string, std::uint64_t> by_state{{"running", 0}, {"paused", 0}};
  std::uint64_t sources = 0, destinations = 0;
  for (const auto& vm : figures.vms) {
    ++by_state[vm.run_state()];
    if (!vm.migration_id().empty()) {
      ++(vm.role() == dataplane::v1::ROLE_SOURCE ? sources : destinations);
    }
  }
  for (const auto& [state, count] : by_state) {
    samples.add(kVms, {state}, count);
  }
  samples.add(kMigrations, {"source"}, sources);
  samples.add(kMigrations, {"destination"}, destinations);
  return samples;
}

}  // namespace godwit::bridge
