#include "controlplane/service/metrics.h"

#include <array>

namespace godwit::controlplane {
namespace {

using metrics::Kind;
using metrics::Metric;
using metrics::Samples;

constexpr Metric kHostConnected{"godwit_controlplane_host_connected", Kind::kGauge, "host",
                                "1 while the host's bridge is connected"};
constexpr Metric kHostDataplane{"godwit_controlplane_host_dataplane_up", Kind::kGauge, "host",
                                "1 while its data plane is up, by its bridge's last word"};
constexpr Metric kHostVms{"godwit_controlplane_host_vms", Kind::kGauge, "host", "VMs that the host has told of"};
constexpr Metric kHostImages{"godwit_controlplane_host_retained_images", Kind::kGauge, "host",
                             "Retained images of the host"};
constexpr Metric kHostImageBytes{"godwit_controlplane_host_retained_image_bytes", Kind::kGauge, "host",
                                 "Memory that they occupy"};
constexpr Metric kHostMemory{"godwit_controlplane_host_memory_bytes", Kind::kGauge, "host",
                             "Memory that guests may use there, budget and tmpfs considered"};
constexpr Metric kHostFree{"godwit_controlplane_host_memory_free_bytes", Kind::kGauge, "host", "What is free of it"};
constexpr Metric kActive{"godwit_controlplane_migrations", Kind::kGauge, "state", "Migrations that have not ended"};
constexpr Metric kPagesMissing{"godwit_controlplane_vm_pages_missing", Kind::kGauge, "vm,host",
                               "Pages of a VM that runs elsewhere and that only this host holds"};
constexpr Metric kPullConnected{"godwit_controlplane_pull_connected", Kind::kGauge, "vm,host",
                                "1 while these pages flow"};
constexpr Metric kSplitBytes{"godwit_controlplane_split_bytes", Kind::kGauge, "vm,host",
                             "Memory of a split VM that lies on this host: of its main host what is resident, of a "
                             "sub host pages that are away"};
constexpr Metric kSplitConnected{"godwit_controlplane_split_connected", Kind::kGauge, "vm,host",
                                 "1 while main host and this sub host have a flow"};
constexpr Metric kEnded{"godwit_controlplane_migrations_ended_total", Kind::kCounter, "outcome",
                        "Migrations that have ended, both sides having confirmed the outcome"};
constexpr Metric kReuse{"godwit_controlplane_migrations_with_reuse_total", Kind::kCounter, "",
                        "Committed migrations that reused a retained image"};
constexpr Metric kDuration{"godwit_controlplane_migration_duration_seconds", Kind::kHistogram, "outcome",
                           "From the order to the outcome"};
constexpr Metric kDowntime{"godwit_controlplane_migration_downtime_seconds", Kind::kHistogram, "",
                           "Committed migrations: from QEMU's STOP at the source to its RESUME at the destination"};
constexpr Metric kRounds{"godwit_controlplane_migration_rounds", Kind::kHistogram, "",
                         "Rounds of committed migrations"};
constexpr Metric kPages{"godwit_controlplane_migration_pages_total", Kind::kCounter, "kind",
                        "Pages of ended migrations by how they moved: raw (payload), zero, reused"};
constexpr Metric kWire{"godwit_controlplane_migration_wire_bytes_total", Kind::kCounter, "",
                       "IP bytes of ended migrations, both ways, as their sources counted them"};
constexpr Metric kRetransmitted{"godwit_controlplane_migration_retransmitted_pages_total", Kind::kCounter, "",
                                "Pages, or parts of them, that ended migrations sent again"};

constexpr std::array kAll{&kHostConnected, &kHostDataplane, &kHostVms,       &kHostImages, &kHostImageBytes,
                          &kHostMemory,    &kHostFree,      &kActive,        &kEnded,      &kReuse,
                          &kDuration,      &kDowntime,      &kRounds,        &kPages,      &kWire,
                          &kRetransmitted, &kPagesMissing,  &kPullConnected, &kSplitBytes, &kSplitConnected};

constexpr std::uint64_t kPageBytes = 4096;

constexpr std::uint64_t one_if(bool yes) { return yes ? 1 : 0; }

void put_host(Samples& samples, const std::string& name, const HostView& view) {
  std::uint64_t image_bytes = 0;
  for (const dpapi::Image& image : view.images) {
    image_bytes += image.in_use() ? 0 : image.bytes_resident();
  }
  samples.add(kHostConnected, {name}, one_if(view.connected));
  samples.add(kHostDataplane, {name}, one_if(view.connected && view.info.dataplane_up()));
  samples.add(kHostVms, {name}, std::uint64_t{view.vms.size()});
  samples.add(kHostImages, {name}, std::uint64_t{view.images.size()});
  samples.add(kHostImageBytes, {name}, image_bytes);
  samples.add(kHostMemory, {name}, view.info.memory_total_bytes());
  samples.add(kHostFree, {name}, view.info.memory_free_bytes());
}

std::string lower(std::string text) {
  for (char& c : text) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return text;
}

}  // namespace

metrics::MetricList metric_list() { return kAll; }

Samples make_samples(const ClusterFigures& figures) {
  Samples samples(kAll);
  for (const auto& [name, view] : figures.hosts) {
    put_host(samples, name, view);
  }
  for (int state = api::PREPARING; state <= api::INCOMPLETE; ++state) {
    const auto found = figures.active.find(static_cast<api::MigrationState>(state));
    samples.add(kActive, {lower(api::MigrationState_Name(static_cast<api::MigrationState>(state)))},
                found != figures.active.end() ? found->second : std::uint64_t{0});
  }
  for (const api::Migration& pulling : figures.pulling) {
    const std::vector<std::string> labels{Id128::from_bytes(pulling.vm_uuid()).value_or(Id128{}).text(),
                                          pulling.source()};
    samples.add(kPagesMissing, labels, std::uint64_t{pulling.destination_stats().paging().pages_missing()});
    samples.add(kPullConnected, labels, one_if(pulling.connected()));
  }
  for (const api::Vm& vm : figures.splits) {
    const std::string uuid = Id128::from_bytes(vm.uuid()).value_or(Id128{}).text();
    samples.add(kSplitBytes, {uuid, vm.host()}, std::uint64_t{vm.split().status().resident_bytes()});
    for (const auto& sub : vm.split().subs()) {
      samples.add(kSplitBytes, {uuid, sub.host()}, std::uint64_t{sub.pages() * kPageBytes});
      samples.add(kSplitConnected, {uuid, sub.host()}, one_if(sub.state() == api::PAGE_STORE_CONNECTED));
    }
  }
  const MigrationFigures& ended = figures.ended;
  samples.add(kEnded, {"committed"}, ended.committed);
  samples.add(kEnded, {"aborted"}, ended.aborted);
  samples.add(kEnded, {"incomplete"}, ended.incomplete);
  samples.add(kReuse, {}, ended.with_reuse);
  samples.add(kDuration, {"committed"}, ended.committed_duration);
  samples.add(kDuration, {"aborted"}, ended.aborted_duration);
  samples.add(kDowntime, {}, ended.downtime);
  samples.add(kRounds, {}, ended.rounds);
  samples.add(kPages, {"raw"}, ended.pages_raw);
  samples.add(kPages, {"zero"}, ended.pages_zero);
  samples.add(kPages, {"reused"}, ended.pages_reused);
  samples.add(kWire, {}, ended.wire_bytes);
  samples.add(kRetransmitted, {}, ended.retransmitted_pages);
  return samples;
}

}  // namespace godwit::controlplane
