// Coordinator: all that a host holds of any VM goes elsewhere.
#include <fmt/format.h>

#include <algorithm>
#include <ranges>

#include "controlplane/service/coordinator.h"

namespace godwit::controlplane {
namespace {

/// What was begun, until each has answered.
struct Drain {
  api::DrainHostResponse response;
  std::size_t waits = 0;
};

}  // namespace

/// The hosts that could take a VM, most free memory first; those that hold a part of it last, as it moves there whole.
std::vector<std::string> Coordinator::destinations_from(const VmRecord& vm) const {
  std::vector<std::pair<std::uint64_t, std::string>> hosts;
  for (const auto& [name, host] : hosts_.all()) {
    if (name != vm.host && host.session != 0 && host.view.info.dataplane_up()) {
      hosts.emplace_back(host.view.info.memory_free_bytes(), name);
    }
  }
  std::ranges::stable_sort(hosts, std::ranges::greater(), &std::pair<std::uint64_t, std::string>::first);
  std::ranges::stable_partition(hosts, [&](const auto& host) { return !splits_.is_sub_host(vm.uuid, host.second); });
  const auto names = hosts | std::views::values;
  return {names.begin(), names.end()};
}

/// Over which sub hosts a split VM that moves whole could be split there: those that it has, or all that lend; not over
/// the host that is drained. Of any other: one choice, of none.
std::vector<std::vector<std::string>> Coordinator::sub_hosts_at(const std::string& destination,
                                                                const VmRecord& vm) const {
  const auto now = splits_.settings(vm.uuid);
  if (!now || !splits_.is_sub_host(vm.uuid, destination)) {
    return {{}};
  }
  std::vector<std::vector<std::string>> choices(2);
  for (const auto& [name, host] : hosts_.all()) {
    if (name == vm.host || name == destination) {
      continue;
    }
    if (std::ranges::find(now->sub_hosts, name) != now->sub_hosts.end()) {
      choices[0].push_back(name);
    }
    if (host.session != 0 && host.view.info.dataplane_up() && host.view.info.memory_lend_bytes() > 0) {
      choices[1].push_back(name);
    }
  }
  std::erase_if(choices, [](const auto& choice) { return choice.empty(); });
  return choices;
}

void Coordinator::move_away(const VmRecord& vm, api::DrainHostResponse::Part& part) {
  part.set_vm_name(vm.name);
  part.set_refusal("no other host is connected, with its data plane up");
  for (const std::string& destination : destinations_from(vm)) {
    const auto choices = sub_hosts_at(destination, vm);
    if (choices.empty()) {
      part.set_refusal(fmt::format("the VM is split, and no host but {} and {} lends memory", vm.host, destination));
    }
    for (const auto& sub_hosts : choices) {
      api::Plan plan;
      plan.set_vm(vm.uuid.text());
      plan.set_destination(destination);
      plan.mutable_sub_hosts()->Assign(sub_hosts.begin(), sub_hosts.end());
      const auto id = begin_migration(plan);
      if (id) {
        part.set_migration_id(id->to_bytes());
        part.clear_refusal();
        return;
      }
      part.set_refusal(id.error().text);
    }
  }
}

void Coordinator::drain_host(const std::string& host, const DrainDone& done) {
  const std::lock_guard lock(mutex_);
  const auto vms = store_.vms();
  if (!vms) {
    return done(std::unexpected(from_store(vms.error())));
  }
  if (hosts_.find(host) == nullptr) {
    return done(std::unexpected(
        ServiceError{ServiceError::Code::kNotFound,
                     fmt::format("no host \"{}\" has registered here (godwitctl hosts lists them)", host)}));
  }
  const auto drain = std::make_shared<Drain>();
  const auto answered = [drain, done] {
    if (--drain->waits == 0) {
      done(std::move(drain->response));
    }
  };
  drain->waits = 1;  // of this call
  const auto held = splits_.held_by(host);
  for (const VmRecord& vm : *vms) {
    if (vm.host == host) {
      move_away(vm, *drain->response.add_parts());
    }
    if (std::ranges::find(held, vm.uuid) == held.end()) {
      continue;
    }
    ++drain->waits;
    splits_.split(vm, {.sub_hosts = {}, .without = {host}}, [drain, answered, name = vm.name](const auto& split) {
      auto& part = *drain->response.add_parts();
      part.set_vm_name(name);
      part.set_refusal(split ? "" : split.error().text);
      answered();
    });
  }
  answered();
}

}  // namespace godwit::controlplane
