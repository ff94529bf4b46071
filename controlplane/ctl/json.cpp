#include "controlplane/ctl/json.h"

#include <string_view>

#include "config/common.h"
#include "controlplane/ctl/format.h"

namespace godwit::ctl {
namespace {

Json to_json(const dpapi::PagingStats& paging) {
  return {{"pages_missing", paging.pages_missing()},
          {"pages_missing_first", paging.pages_missing_first()},
          {"pages_demand", paging.pages_demand()},
          {"pages_background", paging.pages_background()},
          {"pages_zero", paging.pages_zero()},
          {"pages_given_back", paging.pages_given_back()},
          {"pages_asked_again", paging.pages_asked_again()},
          {"faults", paging.faults()},
          {"faults_waiting", paging.faults_waiting()},
          {"faults_per_s", paging.faults_per_s()},
          {"fault_p50_us", paging.fault_p50_us()},
          {"fault_p90_us", paging.fault_p90_us()},
          {"fault_p99_us", paging.fault_p99_us()},
          {"fault_p999_us", paging.fault_p999_us()},
          {"fault_max_us", paging.fault_max_us()},
          {"blocked_us", paging.blocked_us()},
          {"all_there_us", paging.all_there_us()}};
}

Json to_json(const api::Split& split) {
  Json subs = Json::array();
  for (const auto& sub : split.subs()) {
    subs.push_back({{"host", sub.host()},
                    {"store_id", id_text(sub.store_id())},
                    {"state", state_text(sub.state())},
                    {"bytes_lent", sub.bytes_lent()},
                    {"pages", sub.pages()}});
  }
  const dpapi::SplitStatus& status = split.status();
  return {{"state", api::SplitState_Name(split.state())},
          {"budget_bytes", split.budget_bytes()},
          {"subs", subs},
          {"warnings", std::vector<std::string>(split.warnings().begin(), split.warnings().end())},
          {"known", split.has_status()},
          {"resident_bytes", status.resident_bytes()},
          {"pages_missing", status.pages_missing()},
          {"pages_leaving", status.pages_leaving()},
          {"moved_pages", status.moved_pages()},
          {"evicted_pages", status.evicted_pages()},
          {"refetched_pages", status.refetched_pages()},
          {"paging", to_json(status.paging())}};
}

Json stats_json(const dpapi::MigrationStats& stats) {
  return {{"round", stats.round()},
          {"pages_total", stats.pages_total()},
          {"pages_left", stats.pages_left()},
          {"pages_sent", stats.pages_sent()},
          {"pages_zero", stats.pages_zero()},
          {"pages_reused", stats.pages_reused()},
          {"wire_bytes", stats.wire_bytes()},
          {"table_bytes", stats.table_bytes()},
          {"payload_bytes", stats.payload_bytes()},
          {"device_state_bytes", stats.device_state_bytes()},
          {"retransmitted_pages", stats.retransmitted_pages()},
          {"rate_bps", stats.rate_bps()},
          {"written_pages_per_s", stats.written_pages_per_s()},
          {"elapsed_us", stats.elapsed_us()},
          {"estimated_left_us", stats.estimated_left_us()},
          {"last_round_us", stats.last_round_us()},
          {"pages_last_round", stats.pages_last_round()},
          {"packets_sent", stats.packets_sent()},
          {"packets_lost", stats.packets_lost()},
          {"probe_timeouts", stats.probe_timeouts()},
          {"spurious_losses", stats.spurious_losses()},
          {"rtt_us", stats.rtt_us()},
          {"window_packets", stats.window_packets()}};
}

Json to_json(const dpapi::MigrationStats& stats) {
  Json json = stats_json(stats);
  if (stats.has_paging()) {
    json["paging"] = to_json(stats.paging());
  }
  return json;
}

Json to_json(const api::Plan& plan) {
  return {{"vm", plan.vm()},
          {"destination", plan.destination()},
          {"mode", dpapi::Mode_Name(plan.mode())},
          {"downtime_limit_us", plan.downtime_limit_us()},
          {"bandwidth_limit_bps", plan.bandwidth_limit_bps()},
          {"reuse", api::ReusePolicy_Name(plan.reuse())},
          {"verify", dpapi::Verify_Name(plan.verify())},
          {"on_no_convergence", dpapi::OnNoConvergence_Name(plan.on_no_convergence())},
          {"rounds_max", plan.rounds_max()},
          {"time_limit_ms", plan.time_limit_ms()},
          {"postcopy_after_rounds", plan.postcopy_after_rounds()},
          {"postcopy_after_ms", plan.postcopy_after_ms()},
          {"background_order", dpapi::BackgroundOrder_Name(plan.background_order())},
          {"encryption", dpapi::Encryption_Name(plan.encryption())},
          {"whole", plan.whole()},
          {"resident_budget_bytes", plan.resident_budget_bytes()},
          {"keeps_stores", plan.keeps_stores()}};
}

}  // namespace

Json to_json(const api::DrainHostResponse& response) {
  Json parts = Json::array();
  for (const auto& part : response.parts()) {
    parts.push_back(
        {{"vm_name", part.vm_name()}, {"migration_id", id_text(part.migration_id())}, {"refusal", part.refusal()}});
  }
  return {{"parts", parts}};
}

Json to_json(const api::Host& host) {
  const api::HostInfo& info = host.info();
  Json trackers = Json::array();
  for (const int tracker : info.trackers()) {
    trackers.push_back(config::tracker_name(tracker));
  }
  return {{"name", info.name()},
          {"connected", host.connected()},
          {"last_seen_unix_us", host.last_seen_unix_us()},
          {"dataplane_up", info.dataplane_up()},
          {"dataplane_address", info.dataplane_address()},
          {"mtu_bytes", info.mtu_bytes()},
          {"memory_total_bytes", info.memory_total_bytes()},
          {"memory_free_bytes", info.memory_free_bytes()},
          {"hugepages_free_bytes", info.hugepages_free_bytes()},
          {"memory_lend_bytes", info.memory_lend_bytes()},
          {"memory_lent_bytes", info.memory_lent_bytes()},
          {"vms", host.vms()},
          {"images", host.images()},
          {"trackers", trackers},
          {"kernel", info.kernel()},
          {"qemu_version", info.qemu_version()},
          {"version", info.version()},
          {"certificate_end_unix_us", info.certificate_end_unix_us()},
          {"boot_id", id_text(info.boot_id())}};
}

Json to_json(const api::Vm& vm) {
  return {{"uuid", id_text(vm.uuid())},
          {"name", vm.name()},
          {"host", vm.host()},
          {"run_state", vm.run_state()},
          {"bytes_total", vm.bytes_total()},
          {"tracker", config::tracker_name(vm.tracker())},
          {"ownership", vm.ownership()},
          {"image_id", id_text(vm.image_id())},
          {"epoch_next", vm.epoch_next()},
          {"migration_id", id_text(vm.migration_id())},
          {"depends_on", vm.depends_on()},
          {"connected", vm.depends_on().empty() ? Json(nullptr) : Json(vm.paging().connected())},
          {"paging", vm.depends_on().empty() ? Json(nullptr) : to_json(vm.paging().stats())},
          {"split", vm.has_split() ? to_json(vm.split()) : Json(nullptr)},
          {"to_be_split", vm.to_be_split()}};
}

Json to_json(const api::HostImage& image) {
  const dpapi::Image& kept = image.image();
  return {{"host", image.host()},
          {"vm_name", image.vm_name()},
          {"vm_uuid", id_text(kept.id().vm_uuid())},
          {"image_id", id_text(kept.id().image_id())},
          {"epoch", kept.epoch()},
          {"bytes_resident", kept.bytes_resident()},
          {"bytes_total", kept.bytes_total()},
          {"pages_known", kept.pages_known()},
          {"last_used_unix_s", kept.last_used_unix_s()},
          {"in_use", kept.in_use()},
          {"current", image.current()},
          {"ram_paths", std::vector<std::string>(kept.ram_paths().begin(), kept.ram_paths().end())}};
}

Json to_json(const api::Migration& migration) {
  const std::int64_t down_us = downtime_us(migration);
  return {{"id", id_text(migration.id())},
          {"vm_name", migration.vm_name()},
          {"vm_uuid", id_text(migration.vm_uuid())},
          {"source", migration.source()},
          {"destination", migration.plan().destination()},
          {"state", state_text(migration.state())},
          {"ended", migration.ended()},
          {"connected", migration.state() == api::PULLING ? Json(migration.connected()) : Json(nullptr)},
          {"reason", migration.reason()},
          {"note", migration.note()},
          {"reused", migration.reused()},
          {"reuse_reason", migration.reuse_reason()},
          {"tracker", config::tracker_name(migration.tracker())},
          {"tracker_reason", migration.tracker_reason()},
          {"created_unix_us", migration.created_unix_us()},
          {"ended_unix_us", migration.ended_unix_us()},
          {"stop_unix_us", migration.stop_unix_us()},
          {"resume_unix_us", migration.resume_unix_us()},
          {"downtime_us", down_us < 0 ? Json(nullptr) : Json(down_us)},
          {"stats", to_json(migration.stats())},
          {"destination_stats", to_json(migration.destination_stats())},
          {"plan", to_json(migration.plan())}};
}

}  // namespace godwit::ctl
