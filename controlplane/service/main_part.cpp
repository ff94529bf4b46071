// The main part of a split VM moves, and its page stores stay where they are.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "config/units.h"
#include "controlplane/service/splits.h"
#include "controlplane/service/vms.h"

namespace godwit::controlplane {
namespace {

using Code = ServiceError::Code;

/// As the store has it from the commit on.
SplitRecord after(SplitRecord split, const MigrationRecord& migration) {
  const api::Plan& plan = migration.plan;
  split.ownership = migration.ownership_before + 1;
  split.budget_bytes = plan.resident_budget_bytes() > 0 ? plan.resident_budget_bytes() : split.budget_bytes;
  split.state = plan.whole() ? api::GATHERING : api::SPLIT;
  return split;
}

}  // namespace

bool Splits::is_sub_host(const Id128& vm_uuid, const std::string& host) const {
  const auto own = staying(vm_uuid);
  return std::ranges::find(own, host, &PageStoreRecord::sub_host) != own.end();
}

std::optional<ServiceError> Splits::move_obstacle(const VmRecord& vm, std::uint64_t budget_bytes) const {
  const auto split = splits_.find(vm.uuid);
  if (split == splits_.end() || split->second.changing || split->second.record.state != api::SPLIT) {
    return ServiceError{Code::kNotNow, fmt::format("VM \"{}\" is being split: wait until that is over", vm.name)};
  }
  if (budget_bytes == 0 || budget_bytes == split->second.record.budget_bytes) {
    return std::nullopt;
  }
  Order order;
  order.budget_bytes = budget_bytes;
  const auto added = plan(vm, order);
  if (!added) {
    return added.error();
  }
  if (!added->empty()) {
    return ServiceError{Code::kNotNow,
                        fmt::format("the sub hosts of VM \"{}\" have no room for what a budget of {} leaves: add one "
                                    "first (godwitctl vm split {} --sub HOST)",
                                    vm.name, config::format_bytes(budget_bytes), vm.name)};
  }
  return std::nullopt;
}

std::string Splits::move_waits_for(const Id128& vm_uuid, const api::Plan& plan, bool connected) const {
  const Active& split = splits_.at(vm_uuid);
  if (split.changing) {
    return "its main host and sub hosts are asked whether they agree";
  }
  const dpapi::SplitStatus* status = status_of(split);
  if (status == nullptr) {
    return fmt::format("{} does not tell how it lies: check its bridge and data plane", split.vm.host);
  }
  for (const PageStoreRecord& own : staying(vm_uuid)) {
    if (connected && !this->connected(parts_.at(own.id))) {
      return fmt::format("no flow to {} yet", own.sub_host);
    }
  }
  if (plan.mode() != dpapi::POSTCOPY) {
    return "";  // with rounds, what is above the budget leaves during the first of them
  }
  const std::uint64_t budget_bytes = plan.whole() ? status->resident_bytes() : plan.resident_budget_bytes();
  if (status->resident_bytes() <= budget_bytes) {
    return "";
  }
  return fmt::format("{} of it are on {}, and {} may be on {}: the rest goes to its sub hosts first",
                     config::format_bytes(status->resident_bytes()), split.vm.host, config::format_bytes(budget_bytes),
                     plan.destination());
}

std::optional<api::SplitGuest> Splits::split_there(const MigrationRecord& migration) const {
  const auto split = splits_.find(migration.vm_uuid);
  if (split == splits_.end() || split->second.record.state != api::SPLIT) {
    return std::nullopt;
  }
  Active there = split->second;
  there.record = after(there.record, migration);
  return order_of(there, there.record.budget_bytes, true);
}

void Splits::moved(const MigrationRecord& migration) {
  const auto found = splits_.find(migration.vm_uuid);
  if (found == splits_.end()) {
    return;
  }
  Active& split = found->second;
  split.record = after(split.record, migration);
  split.vm.host = migration.destination;
  split.vm.ownership = split.record.ownership;
  forget_attempts(split.attempts);
  for (Part* part : parts_of(migration.vm_uuid)) {
    if (part->record.state != api::PAGE_STORE_RETIRING) {
      part->record.main_host = migration.destination;
      part->record.ownership = split.record.ownership;
      forget_attempts(part->attempts);
    }
  }
  spdlog::info("VM {}: {} is its main host now", split.vm.name, migration.destination);
  look_after(split);
}

/// They were the former main host's.
void Splits::forget_attempts(Attempts& attempts) {
  timers_.cancel(attempts.timer);
  attempts = {.serial = attempts.serial + 1};
}

}  // namespace godwit::controlplane
