#include "controlplane/service/split_moves.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <vector>

#include "config/units.h"
#include "controlplane/service/vms.h"

namespace godwit::controlplane {
namespace {

using Code = ServiceError::Code;

// After a failure: a host that lacks something may have it again, and each attempt asks all of them.
constexpr Duration kPauseMin = milliseconds(1500);
constexpr Duration kPauseMax = milliseconds(30'000);

bool says_not(const api::SplitVmRequest& order) { return order.budget_bytes() == 0; }

api::SplitVmRequest request_of(const Splits::Order& order) {
  api::SplitVmRequest request;
  request.set_budget_bytes(order.budget_bytes);
  for (const std::string& host : order.sub_hosts) {
    request.add_sub_hosts(host);
  }
  if (order.encryption) {
    request.set_encryption(*order.encryption);
  }
  return request;
}

/// What the plan makes of how the VM is split now.
api::SplitVmRequest changed(api::SplitVmRequest order, const api::Plan& plan) {
  if (plan.whole()) {
    return {};
  }
  if (plan.resident_budget_bytes() > 0) {
    order.set_budget_bytes(plan.resident_budget_bytes());
  }
  const std::vector<std::string> had(order.sub_hosts().begin(), order.sub_hosts().end());
  order.clear_sub_hosts();
  for (const std::string& host : had) {
    if (plan.sub_hosts().empty() && host != plan.destination()) {
      order.add_sub_hosts(host);
    }
  }
  order.mutable_sub_hosts()->MergeFrom(plan.sub_hosts());
  return order;
}

}  // namespace

std::expected<void, StoreError> SplitMoves::take_up() {
  const auto orders = store_.standing_orders();
  if (!orders) {
    return std::unexpected(orders.error());
  }
  for (const StandingOrder& order : *orders) {
    orders_[order.vm_uuid].order = order;
  }
  return {};
}

void SplitMoves::freeze() {
  frozen_ = true;
  for (auto& [uuid, standing] : orders_) {
    timers_.cancel(standing.timer);
  }
}

// ---- an operator's plan ---------------------------------------------------------------------------------------------

SplitMoves::Way SplitMoves::way_of(const api::Plan& plan, const VmRecord& vm) const {
  const api::SplitState state = splits_.state(vm.uuid);
  if (state == api::GATHERING || (state == api::SPLIT && splits_.is_sub_host(vm.uuid, plan.destination()))) {
    return Way::kGatherFirst;
  }
  if (state != api::SPLIT_UNSPECIFIED) {
    return Way::kKeepsStores;
  }
  // A main host cannot lend to itself: with the source as sub host it can be split at the destination only.
  const bool over_source = std::ranges::find(plan.sub_hosts(), vm.host) != plan.sub_hosts().end();
  return plan.resident_budget_bytes() > 0 && !plan.whole() && !over_source ? Way::kSplitFirst : Way::kWhole;
}

api::Plan SplitMoves::as_carried_out(const api::Plan& plan, const VmRecord& vm) const {
  api::Plan carried = plan;
  const Way way = way_of(plan, vm);
  carried.set_keeps_stores(way == Way::kKeepsStores || way == Way::kSplitFirst);
  if (!carried.keeps_stores()) {
    return carried;
  }
  if (plan.mode() == dpapi::PRECOPY) {
    carried.set_mode(dpapi::HYBRID);  // pages are missing after the resume in any case
  }
  if (const auto now = splits_.settings(vm.uuid); now && !plan.whole() && plan.resident_budget_bytes() == 0) {
    carried.set_resident_budget_bytes(now->budget_bytes);
  }
  return carried;
}

/// As it is split there, or is to be by an order that waits.
api::SplitVmRequest SplitMoves::wanted_at_source(const VmRecord& vm) const {
  if (const auto now = splits_.settings(vm.uuid)) {
    return request_of(*now);
  }
  const auto standing = orders_.find(vm.uuid);
  if (standing == orders_.end()) {
    return {};
  }
  const StandingOrder& former = standing->second.order;
  return former.source == vm.host ? former.at_source : former.at_destination;
}

std::expected<StandingOrder, ServiceError> SplitMoves::order_for(const api::Plan& plan, const VmRecord& vm) const {
  StandingOrder order{.vm_uuid = vm.uuid,
                      .source = vm.host,
                      .at_source = wanted_at_source(vm),
                      .destination = plan.destination(),
                      .at_destination = {}};
  order.at_destination = changed(order.at_source, plan);
  if (says_not(order.at_destination)) {
    if (!plan.sub_hosts().empty()) {
      return std::unexpected(ServiceError{
          Code::kInvalid, fmt::format("VM \"{}\" is not split: sub hosts are of no use without a budget", vm.name)});
    }
    return order;
  }
  VmRecord there = vm;
  there.host = plan.destination();
  auto obstacle = splits_.obstacle(there, order_of(order.at_destination));
  if (obstacle && plan.sub_hosts().empty()) {
    order.at_destination.clear_sub_hosts();
    obstacle = splits_.obstacle(there, order_of(order.at_destination));
  }
  if (obstacle) {
    return std::unexpected(ServiceError{
        obstacle->code, fmt::format("it could not be split on {}: {}", plan.destination(), obstacle->text)});
  }
  return order;
}

std::expected<Id128, ServiceError> SplitMoves::begin(const api::Plan& plan, const VmRecord& vm) {
  switch (way_of(plan, vm)) {
    case Way::kKeepsStores:
      return keep_stores(plan, vm);
    case Way::kSplitFirst:
      return split_first(plan, vm);
    case Way::kGatherFirst:
    case Way::kWhole:
      break;
  }
  return begin_whole(plan, vm);
}

std::expected<Id128, ServiceError> SplitMoves::keep_stores(const api::Plan& plan, const VmRecord& vm) {
  if (!plan.sub_hosts().empty()) {
    return std::unexpected(ServiceError{
        Code::kInvalid, fmt::format("VM \"{}\" is split, and its sub hosts stay when its main part moves: add one "
                                    "before or after that (godwitctl vm split {} --sub HOST)",
                                    vm.name, vm.name)});
  }
  if (auto obstacle = splits_.move_obstacle(vm, plan.resident_budget_bytes())) {
    return std::unexpected(std::move(*obstacle));
  }
  StandingOrder order{.vm_uuid = vm.uuid, .source = {}, .at_source = {}, .destination = {}, .at_destination = {}};
  Splits::Order first;
  if (const auto now = splits_.settings(vm.uuid); plan.resident_budget_bytes() < now->budget_bytes && !plan.whole()) {
    first.budget_bytes = plan.resident_budget_bytes();
    order.source = vm.host;
    order.at_source = request_of(*now);
    order.destination = plan.destination();
    order.at_destination = order.at_source;
    order.at_destination.set_budget_bytes(first.budget_bytes);
  }
  return begin_main_part(plan, vm, order, first);
}

std::expected<Id128, ServiceError> SplitMoves::split_first(const api::Plan& plan, const VmRecord& vm) {
  const Splits::Order first{.budget_bytes = plan.resident_budget_bytes(),
                            .sub_hosts = {plan.sub_hosts().begin(), plan.sub_hosts().end()},
                            .without = {},
                            .destination = plan.destination()};
  if (std::ranges::find(first.sub_hosts, plan.destination()) != first.sub_hosts.end()) {
    return std::unexpected(
        ServiceError{Code::kInvalid, fmt::format("{} is to be the main host of VM \"{}\", and cannot "
                                                 "be its sub host",
                                                 plan.destination(), vm.name)});
  }
  if (auto obstacle = splits_.obstacle(vm, first)) {
    return std::unexpected(ServiceError{
        obstacle->code, fmt::format("it is split on {} first, and that cannot be: {}", vm.host, obstacle->text)});
  }
  return begin_main_part(plan, vm,
                         {.vm_uuid = vm.uuid,
                          .source = vm.host,
                          .at_source = wanted_at_source(vm),
                          .destination = plan.destination(),
                          .at_destination = request_of(first)},
                         first);
}

/// `first`: what is to be done at the source before; a budget of 0: nothing.
std::expected<Id128, ServiceError> SplitMoves::begin_main_part(const api::Plan& plan, const VmRecord& vm,
                                                               const StandingOrder& order, Splits::Order first) {
  const auto standing = orders_.find(vm.uuid);
  const StandingOrder before = standing == orders_.end() ? StandingOrder{.vm_uuid = vm.uuid} : standing->second.order;
  if (auto error = keep(order)) {
    return std::unexpected(std::move(*error));
  }
  auto id = migrations_.begin(plan, vm, true);
  if (!id) {
    static_cast<void>(keep(before));
    return std::unexpected(from_store(id.error()));
  }
  spdlog::info("migration {}: the main part of VM {} moves, in mode {}; its sub hosts keep the rest", id->text(),
               vm.name, plan.mode() == dpapi::POSTCOPY ? "postcopy" : "hybrid");
  if (first.budget_bytes > 0) {
    first.destination = plan.destination();
    splits_.split(vm, std::move(first), [this, id = *id, source = vm.host](const auto& split) {
      if (!split && !frozen_) {
        static_cast<void>(
            migrations_.cancel(id, fmt::format("it could not be split on {} first: {}", source, split.error().text)));
      }
      look();
    });
  }
  look();
  return *id;
}

std::expected<Id128, ServiceError> SplitMoves::begin_whole(const api::Plan& plan, const VmRecord& vm) {
  const auto order = order_for(plan, vm);
  if (!order) {
    return std::unexpected(order.error());
  }
  const auto standing = orders_.find(vm.uuid);
  const StandingOrder before = standing == orders_.end() ? StandingOrder{.vm_uuid = vm.uuid} : standing->second.order;
  if (auto error = keep(*order)) {
    return std::unexpected(std::move(*error));
  }
  const bool split = splits_.state(vm.uuid) != api::SPLIT_UNSPECIFIED;
  if (split) {
    if (auto gathers = splits_.gather(vm); !gathers) {
      static_cast<void>(keep(before));
      return std::unexpected(
          ServiceError{gathers.error().code, fmt::format("{} is one of its sub hosts, so it is gathered first, but {}",
                                                         plan.destination(), gathers.error().text)});
    }
  }
  auto id = migrations_.begin(plan, vm, split);
  if (!id) {
    if (!split) {
      static_cast<void>(keep(before));
    }  // else it will be whole, and the order brings it back to where it was
    return std::unexpected(from_store(id.error()));
  }
  look();
  return *id;
}

std::optional<ServiceError> SplitMoves::keep(const StandingOrder& order) {
  if (says_not(order.at_source) && says_not(order.at_destination)) {
    const bool kept = orders_.contains(order.vm_uuid) && !forget(order.vm_uuid);
    return kept ? std::optional(ServiceError{Code::kStore, "the store failed: nothing has begun"}) : std::nullopt;
  }
  if (auto saved = store_.save_standing_order(order); !saved) {
    return from_store(saved.error());
  }
  Standing& standing = orders_[order.vm_uuid];
  timers_.cancel(standing.timer);
  standing = {.order = order};
  return std::nullopt;
}

bool SplitMoves::forget(const Id128& vm_uuid) {
  const auto standing = orders_.find(vm_uuid);
  if (standing == orders_.end()) {
    return false;
  }
  if (auto forgotten = store_.forget_standing_order(vm_uuid); !forgotten) {
    spdlog::error("VM {}: {}", vm_uuid.text(), forgotten.error().text);
    return false;
  }
  timers_.cancel(standing->second.timer);
  orders_.erase(standing);
  return true;
}

// ---- what follows ---------------------------------------------------------------------------------------------------

void SplitMoves::look() {
  if (frozen_) {
    return;
  }
  for (const Migrations::Held& held : migrations_.all_held()) {
    look_after_held(held);
  }
  for (const Id128& uuid : migrations_.moving_main_parts()) {
    const auto split = splits_.view(uuid);
    migrations_.held_up(uuid, split && !split->warnings().empty() ? split->warnings(0) : "");
  }
  std::vector<Id128> vms;
  for (const auto& [uuid, standing] : orders_) {
    vms.push_back(uuid);
  }
  for (const Id128& uuid : vms) {
    look_after(uuid);
  }
}

void SplitMoves::look_after_main_part(const Migrations::Held& held) {
  switch (splits_.state(held.vm_uuid)) {
    case api::SPLITTING:
      return migrations_.waits_for(held.id, "splitting it first: its sub hosts are asked whether they have room");
    case api::SPLIT:
      break;
    default:
      static_cast<void>(migrations_.cancel(held.id, "the VM is not split any more"));
      return;
  }
  const std::string what = splits_.move_waits_for(held.vm_uuid, held.plan, orders_.contains(held.vm_uuid));
  if (what.empty()) {
    migrations_.go_on(held.id);
  } else {
    migrations_.waits_for(held.id, what);
  }
}

void SplitMoves::look_after_held(const Migrations::Held& held) {
  if (held.plan.keeps_stores()) {
    return look_after_main_part(held);
  }
  if (const auto split = splits_.view(held.vm_uuid)) {
    return migrations_.waits_for(held.id, fmt::format("gathering it first: {} of it are still on sub hosts{}{}",
                                                      config::format_pages(split->status().pages_missing()),
                                                      split->warnings().empty() ? "" : "; ",
                                                      split->warnings().empty() ? "" : split->warnings(0)));
  }
  const std::string& name = held.plan.destination();
  const Hosts::Host* destination = hosts_.find(name);
  const bool there = destination != nullptr && destination->session != 0;
  if (there && splits_.lent_bytes(held.vm_uuid, name) > 0) {
    return migrations_.waits_for(held.id, fmt::format("{} gives back what it lent to the VM", name));
  }
  migrations_.go_on(held.id);
}

bool SplitMoves::runs(const Id128& vm_uuid, const std::string& name) const {
  const Hosts::Host* host = hosts_.find(name);
  return host != nullptr && host->session != 0 && Hosts::running(*host, vm_uuid) != nullptr;
}

void SplitMoves::look_after(const Id128& vm_uuid) {
  Standing& standing = orders_.at(vm_uuid);
  if (standing.under_way || standing.timer != Timers::kNone || migrations_.of_vm(vm_uuid)) {
    return;
  }
  const auto vm = store_.vm(vm_uuid);
  if (!vm) {
    return;  // with the next report
  }
  const std::string host = *vm ? (*vm)->host : "";
  const StandingOrder& order = standing.order;
  const api::SplitVmRequest* wanted = host == order.source        ? &order.at_source
                                      : host == order.destination ? &order.at_destination
                                                                  : nullptr;
  const api::SplitState state = splits_.state(vm_uuid);
  const auto now = splits_.settings(vm_uuid);
  if (host.empty() || wanted == nullptr) {
    static_cast<void>(forget(vm_uuid));
  } else if (says_not(*wanted)) {
    if (state == api::SPLIT && host == order.source) {
      gather(standing, **vm);
    } else if (state != api::SPLITTING) {
      static_cast<void>(forget(vm_uuid));
    }
  } else if (now && now->budget_bytes != wanted->budget_bytes()) {
    carry_out(standing, **vm, {.budget_bytes = wanted->budget_bytes(), .sub_hosts = {}, .without = {}});
  } else if (now) {
    static_cast<void>(forget(vm_uuid));
  } else if (state == api::SPLIT_UNSPECIFIED && runs(vm_uuid, host)) {
    carry_out(standing, **vm, order_of(*wanted));
  }
}

/// It was split to move, and has not.
void SplitMoves::gather(Standing& standing, const VmRecord& vm) {
  if (const auto begun = splits_.gather(vm); begun) {
    static_cast<void>(forget(vm.uuid));
  } else {
    try_again(standing, begun.error().text);
  }
}

void SplitMoves::carry_out(Standing& standing, const VmRecord& vm, Splits::Order order) {
  standing.under_way = true;
  const std::uint64_t serial = standing.serial = ++serial_;
  splits_.split(vm, std::move(order),
                [this, uuid = vm.uuid, serial](const auto& split) { carried_out(uuid, serial, split); });
}

void SplitMoves::carried_out(const Id128& vm_uuid, std::uint64_t serial,
                             const std::expected<void, ServiceError>& split) {
  const auto found = orders_.find(vm_uuid);
  if (found == orders_.end() || found->second.serial != serial || frozen_) {
    return;
  }
  Standing& standing = found->second;
  standing.under_way = false;
  if (split) {
    static_cast<void>(forget(vm_uuid));
    return;
  }
  try_again(standing, split.error().text);
}

void SplitMoves::try_again(Standing& standing, const std::string& problem) {
  const Id128 vm_uuid = standing.order.vm_uuid;
  standing.problem = problem;
  spdlog::warn("VM {} is not as it is to be: {}; tried again", vm_uuid.text(), problem);
  standing.pause = std::clamp(Duration{standing.pause.ns * 2}, kPauseMin, kPauseMax);
  standing.timer = timers_.schedule(standing.pause, [this, vm_uuid] {
    orders_.at(vm_uuid).timer = Timers::kNone;  // whoever erases it cancels the timer
    look_after(vm_uuid);
  });
}

std::string SplitMoves::view(const Id128& vm_uuid) const {
  const auto found = orders_.find(vm_uuid);
  if (found == orders_.end() || splits_.state(vm_uuid) == api::SPLIT) {
    return "";
  }
  const StandingOrder& order = found->second.order;
  if (migrations_.of_vm(vm_uuid)) {
    return says_not(order.at_destination) ? fmt::format("if it stays on {}", order.source)
                                          : fmt::format("on {}, {} there", order.destination,
                                                        config::format_bytes(order.at_destination.budget_bytes()));
  }
  const std::string& problem = found->second.problem;
  return problem.empty() ? "now" : fmt::format("not yet: {}; tried again", problem);
}

std::string SplitMoves::gather_problem(const Id128& vm_uuid) const {
  const auto found = orders_.find(vm_uuid);
  return found == orders_.end() || splits_.state(vm_uuid) != api::SPLIT ? "" : found->second.problem;
}

}  // namespace godwit::controlplane
