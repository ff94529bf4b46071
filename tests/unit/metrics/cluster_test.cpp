#include <gtest/gtest.h>

#include "controlplane/service/metrics.h"
#include "qemu-bridge/agent/metrics.h"

namespace godwit {
namespace {

using Labels = std::vector<std::string>;

constexpr const char* kHere = "11111111-1111-1111-1111-111111111111";
constexpr const char* kGone = "22222222-2222-2222-2222-222222222222";

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

TEST(ClusterMetrics, WhatVmsLack) {
  controlplane::ClusterFigures figures;
  auto& pulling = figures.pulling.emplace_back();
  pulling.set_vm_uuid(std::string(16, '\x11'));
  pulling.set_source("host-a");
  pulling.mutable_destination_stats()->mutable_paging()->set_pages_missing(1234);
  figures.active[controlplane::api::PULLING] = 1;
  controlplane::MigrationRecord record;
  record.state = controlplane::api::INCOMPLETE;
  figures.ended.add(record);
  const metrics::Samples samples = controlplane::make_samples(figures);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_vm_pages_missing", {kHere, "host-a"}), 1234);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_pull_connected", {kHere, "host-a"}), 0);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_migrations", {"pulling"}), 1);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_migrations_ended_total", {"incomplete"}), 1);
  EXPECT_EQ(value_of(samples, "godwit_controlplane_migrations_ended_total", {"aborted"}), 0);
}

TEST(BridgeMetrics, PagesThatAreMissingAndWhatFaultsCost) {
  bridge::AgentFigures figures;
  for (const auto role : {dataplane::v1::ROLE_DESTINATION, dataplane::v1::ROLE_SOURCE}) {
    auto& vm = figures.vms.emplace_back();
    vm.set_uuid(std::string(16, role == dataplane::v1::ROLE_SOURCE ? '\x22' : '\x11'));
    vm.set_role(role);
    vm.mutable_paging()->set_connected(role == dataplane::v1::ROLE_SOURCE);
    auto& paging = *vm.mutable_paging()->mutable_stats();
    paging.set_pages_missing(9);
    paging.set_pages_demand(3);
    paging.set_pages_background(4);
    paging.set_fault_p99_us(1500);
    paging.set_blocked_us(2'000'000);
  }
  const metrics::Samples samples = bridge::make_samples(figures);
  EXPECT_EQ(value_of(samples, "godwit_bridge_pages_missing", {kHere, "destination"}), 9);
  EXPECT_EQ(value_of(samples, "godwit_bridge_pull_connected", {kHere, "destination"}), 0);
  EXPECT_EQ(value_of(samples, "godwit_bridge_pull_connected", {kGone, "source"}), 1);
  EXPECT_EQ(value_of(samples, "godwit_bridge_pulled_pages", {kGone, "source", "background"}), 4);
  EXPECT_EQ(value_of(samples, "godwit_bridge_pulled_pages", {kHere, "destination", "demand"}), 3);
  EXPECT_DOUBLE_EQ(value_of(samples, "godwit_bridge_fault_latency_seconds", {kHere, "0.99"}), 0.0015);
  EXPECT_DOUBLE_EQ(value_of(samples, "godwit_bridge_vcpu_blocked_seconds", {kHere}), 2);
  EXPECT_EQ(find(samples, "godwit_bridge_vcpu_blocked_seconds", {kGone}), nullptr) << "it has no vCPUs here";
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
