// How hosts report split VMs, what they are told because of it, and what operators see of that.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/log.h"
#include "config/units.h"
#include "controlplane/service/splits.h"

namespace godwit::controlplane {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr int kRunsNamed = 8;  // by the data plane, of any number
// Longer than an agent's heartbeat: by then each side has told how it stands after the last attempt.
constexpr Duration kPauseMin = milliseconds(1500);
constexpr Duration kPauseMax = milliseconds(15'000);

bool idle(bool under_way, Timers::Id timer) { return !under_way && timer == Timers::kNone; }

/// Pages may be there.
bool is_in_use(api::PageStoreState state) {
  return state == api::PAGE_STORE_CONNECTED || state == api::PAGE_STORE_DRAINING;
}

/// It is this split that was gathered, and not an earlier one of the VM.
bool all_of_these(const api::RunningVm& vm, const std::vector<PageStoreRecord>& page_stores) {
  return std::ranges::all_of(page_stores, [&](const PageStoreRecord& record) {
    return std::ranges::any_of(vm.split().subs(),
                               [&](const auto& sub) { return sub.store_id() == record.id.to_bytes(); });
  });
}

/// "pages 12-14, 20"
std::string named(const google::protobuf::RepeatedPtrField<dpapi::PageRun>& runs) {
  std::string out = "pages";
  for (const dpapi::PageRun& run : runs) {
    out += fmt::format("{} {}", out == "pages" ? "" : ",", run.first());
    out += run.count() == 1 ? "" : fmt::format("-{}", run.first() + run.count() - 1);
  }
  return out + (runs.size() == kRunsNamed ? ", ..." : "");
}

}  // namespace

void Splits::host_reported(const std::string& host) {
  if (frozen_) {
    return;
  }
  std::vector<Id128> concerned;
  for (auto& [uuid, split] : splits_) {
    if (split.vm.host == host ||
        std::ranges::any_of(parts_of(uuid), [&](const Part* part) { return part->record.sub_host == host; })) {
      concerned.push_back(uuid);
    }
  }
  for (const Id128& uuid : concerned) {
    if (const auto split = splits_.find(uuid); split != splits_.end()) {
      look_after(split->second);
    }
  }
  std::vector<Id128> retiring;
  for (const auto& [id, part] : parts_) {
    if (part.record.state == api::PAGE_STORE_RETIRING && part.record.sub_host == host) {
      retiring.push_back(id);
    }
  }
  for (const Id128& id : retiring) {
    if (const auto part = parts_.find(id); part != parts_.end()) {
      drop(part->second);
    }
  }
  look_after_strays(host);
}

void Splits::look_after(Active& split) {
  if (split.over) {
    return end(split.vm.uuid);
  }
  const api::RunningVm* vm = running(split.vm);
  if (frozen_ || split.changing || split.record.state == api::SPLITTING || vm == nullptr) {
    return;
  }
  if (vm->ownership() != split.record.ownership) {
    return;  // it has not heard yet that the VM is its
  }
  if (split.record.state == api::GATHERING && vm->gathered() && all_of_these(*vm, staying(split.vm.uuid))) {
    spdlog::info("VM {} is gathered: all of it is on {}", split.vm.name, split.vm.host);
    const std::string host = split.vm.host;
    end(split.vm.uuid);
    return look_after_strays(host);
  }
  const bool moves = migrations_.main_part(split.vm.uuid) == Migrations::MainPart::kMoves;
  if (moves && status_of(split) == nullptr) {
    return;
  }
  if (!moves && !as_ordered(split)) {
    return tell_main(split);
  }
  for (Part* part : parts_of(split.vm.uuid)) {
    if (part->record.state != api::PAGE_STORE_RETIRING && !connected(*part)) {
      connect(*part);
    }
  }
}

/// Whether its data plane does what it was told; it is told otherwise, too, once it can do without a page store.
bool Splits::as_ordered(const Active& split) const {
  const dpapi::SplitStatus* status = status_of(split);
  const auto stores = staying(split.vm.uuid);
  const auto same = [this](const PageStoreRecord& record) {
    const dpapi::SubStatus* main = at_main(parts_.at(record.id));
    return main != nullptr && !drained(parts_.at(record.id)) &&
           main->draining() == (record.state == api::PAGE_STORE_DRAINING);
  };
  return status != nullptr && status->gathering() == (split.record.state == api::GATHERING) &&
         (status->gathering() || status->budget_bytes() == split.record.budget_bytes) &&
         status->subs_size() == static_cast<std::ptrdiff_t>(stores.size()) && std::ranges::all_of(stores, same);
}

bool Splits::drained(const Part& part) const {
  const dpapi::SubStatus* main = at_main(part);
  return part.record.state == api::PAGE_STORE_DRAINING && main != nullptr && main->drained();
}

/// A main host that keeps a VM split although our store has no such split: an order that failed half-way, or it was
/// not heard that it has gathered. One that a migration still has may be a source that has not heard of the commit.
void Splits::look_after_strays(const std::string& name) {
  const Hosts::Host* host = hosts_.find(name);
  if (host == nullptr || host->session == 0) {
    return;
  }
  for (const api::RunningVm& vm : host->view.vms) {
    const auto uuid = *Id128::from_bytes(vm.uuid());
    if (splits_.contains(uuid) || !vm.migration_id().empty() ||
        (!vm.gathered() && (!vm.has_split() || vm.split().gathering()))) {
      continue;
    }
    api::ToAgent message;
    if (vm.gathered()) {
      message.mutable_end_split()->set_vm_uuid(vm.uuid());
      message.mutable_end_split()->set_ownership(vm.ownership());
    } else {
      auto& order = *message.mutable_split_guest();
      order.set_vm_uuid(vm.uuid());
      order.set_ownership(vm.ownership());
      order.set_budget_bytes(vm.split().budget_bytes());
      order.set_gather(true);
      for (const auto& sub : vm.split().subs()) {
        auto& same = *order.add_subs();
        same.set_store_id(sub.store_id());
        same.set_number(sub.sub());
      }
      spdlog::warn("VM {} is split on {}, but not in the store: gathering it", printable(vm.name()), name);
    }
    hosts_.tell(name, std::move(message));
  }
}

void Splits::tell_main(Active& split) {
  if (!idle(split.attempts.under_way, split.attempts.timer)) {
    return;
  }
  split.attempts.under_way = true;
  const std::uint64_t serial = ++split.attempts.serial;
  std::vector<Id128> left_out;
  for (const Part* part : parts_of(split.vm.uuid)) {
    if (drained(*part)) {
      left_out.push_back(part->record.id);
    }
  }
  hosts_.request(split.vm.host, order_of(split, split.record.budget_bytes), timeouts_.prepare,
                 [this, uuid = split.vm.uuid, serial, left_out](const auto& answer) {
                   const auto found = splits_.find(uuid);
                   if (found == splits_.end() || found->second.attempts.serial != serial) {
                     return;
                   }
                   for (const Id128& id : answer ? left_out : std::vector<Id128>()) {
                     if (const auto part = parts_.find(id); part != parts_.end()) {
                       retire(part->second);
                     }
                   }
                   attempt_ended(found->second.attempts, answer ? "" : answer.error().text, [this, uuid] {
                     if (const auto now = splits_.find(uuid); now != splits_.end()) {
                       look_after(now->second);
                     }
                   });
                 });
}

// ---- the flow of a page store ---------------------------------------------------------------------------------------

void Splits::connect(Part& part) {
  if (!idle(part.attempts.under_way, part.attempts.timer) || !is_connected(part.record.sub_host)) {
    return;
  }
  part.attempts.under_way = true;
  ++part.attempts.serial;
  ask(part, part.record.sub_host, prepare_store(part), [this](Part& now, const api::AgentReply& reply) {
    now.sub_endpoint = reply.flow_prepared().endpoint();
    prepare_sub(now);
  });
}

void Splits::prepare_sub(Part& part) {
  api::ToAgent message;
  auto& prepare = *message.mutable_prepare_sub();
  prepare.set_vm_uuid(part.record.vm_uuid.to_bytes());
  prepare.set_ownership(part.record.ownership);
  prepare.set_store_id(part.record.id.to_bytes());
  prepare.set_encryption(splits_.at(part.record.vm_uuid).record.encryption);
  ask(part, part.record.main_host, std::move(message), [this](Part& now, const api::AgentReply& reply) {
    now.main_endpoint = reply.flow_prepared().endpoint();
    start_store(now);
  });
}

void Splits::start_store(Part& part) {
  if (part.record.state == api::PAGE_STORE_PREPARING) {
    if (auto stored = store_.set_page_store_state(part.record.id, api::PAGE_STORE_CONNECTED); !stored) {
      return attempt_failed(part, stored.error().text);
    }
    part.record.state = api::PAGE_STORE_CONNECTED;
  }
  const std::string secret = draw_secret();
  api::ToAgent message;
  auto& start = *message.mutable_start_store();
  start.set_store_id(part.record.id.to_bytes());
  *start.mutable_peer() = part.main_endpoint;
  start.set_secret(secret);
  ask(part, part.record.sub_host, std::move(message),
      [this, secret](Part& now, const api::AgentReply&) { start_sub(now, secret); });
}

void Splits::start_sub(Part& part, const std::string& secret) {
  api::ToAgent message;
  auto& start = *message.mutable_start_sub();
  start.set_vm_uuid(part.record.vm_uuid.to_bytes());
  start.set_store_id(part.record.id.to_bytes());
  *start.mutable_peer() = part.sub_endpoint;
  start.set_secret(secret);
  ask(part, part.record.main_host, std::move(message),
      [this](Part& now, const api::AgentReply&) { attempt_failed(now, ""); });
}

void Splits::drop(Part& part) {
  timers_.cancel(part.attempts.timer);
  if (frozen_ || (part.attempts.under_way && part.attempts.dropping) || !is_connected(part.record.sub_host)) {
    return;
  }
  part.attempts.under_way = part.attempts.dropping = true;
  const std::uint64_t serial = ++part.attempts.serial;
  api::ToAgent message;
  message.mutable_drop_store()->set_store_id(part.record.id.to_bytes());
  hosts_.request(part.record.sub_host, std::move(message), timeouts_.command,
                 [this, id = part.record.id, serial](const auto& answer) {
                   const auto found = parts_.find(id);
                   if (found == parts_.end() || found->second.attempts.serial != serial) {
                     return;
                   }
                   found->second.attempts.under_way = false;
                   const bool gone = answer || answer.error().code == ServiceError::Code::kNotFound;
                   if (!gone) {
                     spdlog::warn("page store of VM {} on {}: {}", found->second.record.vm_name,
                                  found->second.record.sub_host, answer.error().text);
                   } else if (auto forgotten = store_.forget_page_store(id); forgotten) {
                     parts_.erase(found);
                   }  // else, and if it is not gone: with the host's next report
                 });
}

void Splits::ask(Part& part, const std::string& host, api::ToAgent message,
                 std::function<void(Part&, const api::AgentReply&)> next) {
  hosts_.request(
      host, std::move(message), timeouts_.prepare,
      [this, id = part.record.id, serial = part.attempts.serial, next = std::move(next)](const auto& answer) {
        const auto found = parts_.find(id);
        if (found == parts_.end() || found->second.attempts.serial != serial || frozen_) {
          return;
        }
        if (!answer) {
          return attempt_failed(found->second, answer.error().text);
        }
        next(found->second, *answer);
      });
}

void Splits::attempt_failed(Part& part, const std::string& problem) {
  if (!problem.empty()) {
    spdlog::warn("VM {}, sub host {}: {}", part.record.vm_name, part.record.sub_host, problem);
  }
  attempt_ended(part.attempts, problem, [this, uuid = part.record.vm_uuid] {
    if (const auto split = splits_.find(uuid); split != splits_.end()) {
      look_after(split->second);
    }
  });
}

void Splits::attempt_ended(Attempts& attempts, const std::string& problem, std::function<void()> again) {
  attempts.under_way = false;
  attempts.problem = problem;
  if (frozen_) {
    return;
  }
  const Duration pause = std::max(attempts.pause, kPauseMin);
  attempts.pause = problem.empty() ? kPauseMin : std::min(Duration{pause.ns * 2}, kPauseMax);
  attempts.timer = timers_.schedule(pause, [&attempts, again = std::move(again)] {
    attempts.timer = Timers::kNone;
    again();
  });
}

// ---- what is known --------------------------------------------------------------------------------------------------

std::vector<Splits::Part*> Splits::parts_of(const Id128& vm_uuid) {
  std::vector<Part*> parts;
  for (auto& [id, part] : parts_) {
    if (part.record.vm_uuid == vm_uuid) {
      parts.push_back(&part);
    }
  }
  std::ranges::sort(parts, {}, [](const Part* part) { return part->record.number; });
  return parts;
}

std::vector<PageStoreRecord> Splits::staying(const Id128& vm_uuid) const {
  std::vector<PageStoreRecord> records;
  for (const auto& [id, part] : parts_) {
    if (part.record.vm_uuid == vm_uuid && part.record.state != api::PAGE_STORE_RETIRING) {
      records.push_back(part.record);
    }
  }
  std::ranges::sort(records, {}, &PageStoreRecord::number);
  return records;
}

const api::RunningVm* Splits::running(const VmRecord& vm) const {
  const auto host = hosts_.all().find(vm.host);
  return host == hosts_.all().end() || host->second.session == 0 ? nullptr : Hosts::running(host->second, vm.uuid);
}

const dpapi::SplitStatus* Splits::status_of(const Active& split) const {
  const api::RunningVm* vm = running(split.vm);
  return vm != nullptr && vm->has_split() && vm->split().pages_total() > 0 ? &vm->split() : nullptr;
}

const dpapi::SubStatus* Splits::at_main(const Part& part) const {
  const auto split = splits_.find(part.record.vm_uuid);
  const dpapi::SplitStatus* status = split == splits_.end() ? nullptr : status_of(split->second);
  if (status == nullptr) {
    return nullptr;
  }
  const auto found =
      std::ranges::find(status->subs(), part.record.id.to_bytes(), [](const auto& sub) { return sub.store_id(); });
  return found == status->subs().end() ? nullptr : &*found;
}

const api::HeldStore* Splits::at_sub(const Part& part) const {
  const auto host = hosts_.all().find(part.record.sub_host);
  if (host == hosts_.all().end() || host->second.session == 0) {
    return nullptr;
  }
  const auto& stores = host->second.view.stores;
  const auto found =
      std::ranges::find(stores, part.record.id.to_bytes(), [](const auto& store) { return store.status().store_id(); });
  return found == stores.end() ? nullptr : &*found;
}

bool Splits::connected(const Part& part) const {
  const dpapi::SubStatus* main = at_main(part);
  const api::HeldStore* sub = at_sub(part);
  return main != nullptr && main->connected() && sub != nullptr && sub->status().connected();
}

bool Splits::is_connected(const std::string& name) const {
  const auto host = hosts_.all().find(name);
  return host != hosts_.all().end() && host->second.session != 0;
}

api::ToAgent Splits::order_of(const Active& split, std::uint64_t budget_bytes) const {
  api::ToAgent message;
  *message.mutable_split_guest() = order_of(split, budget_bytes, false);
  return message;
}

api::SplitGuest Splits::order_of(const Active& split, std::uint64_t budget_bytes, bool with_drained) const {
  api::SplitGuest order;
  order.set_vm_uuid(split.vm.uuid.to_bytes());
  order.set_ownership(split.record.ownership);
  order.set_budget_bytes(budget_bytes);
  order.set_gather(split.record.state == api::GATHERING);
  for (const PageStoreRecord& part : staying(split.vm.uuid)) {
    if (!with_drained && drained(parts_.at(part.id))) {
      continue;
    }
    auto& sub = *order.add_subs();
    sub.set_store_id(part.id.to_bytes());
    sub.set_number(part.number);
    sub.set_host(part.sub_host);
    sub.set_drain(part.state == api::PAGE_STORE_DRAINING);
  }
  return order;
}

api::ToAgent Splits::prepare_store(const Part& part) const {
  api::ToAgent message;
  auto& prepare = *message.mutable_prepare_store();
  prepare.set_store_id(part.record.id.to_bytes());
  prepare.set_vm_uuid(part.record.vm_uuid.to_bytes());
  prepare.set_vm_name(part.record.vm_name);
  prepare.set_main_host(part.record.main_host);
  prepare.set_ownership(part.record.ownership);
  prepare.set_bytes_lent(part.record.bytes_lent);
  prepare.set_pages(bytes_of(splits_.at(part.record.vm_uuid).vm.definition) / kPageBytes);
  prepare.set_create(part.record.state == api::PAGE_STORE_PREPARING);
  prepare.set_encryption(splits_.at(part.record.vm_uuid).record.encryption);
  return message;
}

// ---- what operators see ---------------------------------------------------------------------------------------------

void Splits::warn_of(const Part& part, api::Split& shown) const {
  const std::string& host = part.record.sub_host;
  const dpapi::SubStatus* main = at_main(part);
  const std::uint64_t pages = main == nullptr ? 0 : main->pages_held();
  const std::string waits =
      fmt::format("{} of the VM are there, and whoever touches one waits", config::format_pages(pages));
  if (main != nullptr && main->blocking_size() > 0) {
    shown.add_warnings(
        fmt::format("the VM is paused: it waits for {}, which {} cannot give; it goes on by itself once "
                    "that can",
                    named(main->blocking()), host));
  }
  if (main != nullptr && main->pages_lost() > 0) {
    shown.add_warnings(
        fmt::format("{} has lost {} of the VM ({}): once it touches one it is paused for good; only godwitctl "
                    "stop and a new start help",
                    host, config::format_pages(main->pages_lost()), named(main->lost())));
  }
  if (main != nullptr && main->full()) {
    shown.add_warnings(fmt::format("{} is full: add a sub host (godwitctl vm split {} --sub HOST), or raise the budget",
                                   host, part.record.vm_name));
  }
  const auto takes = [this](const PageStoreRecord& other) {
    const dpapi::SubStatus* its = at_main(parts_.at(other.id));
    return other.state == api::PAGE_STORE_CONNECTED && its != nullptr && its->connected() && !its->full();
  };
  if (part.record.state == api::PAGE_STORE_DRAINING && std::ranges::none_of(staying(part.record.vm_uuid), takes)) {
    shown.add_warnings(
        fmt::format("{} is being drained, and no other sub host takes pages: bring the others back, or "
                    "add one (godwitctl vm split {} --sub HOST)",
                    host, part.record.vm_name));
  }
  const api::HeldStore* sub = at_sub(part);
  if (!is_connected(host)) {
    shown.add_warnings(fmt::format("{} is not connected; {}: bring the host and its bridge back", host, waits));
  } else if (sub != nullptr && sub->lost()) {
    shown.add_warnings(fmt::format("{} has lost what it held ({}); {}: only godwitctl stop and a new start help", host,
                                   printable(sub->status().reason()), waits));
  } else if (is_in_use(part.record.state) && !connected(part)) {
    std::string why = part.attempts.problem;
    for (const std::string& reason :
         {main == nullptr ? "" : main->reason(), sub == nullptr ? "" : sub->status().reason()}) {
      why = why.empty() ? printable(reason) : why;
    }
    shown.add_warnings(
        fmt::format("no flow to {}{}{}; {}; begun again until it is there", host, why.empty() ? "" : ": ", why, waits));
  } else if (part.record.state == api::PAGE_STORE_PREPARING && !part.attempts.problem.empty()) {
    shown.add_warnings(fmt::format("{} does not take pages yet: {}; tried again", host, part.attempts.problem));
  }
}

std::optional<api::Split> Splits::view(const Id128& vm_uuid) const {
  const auto found = splits_.find(vm_uuid);
  if (found == splits_.end()) {
    return std::nullopt;
  }
  const Active& split = found->second;
  api::Split shown;
  shown.set_state(split.record.state);
  shown.set_budget_bytes(split.record.budget_bytes);
  const dpapi::SplitStatus* status = status_of(split);
  if (status != nullptr) {
    *shown.mutable_status() = *status;
  }
  if (!is_connected(split.vm.host)) {
    shown.add_warnings(
        fmt::format("{}, which runs the VM, is not connected: what is shown of it is not known", split.vm.host));
  } else if (running(split.vm) == nullptr) {
    shown.add_warnings(fmt::format("{} does not run the VM any more: godwitctl stop {} frees what its sub hosts hold",
                                   split.vm.host, split.vm.name));
  } else if (status == nullptr && split.record.state != api::SPLITTING) {
    const std::string& why = split.attempts.problem;
    shown.add_warnings(
        fmt::format("the data plane of {} does not keep to the budget now{}{}: it is told again until it "
                    "does",
                    split.vm.host, why.empty() ? "" : ": ", why));
  } else if (status != nullptr && !status->problem().empty()) {
    shown.add_warnings(printable(status->problem()));
  }
  for (const PageStoreRecord& record : staying(vm_uuid)) {
    const Part& part = parts_.at(record.id);
    auto& sub = *shown.add_subs();
    sub.set_host(record.sub_host);
    sub.set_store_id(record.id.to_bytes());
    sub.set_bytes_lent(record.bytes_lent);
    const bool lost = is_in_use(record.state) && !connected(part);
    sub.set_state(lost ? api::PAGE_STORE_LOST : record.state);
    const dpapi::SubStatus* main = at_main(part);
    sub.set_pages(main == nullptr ? 0 : main->pages_held());
    warn_of(part, shown);
  }
  return shown;
}

std::vector<api::Vm> Splits::all() const {
  std::vector<api::Vm> vms;
  for (const auto& [uuid, split] : splits_) {
    auto& vm = vms.emplace_back();
    vm.set_uuid(uuid.to_bytes());
    vm.set_host(split.vm.host);
    *vm.mutable_split() = *view(uuid);
  }
  return vms;
}

}  // namespace godwit::controlplane
