#include "controlplane/store/sqlite_records.h"

namespace godwit::controlplane {

VmRecord vm_of(Use& use) {
  VmRecord vm;
  vm.uuid = use.id();
  vm.name = use.bytes();
  vm.definition = parsed<api::VmDefinition>(use.bytes());
  vm.host = use.bytes();
  vm.ownership = static_cast<std::uint64_t>(use.number());
  vm.image_id = use.id();
  vm.epoch_next = static_cast<std::uint32_t>(use.number());
  vm.tracker = static_cast<dpapi::Tracker>(use.number());
  return vm;
}

MigrationRecord migration_of(Use& use) {
  MigrationRecord record;
  record.id = use.id();
  record.vm_uuid = use.id();
  record.vm_name = use.bytes();
  record.plan = parsed<api::Plan>(use.bytes());
  record.source = use.bytes();
  record.destination = use.bytes();
  record.state = static_cast<api::MigrationState>(use.number());
  record.reason = use.bytes();
  record.ownership_before = static_cast<std::uint64_t>(use.number());
  record.image_id = use.id();
  record.epoch_base = static_cast<std::uint32_t>(use.number());
  record.epoch_count = static_cast<std::uint32_t>(use.number());
  record.reused = use.flag();
  record.reuse_reason = use.bytes();
  record.created_unix_us = use.number();
  record.ended_unix_us = use.number();
  record.stop_unix_us = use.number();
  record.resume_unix_us = use.number();
  record.stats = parsed<dpapi::MigrationStats>(use.bytes());
  record.destination_stats = parsed<dpapi::MigrationStats>(use.bytes());
  record.tracker = static_cast<dpapi::Tracker>(use.number());
  record.tracker_reason = use.bytes();
  record.source_settled = use.flag();
  record.destination_settled = use.flag();
  return record;
}

HostRecord host_of(Use& use) {
  HostRecord host;
  host.name = use.bytes();
  host.last = parsed<api::Register>(use.bytes());
  host.last_seen_unix_us = use.number();
  return host;
}

}  // namespace godwit::controlplane
