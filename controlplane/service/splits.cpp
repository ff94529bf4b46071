// What operators ask of split VMs, and what ends them.
#include "controlplane/service/splits.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "config/units.h"
#include "controlplane/planner/split_planner.h"
#include "controlplane/service/vms.h"

namespace godwit::controlplane {
namespace {

using Code = ServiceError::Code;

constexpr std::uint32_t kNumbersMax = 4096;  // dataplane.proto, SubStore

std::unexpected<ServiceError> refused(Code code, std::string text) {
  return std::unexpected(ServiceError{code, std::move(text)});
}

}  // namespace

std::expected<void, StoreError> Splits::take_up() {
  const auto splits = store_.splits();
  const auto page_stores = store_.page_stores();
  if (!splits || !page_stores) {
    return std::unexpected(splits ? page_stores.error() : splits.error());
  }
  for (const PageStoreRecord& record : *page_stores) {
    parts_[record.id].record = record;
  }
  for (const SplitRecord& record : *splits) {
    const auto vm = store_.vm(record.vm_uuid);
    if (!vm) {
      return std::unexpected(vm.error());
    }
    Active& split = splits_[record.vm_uuid];
    split.record = record;
    split.vm = vm->value_or(VmRecord{.uuid = record.vm_uuid});
    // Nobody is there to finish what was SPLITTING, and no page was sent before it was finished.
    if (split.vm.host.empty() || split.vm.ownership != record.ownership || record.state == api::SPLITTING) {
      split.over = true;
    }
  }
  for (const SplitRecord& record : *splits) {
    if (splits_.at(record.vm_uuid).over) {
      end(record.vm_uuid);
    }
  }
  return {};
}

void Splits::freeze() {
  frozen_ = true;
  for (auto& [uuid, split] : splits_) {
    timers_.cancel(split.attempts.timer);
  }
  for (auto& [id, part] : parts_) {
    timers_.cancel(part.attempts.timer);
  }
}

// ---- an operator's order --------------------------------------------------------------------------------------------

std::expected<std::vector<PageStoreRecord>, ServiceError> Splits::plan(const VmRecord& vm, const Order& order) const {
  SplitQuestion question{.vm = vm,
                         .budget_bytes = order.budget_bytes,
                         .sub_hosts = order.sub_hosts,
                         .own = staying(vm.uuid),
                         .without = {order.without.begin(), order.without.end()},
                         .hosts = {},
                         .promised = {},
                         .freed = {}};
  if (!order.destination.empty()) {
    question.without.insert(order.destination);
  }
  if (const api::RunningVm* now = running(vm)) {
    question.tracker = now->tracker();
  }
  for (const PageStoreRecord& own : question.own) {
    if (own.state == api::PAGE_STORE_DRAINING) {
      question.without.insert(own.sub_host);
    }
  }
  std::erase_if(question.own,
                [&](const auto& own) { return question.without.contains(own.sub_host) || own.main_host != vm.host; });
  for (const auto& [name, host] : hosts_.all()) {
    question.hosts[name] = &host.view;
  }
  std::uint32_t number = 0;
  for (const auto& [id, part] : parts_) {
    question.promised[part.record.sub_host] += part.record.bytes_lent;
    if (part.record.vm_uuid == vm.uuid && part.record.main_host != vm.host) {
      question.freed[part.record.sub_host] += part.record.bytes_lent;
    }
    if (part.record.vm_uuid == vm.uuid && part.record.state != api::PAGE_STORE_RETIRING) {
      number = std::max(number, part.record.number + 1);
    }
  }
  const auto shares = plan_split(question);
  if (!shares) {
    return std::unexpected(from_planner(shares.error()));
  }
  std::vector<PageStoreRecord> added;
  for (const SubShare& share : *shares) {
    added.push_back({.id = Id128::random(),
                     .vm_uuid = vm.uuid,
                     .vm_name = vm.name,
                     .main_host = vm.host,
                     .sub_host = share.host,
                     .ownership = vm.ownership,
                     .number = number++,
                     .bytes_lent = share.bytes_lent,
                     .state = api::PAGE_STORE_PREPARING});
  }
  if (number > kNumbersMax) {
    return refused(Code::kNotNow, fmt::format("VM \"{}\" has had too many sub hosts: gather it first", vm.name));
  }
  return added;
}

std::optional<ServiceError> Splits::obstacle(const VmRecord& vm, const Order& order) const {
  const auto planned = plan(vm, order);
  return planned ? std::nullopt : std::optional(planned.error());
}

std::optional<Splits::Order> Splits::settings(const Id128& vm_uuid) const {
  const auto split = splits_.find(vm_uuid);
  if (split == splits_.end() || split->second.record.state != api::SPLIT) {
    return std::nullopt;
  }
  Order order{.budget_bytes = split->second.record.budget_bytes,
              .sub_hosts = {},
              .without = {},
              .encryption = split->second.record.encryption};
  for (const PageStoreRecord& own : staying(vm_uuid)) {
    if (own.state != api::PAGE_STORE_DRAINING) {
      order.sub_hosts.push_back(own.sub_host);
    }
  }
  return order;
}

std::uint64_t Splits::lent_bytes(const Id128& vm_uuid, const std::string& sub_host) const {
  std::uint64_t bytes = 0;
  for (const auto& [id, part] : parts_) {
    if (part.record.vm_uuid == vm_uuid && part.record.sub_host == sub_host) {
      bytes += part.record.bytes_lent;
    }
  }
  return bytes;
}

api::SplitState Splits::state(const Id128& vm_uuid) const {
  const auto split = splits_.find(vm_uuid);
  return split == splits_.end() ? api::SPLIT_UNSPECIFIED : split->second.record.state;
}

std::expected<void, ServiceError> Splits::may_change(const VmRecord& vm, const Order& order) const {
  if (frozen_) {
    return refused(Code::kNotNow, "the control plane is ending");
  }
  if (vm.host.empty()) {
    return refused(Code::kNotNow, fmt::format("VM \"{}\" runs nowhere: start it first", vm.name));
  }
  if (const MigrationRecord* pulling = migrations_.pulling(vm.uuid)) {
    return refused(Code::kNotNow, fmt::format("VM \"{}\" still needs {} of {}: wait until it has them", vm.name,
                                              missing_text(*pulling), pulling->source));
  }
  if (const auto migration = migrations_.of_vm(vm.uuid); migration && order.destination.empty()) {
    return refused(Code::kNotNow, fmt::format("VM \"{}\" is in migration {}", vm.name, migration->text()));
  }
  const Hosts::Host* main = hosts_.find(vm.host);
  if (main == nullptr || main->session == 0 || !main->view.info.dataplane_up()) {
    return refused(Code::kHostGone, fmt::format("{}, which runs VM \"{}\", is not connected, or its data plane is down",
                                                vm.host, vm.name));
  }
  const auto known = splits_.find(vm.uuid);
  if (known != splits_.end() && (known->second.changing || known->second.record.state != api::SPLIT)) {
    return refused(Code::kNotNow,
                   fmt::format("VM \"{}\" is {}: wait until that is over", vm.name,
                               known->second.record.state == api::GATHERING ? "being gathered" : "being split"));
  }
  if (known != splits_.end() && order.encryption && *order.encryption != known->second.record.encryption) {
    return refused(Code::kNotNow, fmt::format("VM \"{}\" is split, with another encryption: gather it first", vm.name));
  }
  const auto own = staying(vm.uuid);
  for (const std::string& host : order.without) {
    if (std::ranges::find(own, host, &PageStoreRecord::sub_host) == own.end()) {
      return refused(Code::kNotFound, fmt::format("{} is no sub host of VM \"{}\"", host, vm.name));
    }
  }
  return {};
}

void Splits::split(const VmRecord& vm, Order order, const Done& done) {
  if (const auto may = may_change(vm, order); !may) {
    return done(std::unexpected(may.error()));
  }
  const auto known = splits_.find(vm.uuid);
  if (order.budget_bytes == 0 && known != splits_.end()) {
    order.budget_bytes = known->second.record.budget_bytes;
  }
  const auto added = plan(vm, order);
  if (!added) {
    return done(std::unexpected(added.error()));
  }
  SplitRecord record{.vm_uuid = vm.uuid,
                     .ownership = vm.ownership,
                     .budget_bytes = order.budget_bytes,
                     .state = api::SPLITTING,
                     .encryption = order.encryption.value_or(dpapi::ENCRYPTION_AES_128_GCM)};
  if (known != splits_.end()) {
    record = known->second.record;  // until the hosts have agreed
  }
  if (auto saved = store_.save_split(record, *added); !saved) {
    return done(std::unexpected(from_store(saved.error())));
  }
  Active& split = splits_[vm.uuid];
  split.record = record;
  split.vm = vm;
  split.changing = true;
  const auto change = std::make_shared<Change>();
  change->vm_uuid = vm.uuid;
  change->budget_bytes = order.budget_bytes;
  change->done = done;
  for (const PageStoreRecord& own : staying(vm.uuid)) {
    if (std::ranges::find(order.without, own.sub_host) != order.without.end()) {
      change->drained.push_back(own.id);
    }
  }
  for (const PageStoreRecord& part : *added) {
    parts_[part.id].record = part;
    change->added.push_back(part.id);
  }
  prepare_next(change);
}

/// Whether each new sub host has room, one after the other; then the main host.
void Splits::prepare_next(const std::shared_ptr<Change>& change) {
  const auto split = splits_.find(change->vm_uuid);
  if (split == splits_.end() || split->second.over) {
    return change->done(refused(Code::kNotNow, "the VM has ended meanwhile"));
  }
  if (change->prepared == change->added.size()) {
    return tell_changed(change);
  }
  const Part& part = parts_.at(change->added[change->prepared]);
  hosts_.request(part.record.sub_host, prepare_store(part), timeouts_.prepare, [this, change](const auto& answer) {
    if (!answer) {
      return undo(change, answer.error());
    }
    ++change->prepared;
    prepare_next(change);
  });
}

void Splits::tell_changed(const std::shared_ptr<Change>& change) {
  const Active& now = splits_.at(change->vm_uuid);
  hosts_.request(
      now.vm.host, order_of(now, change->budget_bytes), timeouts_.prepare, [this, change](const auto& answer) {
        const auto found = splits_.find(change->vm_uuid);
        if (found == splits_.end() || found->second.over) {
          return change->done(refused(Code::kNotNow, "the VM has ended meanwhile"));
        }
        Active& split = found->second;
        SplitRecord record = split.record;
        record.budget_bytes = change->budget_bytes;
        record.state = api::SPLIT;
        if (!answer && record.state == api::SPLIT && split.record.state == api::SPLIT &&
            answer.error().code != Code::kRefused) {
          split.changing = false;  // it may have heard of them: they stay, and it is told again what counts
          return change->done(std::unexpected(answer.error()));
        }
        if (!answer) {
          return undo(change, answer.error());
        }
        if (auto saved = store_.save_split(record, {}); !saved) {
          return undo(change, from_store(saved.error()));
        }
        split.record = record;
        split.changing = false;
        std::ranges::for_each(change->drained, [this](const Id128& id) { drain(id); });
        spdlog::info("VM {} is split: {} of {} on {}, the rest on {} sub hosts", split.vm.name,
                     config::format_bytes(record.budget_bytes), config::format_bytes(bytes_of(split.vm.definition)),
                     split.vm.host, staying(change->vm_uuid).size());
        change->done({});
        look_after(split);
      });
}

/// The main host is told with its next report.
void Splits::drain(const Id128& page_store) {
  const auto part = parts_.find(page_store);
  if (part == parts_.end() || part->second.record.state == api::PAGE_STORE_RETIRING) {
    return;
  }
  if (auto stored = store_.set_page_store_state(page_store, api::PAGE_STORE_DRAINING); !stored) {
    spdlog::error("page store {}: {}", page_store.text(), stored.error().text);
    return;
  }
  part->second.record.state = api::PAGE_STORE_DRAINING;
  spdlog::info("VM {}: what {} holds of it goes elsewhere", part->second.record.vm_name, part->second.record.sub_host);
}

/// Nothing was sent to those that were added. A main host that has changed after all is told by its next report.
void Splits::undo(const std::shared_ptr<Change>& change, const ServiceError& why) {
  const auto split = splits_.find(change->vm_uuid);
  if (split != splits_.end() && split->second.record.state == api::SPLITTING) {
    end(change->vm_uuid);
  } else if (split != splits_.end()) {
    split->second.changing = false;
    for (const Id128& id : change->added) {
      if (const auto part = parts_.find(id); part != parts_.end()) {
        retire(part->second);
      }
    }
  }
  change->done(std::unexpected(why));
}

std::expected<void, ServiceError> Splits::gather(const VmRecord& vm) {
  const auto found = splits_.find(vm.uuid);
  if (found == splits_.end()) {
    return refused(Code::kNotNow, fmt::format("VM \"{}\" is not split: all of it is on {}", vm.name, vm.host));
  }
  Active& split = found->second;
  if (split.record.state == api::GATHERING) {
    return {};
  }
  if (migrations_.main_part(vm.uuid) != Migrations::MainPart::kStays) {
    return refused(Code::kNotNow, fmt::format("VM \"{}\" is in migration {}: cancel it first, or wait", vm.name,
                                              migrations_.of_vm(vm.uuid)->text()));
  }
  if (split.changing || split.record.state != api::SPLIT) {
    return refused(Code::kNotNow, fmt::format("VM \"{}\" is being split: wait until that is over", vm.name));
  }
  const Hosts::Host* main = hosts_.find(vm.host);
  const dpapi::SplitStatus* status = status_of(split);
  if (main == nullptr || main->session == 0 || status == nullptr) {
    return refused(Code::kHostGone, fmt::format("{}, which runs VM \"{}\", does not tell how it lies: check its bridge "
                                                "and data plane",
                                                vm.host, vm.name));
  }
  if (const auto no_room = gather_refusal(vm, main->view, status->resident_bytes())) {
    return std::unexpected(from_planner(*no_room));
  }
  SplitRecord record = split.record;
  record.state = api::GATHERING;
  if (auto saved = store_.save_split(record, {}); !saved) {
    return std::unexpected(from_store(saved.error()));
  }
  split.record = record;
  spdlog::info("VM {}: gathering it on {}", vm.name, vm.host);
  look_after(split);
  return {};
}

Splits::Order order_of(const api::SplitVmRequest& request) {
  Splits::Order order{.budget_bytes = request.budget_bytes(),
                      .sub_hosts = {request.sub_hosts().begin(), request.sub_hosts().end()},
                      .without = {request.without().begin(), request.without().end()}};
  if (request.has_encryption()) {
    order.encryption = request.encryption();
  }
  return order;
}

// ---- its end --------------------------------------------------------------------------------------------------------

void Splits::vm_over(const Id128& vm_uuid) {
  if (const auto split = splits_.find(vm_uuid); split != splits_.end()) {
    split->second.over = true;
    end(vm_uuid);
  }
}

void Splits::vm_ended(const std::string& host, const api::VmEnded& ended) {
  const auto uuid = Id128::from_bytes(ended.uuid());
  const auto split = uuid ? splits_.find(*uuid) : splits_.end();
  if (split != splits_.end() && split->second.vm.host == host && split->second.record.ownership == ended.ownership()) {
    spdlog::info("VM {} has ended on {}: what its sub hosts hold is freed", split->second.vm.name, host);
    vm_over(*uuid);
  }
}

void Splits::end(Id128 vm_uuid) {
  if (auto ended = store_.end_split(vm_uuid); !ended) {
    spdlog::error("VM {}: {}; tried again", vm_uuid.text(), ended.error().text);
    splits_.at(vm_uuid).over = true;
    return;
  }
  const auto split = splits_.find(vm_uuid);
  timers_.cancel(split->second.attempts.timer);
  splits_.erase(split);
  for (Part* part : parts_of(vm_uuid)) {
    part->record.state = api::PAGE_STORE_RETIRING;
    drop(*part);
  }
}

std::vector<Id128> Splits::held_by(const std::string& sub_host) const {
  std::vector<Id128> vms;
  for (const auto& [id, part] : parts_) {
    const api::PageStoreState state = part.record.state;
    if (part.record.sub_host == sub_host && state != api::PAGE_STORE_RETIRING && state != api::PAGE_STORE_DRAINING) {
      vms.push_back(part.record.vm_uuid);
    }
  }
  return vms;
}

void Splits::retire(Part& part) {
  if (auto stored = store_.set_page_store_state(part.record.id, api::PAGE_STORE_RETIRING); !stored) {
    spdlog::error("page store {}: {}", part.record.id.text(), stored.error().text);
    return;  // it stays one of the VM's, and is connected
  }
  part.record.state = api::PAGE_STORE_RETIRING;
  drop(part);
}

}  // namespace godwit::controlplane
