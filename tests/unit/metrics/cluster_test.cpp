#include <gtest/gtest.h>

#include "controlplane/service/metrics.h"
#include "qemu-bridge/agent/metrics.h"

namespace godwit {
namespace {

using Labels = std::vector<std::string>;

const metrics::Sample* find(const metrics::Samples& samples, std::string_view name, const Labels& labels) {
  for (const auto& family : samples.families()) {
    for (const metrics::Sample& sample : family.samples) {
      if (family.metric->name == name && sample.label_values == labels) {
        return &sample;
      }
    }
  }
  return nullptr;
}

double value_of(const metrics::Samples& samples, std::string_view name, const Labels& labels) {
  const metrics::Sample* sample = find(samples, name, labels);
  return sample != nullptr ? sample->value : -1;
}

TEST(ClusterMetrics, EndedMigrationsByOutcome) {
  controlplane::MigrationRecord record;
  record.state = controlplane::api::COMMITTED;
  record.created_unix_us = 1'000'000;
  record.ended_unix_us = 4'000'000;
  record.stop_unix_us = 3'000'000;
  record.resume_unix_us = 3'150'000;
  record.reused = true;
  record.stats.set_round(3);
  record.stats.set_pages_sent(10);
  controlplane::ClusterFigures figures;
  figures.ended.add(record);
  record.resume_unix_us = 2'900'000;  // the other host's clock is behind
  figures.ended.add(record);
  record.resume_unix_us = 0;  // never told
  figures.ended.add(record);
  record.state = controlplane::api::ABORTED;
  figures.ended.add(record);
  figures.active[controlplane::api::TRANSFERRING] = 2;

  const metrics::Samples samples = controlplane::make_samples(figures);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_migrations_ended_total", {"committed"}), 3);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_migrations_ended_total", {"aborted"}), 1);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_migrations_with_reuse_total", {}), 3);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_migration_pages_total", {"raw"}), 40);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_migrations", {"transferring"}), 2);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_migrations", {"preparing"}), 0);
  const metrics::Sample* downtime = find(samples, "godwit_controlplane_migration_downtime_seconds", {});
  ASSERT_NE(downtime, nullptr);
  EXPECT_DOUBLE_EQ(downtime->histogram->sum(), 0.15);  // of two: never negative
  EXPECT_EQ(downtime->histogram->counts().at(0), 1U);
  const metrics::Sample* aborted = find(samples, "godwit_controlplane_migration_duration_seconds", {"aborted"});
  ASSERT_NE(aborted, nullptr);
  EXPECT_DOUBLE_EQ(aborted->histogram->sum(), 3.0);
}

TEST(ClusterMetrics, HostsThatAreLostShowSo) {
  controlplane::ClusterFigures figures;
  controlplane::HostView& view = figures.hosts["host-a"];
  view.info.set_dataplane_up(true);
  view.images.resize(2);
  view.images[0].set_bytes_resident(7);
  view.images[1].set_bytes_resident(100);
  view.images[1].set_in_use(true);
  const metrics::Samples lost = controlplane::make_samples(figures);
  EXPECT_EQ(value_of(lost, "godwit_controlplane_host_connected", {"host-a"}), 0);
  EXPECT_EQ(value_of(lost, "godwit_controlplane_host_dataplane_up", {"host-a"}), 0);
  EXPECT_EQ(value_of(lost, "godwit_controlplane_host_retained_image_bytes", {"host-a"}), 7);
  view.connected = true;
  EXPECT_EQ(value_of(controlplane::make_samples(figures), "godwit_controlplane_host_dataplane_up", {"host-a"}), 1);
}

TEST(BridgeMetrics, VmsByRunStateAndRole) {
  bridge::AgentFigures figures;
  figures.dataplane_connected = true;
  figures.vms.resize(3);
  figures.vms[0].set_run_state("running");
  figures.vms[1].set_run_state("running");
  figures.vms[1].set_migration_id("x");
  figures.vms[1].set_role(dataplane::v1::ROLE_SOURCE);
  figures.vms[2].set_run_state("inmigrate");
  figures.vms[2].set_migration_id("y");
  figures.vms[2].set_role(dataplane::v1::ROLE_DESTINATION);
  const metrics::Samples samples = bridge::make_samples(figures);
  EXPECT_EQ(value_of(samples, "godwit_bridge_dataplane_connected", {}), 1);
  EXPECT_EQ(value_of(samples, "godwit_bridge_controlplane_connected", {}), 0);
  EXPECT_EQ(value_of(samples, "godwit_bridge_vms", {"running"}), 2);
  EXPECT_EQ(value_of(samples, "godwit_bridge_vms", {"inmigrate"}), 1);
  EXPECT_EQ(value_of(samples, "godwit_bridge_vms", {"paused"}), 0);
  EXPECT_EQ(value_of(samples, "godwit_bridge_migrations", {"source"}), 1);
  EXPECT_EQ(value_of(samples, "godwit_bridge_migrations", {"destination"}), 1);
}

}  // namespace
}  // namespace godwit
