#include "controlplane/ctl/plan_input.h"

#include "config/common.h"

namespace godwit::ctl {

namespace api = controlplane::v1;
namespace dpapi = dataplane::v1;

static_assert(static_cast<int>(config::Mode::kPostcopy) == dpapi::POSTCOPY);
static_assert(static_cast<int>(config::Mode::kHybrid) == dpapi::HYBRID);
static_assert(static_cast<int>(config::Reuse::kNever) == api::REUSE_NEVER);
static_assert(static_cast<int>(config::Reuse::kRequire) == api::REUSE_REQUIRE);
static_assert(static_cast<int>(config::Tracker::kPagemapScan) == dpapi::TRACKER_PAGEMAP_SCAN);
static_assert(static_cast<int>(config::Tracker::kWriteProtectEvents) == dpapi::TRACKER_WRITE_PROTECT_EVENTS);
static_assert(static_cast<int>(config::Tracker::kHashes) == dpapi::TRACKER_HASHES);
static_assert(static_cast<int>(config::Verify::kOff) == dpapi::VERIFY_OFF);
static_assert(static_cast<int>(config::Verify::kFull) == dpapi::VERIFY_FULL);
static_assert(static_cast<int>(config::OnNoConvergence::kPostcopy) == dpapi::NO_CONVERGENCE_POSTCOPY);
static_assert(static_cast<int>(config::OnNoConvergence::kStopAnyway) == dpapi::NO_CONVERGENCE_STOP_ANYWAY);
static_assert(static_cast<int>(config::BackgroundOrder::kSequential) == dpapi::BACKGROUND_SEQUENTIAL);
static_assert(static_cast<int>(config::BackgroundOrder::kHottestFirst) == dpapi::BACKGROUND_HOTTEST_FIRST);
static_assert(static_cast<int>(config::Encryption::kAes128Gcm) == dpapi::ENCRYPTION_AES_128_GCM);
static_assert(static_cast<int>(config::Encryption::kAes256Gcm) == dpapi::ENCRYPTION_AES_256_GCM);
static_assert(static_cast<int>(config::Encryption::kNone) == dpapi::ENCRYPTION_NONE);

api::Plan to_api(const config::MigrationPlan& plan) {
  api::Plan message;
  message.set_vm(plan.vm);
  message.set_destination(plan.destination);
  message.set_mode(static_cast<dpapi::Mode>(plan.mode));
  message.set_downtime_limit_us(static_cast<std::uint64_t>(plan.downtime_limit.us()));
  message.set_bandwidth_limit_bps(plan.bandwidth_limit_bps);
  message.set_reuse(static_cast<api::ReusePolicy>(plan.reuse));
  message.set_verify(static_cast<dpapi::Verify>(plan.verify));
  message.set_on_no_convergence(static_cast<dpapi::OnNoConvergence>(plan.on_no_convergence));
  message.set_rounds_max(plan.rounds_max);
  message.set_time_limit_ms(static_cast<std::uint64_t>(plan.time_limit.us() / 1000));
  message.set_postcopy_after_rounds(plan.postcopy_after_rounds);
  message.set_postcopy_after_ms(static_cast<std::uint64_t>(plan.postcopy_after.us() / 1000));
  message.set_background_order(static_cast<dpapi::BackgroundOrder>(plan.background_order));
  message.set_encryption(static_cast<dpapi::Encryption>(plan.encryption));
  message.set_whole(plan.whole);
  message.set_resident_budget_bytes(plan.resident_budget_bytes);
  for (const std::string& host : plan.sub_hosts) {
    message.add_sub_hosts(host);
  }
  return message;
}

api::VmDefinition to_api(const config::VmDefinition& definition) {
  api::VmDefinition message;
  message.set_name(definition.name);
  message.set_uuid(definition.uuid.to_bytes());
  message.set_machine(definition.machine);
  message.set_accel(std::string(config::accel_name(definition.accel)));
  message.set_cpu(definition.cpu);
  message.set_vcpus(definition.vcpus);
  for (const config::RegionDefinition& region : definition.regions) {
    auto& added = *message.add_regions();
    added.set_name(region.name);
    added.set_bytes(region.bytes);
    added.set_backing(std::string(config::backing_name(region.backing)));
  }
  for (const std::string& argument : definition.arguments) {
    message.add_arguments(argument);
  }
  message.set_user(definition.user);
  message.set_qemu_binary(definition.qemu_binary);
  message.set_resident_budget_bytes(definition.resident_budget_bytes);
  for (const std::string& host : definition.sub_hosts) {
    message.add_sub_hosts(host);
  }
  return message;
}

}  // namespace godwit::ctl
