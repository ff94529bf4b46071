#include "qemu-bridge/agent/metrics.h"

#include <array>
#include <map>

#include "base/uuid.h"

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
constexpr Metric kPullConnected{"godwit_bridge_pull_connected", Kind::kGauge, "vm,role",
                                "Of VMs that lack pages (destination) or whose pages are served from here (source): 1 "
                                "while a flow is up"};
constexpr Metric kPagesMissing{"godwit_bridge_pages_missing", Kind::kGauge, "vm,role",
                               "Pages that have not come to the destination yet"};
constexpr Metric kPulledPages{"godwit_bridge_pulled_pages", Kind::kGauge, "vm,role,origin",
                              "Pages since the resume, by what brought them: demand (a thread of QEMU waited), "
                              "background, zero (made here)"};
constexpr Metric kFaults{"godwit_bridge_faults", Kind::kGauge, "vm", "Page faults since the resume"};
constexpr Metric kFaultLatency{"godwit_bridge_fault_latency_seconds", Kind::kGauge, "vm,quantile",
                               "From a fault to its page, since the resume"};
constexpr Metric kBlocked{"godwit_bridge_vcpu_blocked_seconds", Kind::kGauge, "vm",
                          "How long threads of QEMU have waited for pages, together"};

constexpr Metric kLent{"godwit_bridge_lent_bytes", Kind::kGauge, "",
                       "Memory of this host that is promised to split VMs which run elsewhere"};
constexpr Metric kPageStores{"godwit_bridge_page_stores", Kind::kGauge, "state", "What holds it: connected, lost"};

constexpr std::array kAll{&kLent,          &kPageStores,   &kDataplane,   &kControlplane, &kVms,          &kMigrations,
                          &kPullConnected, &kPagesMissing, &kPulledPages, &kFaults,       &kFaultLatency, &kBlocked};

double seconds(std::uint64_t us) { return static_cast<double>(us) / 1e6; }

/// Gauges all: they end with the pull, and begin anew with the next.
void put_paging(metrics::Samples& samples, const controlplane::v1::RunningVm& vm) {
  const auto& paging = vm.paging().stats();
  const bool source = vm.role() == dataplane::v1::ROLE_SOURCE;
  const std::string role = source ? "source" : "destination";
  const std::string uuid = Id128::from_bytes(vm.uuid()).value_or(Id128{}).text();
  samples.add(kPullConnected, {uuid, role}, std::uint64_t{vm.paging().connected() ? 1U : 0U});
  samples.add(kPagesMissing, {uuid, role}, std::uint64_t{paging.pages_missing()});
  samples.add(kPulledPages, {uuid, role, "demand"}, std::uint64_t{paging.pages_demand()});
  samples.add(kPulledPages, {uuid, role, "background"}, std::uint64_t{paging.pages_background()});
  if (source) {
    return;
  }
  samples.add(kPulledPages, {uuid, role, "zero"}, std::uint64_t{paging.pages_zero()});
  samples.add(kFaults, {uuid}, std::uint64_t{paging.faults()});
  samples.add(kFaultLatency, {uuid, "0.5"}, seconds(paging.fault_p50_us()));
  samples.add(kFaultLatency, {uuid, "0.9"}, seconds(paging.fault_p90_us()));
  samples.add(kFaultLatency, {uuid, "0.99"}, seconds(paging.fault_p99_us()));
  samples.add(kFaultLatency, {uuid, "0.999"}, seconds(paging.fault_p999_us()));
  samples.add(kFaultLatency, {uuid, "1"}, seconds(paging.fault_max_us()));
  samples.add(kBlocked, {uuid}, seconds(paging.blocked_us()));
}

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
    if (vm.has_paging()) {
      put_paging(samples, vm);
    }
  }
  for (const auto& [state, count] : by_state) {
    samples.add(kVms, {state}, count);
  }
  samples.add(kMigrations, {"source"}, sources);
  samples.add(kMigrations, {"destination"}, destinations);
  std::uint64_t lent_bytes = 0, connected = 0;
  for (const auto& store : figures.stores) {
    lent_bytes += store.bytes_lent();
    connected += store.status().connected() ? 1U : 0U;
  }
  samples.add(kLent, {}, lent_bytes);
  samples.add(kPageStores, {"connected"}, connected);
  samples.add(kPageStores, {"lost"}, std::uint64_t{figures.stores.size()} - connected);
  return samples;
}

}  // namespace godwit::bridge
