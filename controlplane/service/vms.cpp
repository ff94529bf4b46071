#include "controlplane/service/vms.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>

#include "base/log.h"
#include "config/common.h"

namespace godwit::controlplane {
namespace {

using Code = ServiceError::Code;

constexpr std::uint32_t kHeatCellsMax = 4096;  // as the data plane allows

std::unexpected<ServiceError> failed(Code code, std::string text) {
  return std::unexpected(ServiceError{code, std::move(text)});
}

/// How the definition wants the VM split; a budget of 0: not.
Splits::Order order_in(const api::VmDefinition& definition) {
  return {.budget_bytes = definition.resident_budget_bytes(),
          .sub_hosts = {definition.sub_hosts().begin(), definition.sub_hosts().end()},
          .without = {}};
}

}  // namespace

ServiceError from_store(const StoreError& error) {
  switch (error.code) {
    case StoreError::Code::kNotFound:
      return {Code::kNotFound, error.text};
    case StoreError::Code::kNameTaken:
      return {Code::kExists, error.text};
    case StoreError::Code::kMigrationActive:
    case StoreError::Code::kOwnershipMoved:
    case StoreError::Code::kEpochsExhausted:
    case StoreError::Code::kForbidden:
    case StoreError::Code::kSplit:
      return {Code::kNotNow, error.text};
    case StoreError::Code::kDatabase:
      return {Code::kStore, error.text};
  }
  return {Code::kStore, error.text};
}

ServiceError from_planner(const Refused& refused) {
  switch (refused.refusal) {
    case Refusal::kUnknownVm:
    case Refusal::kUnknownHost:
      return {Code::kNotFound, refused.text};
    case Refusal::kSameHost:
    case Refusal::kBadPlan:
      return {Code::kInvalid, refused.text};
    case Refusal::kModeNotAvailable:
      return {Code::kNotAvailable, refused.text};
    case Refusal::kSourceGone:
    case Refusal::kDestinationGone:
      return {Code::kHostGone, refused.text};
    case Refusal::kNotRunning:
    case Refusal::kMigrationActive:
    case Refusal::kPagesMissing:
    case Refusal::kTrackerNotOffered:
    case Refusal::kVmAtDestination:
    case Refusal::kNoReusableImage:
    case Refusal::kNotEnoughMemory:
    case Refusal::kCannotBeSplit:
      return {Code::kNotNow, refused.text};
  }
  return {Code::kNotNow, refused.text};
}

void Vms::start(const api::StartVmRequest& request, VmDone done) {
  run_at(
      request.host(), request.definition(), request.tracker(),
      [&](const VmRecord& vm) {
        api::ToAgent message;
        auto& command = *message.mutable_start_vm();
        *command.mutable_definition() = vm.definition;
        command.set_image_id(vm.image_id.to_bytes());
        command.set_ownership(vm.ownership);
        command.set_epoch(vm.epoch_next);
        command.set_tracker(vm.tracker);
        return message;
      },
      std::move(done));
}

void Vms::attach(const api::AttachVmRequest& request, VmDone done) {
  if (request.qmp_socket().empty() || request.qmp_socket().front() != '/') {
    done(failed(Code::kInvalid, "qmp_socket must be the absolute path of QEMU's QMP socket on the host"));
    return;
  }
  run_at(
      request.host(), request.definition(), request.tracker(),
      [&](const VmRecord& vm) {
        api::ToAgent message;
        auto& command = *message.mutable_attach_vm();
        *command.mutable_definition() = vm.definition;
        command.set_qmp_socket(request.qmp_socket());
        command.set_image_id(vm.image_id.to_bytes());
        command.set_ownership(vm.ownership);
        command.set_epoch(vm.epoch_next);
        command.set_tracker(vm.tracker);
        return message;
      },
      std::move(done));
}

std::optional<ServiceError> Vms::start_obstacle(const VmRecord& vm) {
  if (const MigrationRecord* pulling = migrations_.pulling(vm.uuid)) {
    return ServiceError{Code::kNotNow,
                        fmt::format("VM \"{}\" still needs {} of {} (migration {}): stop it first", vm.name,
                                    missing_text(*pulling), pulling->source, pulling->id.text())};
  }
  if (const auto migration = migrations_.of_vm(vm.uuid)) {
    return ServiceError{Code::kNotNow, fmt::format("VM \"{}\" is in migration {}", vm.name, migration->text())};
  }
  if (vm.host.empty()) {
    return std::nullopt;
  }
  const Hosts::Host* owner = hosts_.find(vm.host);
  if (owner == nullptr || owner->session == 0) {
    return ServiceError{
        Code::kNotNow,
        fmt::format("VM \"{}\" belongs to {}, which is not connected and may still run it", vm.name, vm.host)};
  }
  if (Hosts::running(*owner, vm.uuid) != nullptr) {
    return ServiceError{Code::kExists, fmt::format("VM \"{}\" runs on {} already", vm.name, vm.host)};
  }
  if (const auto starting = starting_.find(vm.uuid);
      starting != starting_.end() && starting->second == owner->session) {
    return ServiceError{Code::kNotNow, fmt::format("{} may still be starting VM \"{}\": wait until it shows it, or "
                                                   "restart its bridge",
                                                   vm.host, vm.name)};
  }
  return std::nullopt;
}

void Vms::run_at(const std::string& host_name, const api::VmDefinition& definition, dpapi::Tracker tracker,
                 const std::function<api::ToAgent(const VmRecord&)>& fill, VmDone done) {
  if (const auto mistake = definition_mistake(definition)) {
    done(failed(Code::kInvalid, "VM definition: " + *mistake));
    return;
  }
  if (!dpapi::Tracker_IsValid(tracker)) {
    done(failed(Code::kInvalid, "this version does not know the tracker asked for"));
    return;
  }
  const Hosts::Host* host = hosts_.find(host_name);
  if (host == nullptr) {
    done(failed(Code::kNotFound, fmt::format("no host \"{}\" has registered here", printable(host_name))));
    return;
  }
  if (host->session == 0) {
    done(failed(Code::kHostGone, fmt::format("{} is not connected: check its bridge", host_name)));
    return;
  }
  const Id128 uuid = *Id128::from_bytes(definition.uuid());
  const auto known = store_.vm(uuid);
  if (!known) {
    done(std::unexpected(from_store(known.error())));
    return;
  }
  if (*known) {
    if (auto obstacle = start_obstacle(**known)) {
      done(std::unexpected(std::move(*obstacle)));
      return;
    }
  }
  if (const auto order = order_in(definition); order.budget_bytes > 0) {
    VmRecord planned{
        .uuid = uuid, .name = definition.name(), .definition = definition, .host = host_name, .image_id = {}};
    planned.tracker = tracker;
    if (auto obstacle = splits_.obstacle(planned, order)) {
      done(std::unexpected(std::move(*obstacle)));
      return;
    }
  }
  auto vm = store_.claim_vm({.definition = definition,
                             .host = host_name,
                             .image_id = Id128::random(),
                             .tracker = tracker,
                             .ownership_seen = *known ? (*known)->ownership : 0});
  if (!vm) {
    done(std::unexpected(from_store(vm.error())));
    return;
  }
  splits_.vm_over(uuid);  // of a life before this one
  moves_.vm_over(uuid);
  starting_[uuid] = host->session;
  hosts_.request(host_name, fill(*vm), timeouts_.command,
                 [this, vm = *vm, done = std::move(done)](const auto& answer) { started(vm, answer, done); });
}

void Vms::started(VmRecord vm, const std::expected<api::AgentReply, ServiceError>& answer, const VmDone& done) {
  if (!answer) {
    const bool refused = answer.error().code == Code::kRefused || answer.error().code == Code::kNotFound;
    if (refused) {
      starting_.erase(vm.uuid);
      if (auto released = store_.release_vm(vm.uuid, vm.ownership); !released) {
        spdlog::error("VM {}: {}", vm.name, released.error().text);
      }
    }
    done(std::unexpected(ServiceError{refused ? Code::kRefused : answer.error().code, answer.error().text}));
    return;
  }
  starting_.erase(vm.uuid);
  const api::VmStarted& started = answer->vm_started();
  // An attached QEMU is as it is, not as the file says.
  if (started.definition().uuid() == vm.definition.uuid() && started.definition().name() == vm.definition.name() &&
      !definition_mistake(started.definition())) {
    vm.definition = started.definition();
    if (auto stored = store_.redefine_vm(vm.definition, vm.ownership); !stored) {
      spdlog::error("VM {}: {}", vm.name, stored.error().text);
    }
  }
  Hosts::Host* host = hosts_.find(vm.host);
  if (host != nullptr && Hosts::running(*host, vm.uuid) == nullptr) {
    // The host's next report may still be on its way, and an operator may plan at once.
    api::RunningVm running;
    running.set_uuid(vm.uuid.to_bytes());
    running.set_name(vm.name);
    running.set_image_id(vm.image_id.to_bytes());
    running.set_ownership(vm.ownership);
    running.set_run_state("running");
    running.set_tracker(started.tracker());
    running.set_pid(started.pid());
    host->view.vms.push_back(std::move(running));
  }
  spdlog::info("VM {} ({}) runs on {}, tracked by {}: {}", vm.name, vm.uuid.text(), vm.host,
               config::tracker_name(started.tracker()), printable(started.tracker_reason()));
  const auto show = [this, vm, tracker = started.tracker(), done] {
    api::Vm shown = to_api(vm);
    shown.set_tracker(tracker);  // the host's last report may be of before
    done(std::move(shown));
  };
  const Splits::Order order = order_in(vm.definition);
  if (order.budget_bytes == 0) {
    return show();
  }
  splits_.split(vm, order, [vm, show, done](const auto& split) {
    if (split) {
      return show();
    }
    done(failed(split.error().code,
                fmt::format("VM \"{}\" runs on {}, but all of it is there: {}; godwitctl vm split {} "
                            "tries it again, stop ends it",
                            vm.name, vm.host, split.error().text, vm.name)));
  });
}

void Vms::split(const api::SplitVmRequest& request, const VmDone& done) {
  const auto vm = find_vm(request.vm());
  if (!vm) {
    return done(std::unexpected(vm.error()));
  }
  const Splits::Order order = order_of(request);
  if (names_a_host_twice(request.sub_hosts())) {
    return done(failed(Code::kInvalid, "a sub host is named twice"));
  }
  if (request.has_encryption() && !dpapi::Encryption_IsValid(request.encryption())) {
    return done(failed(Code::kInvalid, "encryption has a value that this version does not know"));
  }
  splits_.split(*vm, order, [this, vm = *vm, done](const auto& split) {
    if (split) {
      static_cast<void>(moves_.forget(vm.uuid));  // it stays as it is ordered now
    }
    done(split ? std::expected<api::Vm, ServiceError>(to_api(vm)) : std::unexpected(split.error()));
  });
}

std::expected<api::Vm, ServiceError> Vms::gather(const std::string& name_or_uuid) {
  const auto vm = find_vm(name_or_uuid);
  if (!vm) {
    return std::unexpected(vm.error());
  }
  auto begun = splits_.gather(*vm);
  if (const bool whole = splits_.state(vm->uuid) == api::SPLIT_UNSPECIFIED;
      (begun || whole) && moves_.forget(vm->uuid)) {
    begun = {};  // it stays whole
  }
  if (!begun) {
    return std::unexpected(begun.error());
  }
  return to_api(*vm);
}

void Vms::stop(const std::string& name_or_uuid, Done done) {
  const auto vm = find_vm(name_or_uuid);
  if (!vm) {
    done(std::unexpected(vm.error()));
    return;
  }
  if (vm->host.empty()) {
    done({});
    return;
  }
  if (const auto migration = migrations_.of_vm(vm->uuid); migration && migrations_.pulling(vm->uuid) == nullptr) {
    done(failed(Code::kNotNow,
                fmt::format("VM \"{}\" is in migration {}: cancel it first, or wait", vm->name, migration->text())));
    return;
  }
  api::ToAgent message;
  message.mutable_stop_vm()->set_uuid(vm->uuid.to_bytes());
  message.mutable_stop_vm()->set_ownership(vm->ownership);
  hosts_.request(vm->host, std::move(message), timeouts_.command,
                 [this, vm = *vm, done = std::move(done)](const auto& answer) {
                   // A host that has no such VM any more has stopped it as well.
                   if (!answer && answer.error().code != Code::kNotFound) {
                     done(std::unexpected(answer.error()));
                     return;
                   }
                   const auto released = store_.release_vm(vm.uuid, vm.ownership);
                   if (!released) {
                     done(std::unexpected(from_store(released.error())));
                     return;
                   }
                   if (Hosts::Host* host = hosts_.find(vm.host)) {
                     std::erase_if(host->view.vms, [&](const auto& r) { return r.uuid() == vm.uuid.to_bytes(); });
                   }
                   migrations_.vm_stopped(vm.uuid);
                   splits_.vm_over(vm.uuid);
                   moves_.vm_over(vm.uuid);
                   spdlog::info("VM {} stopped on {}", vm.name, vm.host);
                   done({});
                 });
}

void Vms::heat(const api::GetHeatRequest& request, HeatDone done) {
  if (request.cells() == 0 || request.cells() > kHeatCellsMax) {
    done(failed(Code::kInvalid, fmt::format("{} cells; 1 to {} are allowed", request.cells(), kHeatCellsMax)));
    return;
  }
  const auto vm = find_vm(request.vm());
  if (!vm) {
    done(std::unexpected(vm.error()));
    return;
  }
  if (vm->host.empty()) {
    done(failed(Code::kNotNow, fmt::format("VM \"{}\" does not run", vm->name)));
    return;
  }
  api::ToAgent message;
  message.mutable_get_vm_heat()->set_uuid(vm->uuid.to_bytes());
  message.mutable_get_vm_heat()->set_cells(request.cells());
  hosts_.request(vm->host, std::move(message), timeouts_.command,
                 [vm = *vm, cells = request.cells(), done = std::move(done)](const auto& answer) {
                   if (!answer) {
                     done(std::unexpected(answer.error()));
                     return;
                   }
                   if (!answer->has_heat() || answer->heat().cells().size() > cells) {
                     done(failed(Code::kRefused, fmt::format("{} did not answer what was asked", vm.host)));
                     return;
                   }
                   api::GetHeatResponse response;
                   response.set_vm_name(vm.name);
                   response.set_host(vm.host);
                   *response.mutable_map() = answer->heat();
                   done(std::move(response));
                 });
}

void Vms::drop_image(const std::string& host_name, const std::string& name_or_uuid, Done done) {
  Hosts::Host* host = hosts_.find(host_name);
  if (host == nullptr) {
    done(failed(Code::kNotFound, fmt::format("no host \"{}\" has registered here", printable(host_name))));
    return;
  }
  const auto vm = find_vm(name_or_uuid);
  if (!vm && vm.error().code != Code::kNotFound) {
    done(std::unexpected(vm.error()));
    return;
  }
  const auto uuid = vm ? vm->uuid : Id128::parse(name_or_uuid).value_or(Id128{});
  std::vector<dpapi::ImageId> ids;
  for (const dpapi::Image& image : host->view.images) {
    if (image.id().vm_uuid() != uuid.to_bytes()) {
      continue;
    }
    if (const MigrationRecord* pulling = migrations_.pulling(uuid);
        pulling != nullptr && pulling->source == host_name) {
      done(failed(Code::kNotNow, fmt::format("VM \"{}\" on {} still needs {} of it", pulling->vm_name,
                                             pulling->destination, missing_text(*pulling))));
      return;
    }
    if (image.in_use() || migrations_.uses_image(host_name, uuid)) {
      done(failed(Code::kNotNow, fmt::format("the image of {} on {} is in use", printable(name_or_uuid), host_name)));
      return;
    }
    ids.push_back(image.id());
  }
  if (ids.empty()) {
    done(failed(Code::kNotFound, fmt::format("{} keeps no image of \"{}\"", host_name, printable(name_or_uuid))));
    return;
  }
  struct Progress {
    std::size_t left;
    std::optional<ServiceError> error;
    Done done;
  };
  const auto progress = std::make_shared<Progress>(Progress{ids.size(), std::nullopt, std::move(done)});
  for (const dpapi::ImageId& id : ids) {
    api::ToAgent message;
    *message.mutable_drop_image()->mutable_id() = id;
    hosts_.request(
        host_name, std::move(message), timeouts_.command, [this, host_name, id, progress](const auto& answer) {
          if (!answer && answer.error().code != Code::kNotFound) {
            progress->error = answer.error();
          } else if (Hosts::Host* now = hosts_.find(host_name)) {
            std::erase_if(now->view.images, [&](const auto& image) {
              return image.id().vm_uuid() == id.vm_uuid() && image.id().image_id() == id.image_id();
            });
          }
          if (--progress->left == 0) {
            progress->done(progress->error ? std::expected<void, ServiceError>(std::unexpected(*progress->error))
                                           : std::expected<void, ServiceError>());
          }
        });
  }
}

std::expected<VmRecord, ServiceError> Vms::find_vm(const std::string& name_or_uuid) {
  auto vm = store_.find_vm(name_or_uuid);
  if (!vm) {
    return std::unexpected(from_store(vm.error()));
  }
  if (!*vm) {
    return failed(Code::kNotFound, fmt::format("no VM \"{}\" (godwitctl vms lists them)", printable(name_or_uuid)));
  }
  return std::move(**vm);
}

api::Vm Vms::to_api(const VmRecord& vm) {
  api::Vm answer;
  answer.set_uuid(vm.uuid.to_bytes());
  answer.set_name(vm.name);
  answer.set_host(vm.host);
  answer.set_ownership(vm.ownership);
  answer.set_image_id(vm.image_id.to_bytes());
  answer.set_epoch_next(vm.epoch_next);
  answer.set_bytes_total(bytes_of(vm.definition));
  answer.set_tracker(vm.tracker);
  if (const auto migration = migrations_.of_vm(vm.uuid)) {
    answer.set_migration_id(migration->to_bytes());
  }
  if (const MigrationRecord* pulling = migrations_.pulling(vm.uuid)) {
    answer.set_depends_on(pulling->source);
    *answer.mutable_paging()->mutable_stats() = pulling->destination_stats.paging();
  }
  if (auto split = splits_.view(vm.uuid)) {
    *answer.mutable_split() = std::move(*split);
    if (const std::string problem = moves_.gather_problem(vm.uuid); !problem.empty()) {
      answer.mutable_split()->add_warnings(
          fmt::format("it is to be as it was before its migration: {}; tried again", problem));
    }
  }
  answer.set_to_be_split(moves_.view(vm.uuid));
  if (vm.host.empty()) {
    answer.set_run_state("stopped");
    return answer;
  }
  const Hosts::Host* host = hosts_.find(vm.host);
  const api::RunningVm* running = host == nullptr ? nullptr : Hosts::running(*host, vm.uuid);
  if (host == nullptr || host->session == 0) {
    answer.set_run_state("unknown");
  } else if (running == nullptr) {
    answer.set_run_state("gone");
  } else {
    answer.set_run_state(running->run_state());
    answer.set_tracker(running->tracker());
    if (answer.has_paging() && running->has_paging()) {
      *answer.mutable_paging() = running->paging();
      answer.mutable_paging()->set_connected(migrations_.pages_flow(vm.uuid));
    }
  }
  return answer;
}

std::expected<api::ListVmsResponse, ServiceError> Vms::list() {
  const auto vms = store_.vms();
  if (!vms) {
    return std::unexpected(from_store(vms.error()));
  }
  api::ListVmsResponse response;
  for (const VmRecord& vm : *vms) {
    *response.add_vms() = to_api(vm);
  }
  return response;
}

std::expected<api::ListImagesResponse, ServiceError> Vms::list_images() {
  const auto vms = store_.vms();
  if (!vms) {
    return std::unexpected(from_store(vms.error()));
  }
  std::map<std::string, const VmRecord*> by_uuid;
  for (const VmRecord& vm : *vms) {
    by_uuid[vm.uuid.to_bytes()] = &vm;
  }
  api::ListImagesResponse response;
  for (const auto& [name, host] : hosts_.all()) {
    for (const dpapi::Image& image : host.view.images) {
      auto& listed = *response.add_images();
      listed.set_host(name);
      *listed.mutable_image() = image;
      if (const auto vm = by_uuid.find(image.id().vm_uuid()); vm != by_uuid.end()) {
        listed.set_vm_name(vm->second->name);
        listed.set_current(vm->second->image_id.to_bytes() == image.id().image_id());
      }
    }
  }
  return response;
}

std::expected<api::ListHostsResponse, ServiceError> Vms::list_hosts() {
  const auto vms = store_.vms();
  if (!vms) {
    return std::unexpected(from_store(vms.error()));
  }
  api::ListHostsResponse response;
  for (const auto& [name, host] : hosts_.all()) {
    auto& listed = *response.add_hosts();
    *listed.mutable_info() = host.view.info;
    listed.set_connected(host.session != 0);
    listed.set_last_seen_unix_us(host.last_seen_unix_us);
    listed.set_images(static_cast<std::uint32_t>(host.view.images.size()));
    listed.set_vms(static_cast<std::uint32_t>(
        std::count_if(vms->begin(), vms->end(), [&](const VmRecord& vm) { return vm.host == name; })));
  }
  return response;
}

}  // namespace godwit::controlplane
