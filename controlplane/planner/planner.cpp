#include "controlplane/planner/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>

#include "base/log.h"
#include "config/common.h"
#include "config/units.h"

namespace godwit::controlplane {
namespace {

constexpr std::uint64_t kDowntimeLimitDefaultUs = 300'000;
constexpr std::uint64_t kDowntimeLimitMaxUs = 3'600'000'000;
constexpr std::uint32_t kRoundsDefault = 30;
// Round r uses epoch_base + r, and the last rounds of a switchover follow rounds_max.
constexpr std::uint32_t kRoundsMax = kEpochsPerAttempt - 24;
constexpr std::uint64_t kRegionBytesMax = std::uint64_t{1} << 46;
constexpr std::size_t kNameLengthMax = 64;
constexpr int kRegionsMax = 64;

std::unexpected<Refused> refuse(Refusal refusal, std::string text) {
  return std::unexpected(Refused{refusal, std::move(text)});
}

/// A guest elsewhere may still depend on it, whatever a data plane that was restarted says of it.
bool is_served(const HostView& host, const dpapi::Image& image) {
  return !image.serving_migration_id().empty() ||
         std::any_of(host.vms.begin(), host.vms.end(), [&](const api::RunningVm& vm) {
           return vm.uuid() == image.id().vm_uuid() && vm.has_paging() && vm.role() == dpapi::ROLE_SOURCE;
         });
}

bool is_of(const dpapi::Image& image, const Id128& vm_uuid) { return image.id().vm_uuid() == vm_uuid.to_bytes(); }

struct Need {
  std::uint64_t tmpfs_bytes = 0;
  std::uint64_t hugetlbfs_bytes = 0;
};

Need need_of(const api::VmDefinition& definition) {
  Need need;
  for (const auto& region : definition.regions()) {
    (region.backing() == "hugetlbfs" ? need.hugetlbfs_bytes : need.tmpfs_bytes) += region.bytes();
  }
  return need;
}

/// Retained images make room for a guest: the reused one is its memory already, the others are dropped when needed.
std::optional<Refused> memory_refusal(const Question& question, const ReuseDecision& reuse) {
  const api::HostInfo& info = question.destination->info;
  Need need = need_of(question.vm->definition);
  need.tmpfs_bytes = bytes_there(question.plan, need.tmpfs_bytes);
  std::uint64_t droppable_bytes = 0;
  for (const dpapi::Image& image : question.destination->images) {
    if (!image.in_use() && !is_served(*question.destination, image)) {
      droppable_bytes += image.bytes_resident();
    }
  }
  // An image does not say which kind of file it is in; counted for both, and the destination itself has the last word.
  const auto missing = [&](std::uint64_t need_bytes, std::uint64_t free_bytes) {
    const std::uint64_t available_bytes = free_bytes + droppable_bytes;
    return need_bytes > available_bytes ? need_bytes - available_bytes : 0;
  };
  const auto text = [&](const char* kind, std::uint64_t need_bytes, std::uint64_t free_bytes) {
    return fmt::format("{} has not enough {}: {} needed, {} free, {} in images that may be dropped{}",
                       question.plan.destination(), kind, config::format_bytes(need_bytes),
                       config::format_bytes(free_bytes), config::format_bytes(droppable_bytes),
                       reuse.reuse ? " or reused" : "");
  };
  const std::uint64_t free_bytes = info.memory_free_bytes() + question.lent_bytes;
  if (missing(need.tmpfs_bytes, free_bytes) > 0) {
    return Refused{Refusal::kNotEnoughMemory, text("memory", need.tmpfs_bytes, free_bytes)};
  }
  if (missing(need.hugetlbfs_bytes, info.hugepages_free_bytes()) > 0) {
    return Refused{Refusal::kNotEnoughMemory, text("hugepages", need.hugetlbfs_bytes, info.hugepages_free_bytes())};
  }
  return std::nullopt;
}

}  // namespace

std::optional<Refused> plan_mistake(const api::Plan& plan) {
  if (!dpapi::Mode_IsValid(plan.mode()) || !dpapi::BackgroundOrder_IsValid(plan.background_order())) {
    return Refused{Refusal::kModeNotAvailable, "mode or background_order has a value that this version does not know"};
  }
  if (plan.mode() != dpapi::HYBRID && (plan.postcopy_after_rounds() != 0 || plan.postcopy_after_ms() != 0)) {
    return Refused{Refusal::kBadPlan, "postcopy_after_rounds and postcopy_after are for mode hybrid only"};
  }
  if (plan.postcopy_after_rounds() > kRoundsMax) {
    return Refused{Refusal::kBadPlan, fmt::format("postcopy_after_rounds is more than {}", kRoundsMax)};
  }
  if (plan.downtime_limit_us() > kDowntimeLimitMaxUs) {
    return Refused{Refusal::kBadPlan, "downtime_limit is more than an hour"};
  }
  if (plan.rounds_max() > kRoundsMax) {
    return Refused{Refusal::kBadPlan, fmt::format("rounds_max is more than {}", kRoundsMax)};
  }
  if (!api::ReusePolicy_IsValid(plan.reuse()) || !dpapi::Verify_IsValid(plan.verify()) ||
      !dpapi::OnNoConvergence_IsValid(plan.on_no_convergence()) || !dpapi::Encryption_IsValid(plan.encryption())) {
    return Refused{Refusal::kBadPlan,
                   "reuse, verify, on_no_convergence or encryption has a value that this version does not know"};
  }
  if (names_a_host_twice(plan.sub_hosts())) {
    return Refused{Refusal::kBadPlan, "a sub host is named twice"};
  }
  if (plan.whole() && (plan.resident_budget_bytes() != 0 || !plan.sub_hosts().empty())) {
    return Refused{Refusal::kBadPlan, "a VM that is to be whole where it arrives has no budget and no sub hosts there"};
  }
  return std::nullopt;
}

std::uint64_t bytes_there(const api::Plan& plan, std::uint64_t bytes_total) {
  return plan.keeps_stores() && !plan.whole() ? std::min(bytes_total, plan.resident_budget_bytes()) : bytes_total;
}

namespace {

bool offers(const HostView& host, dpapi::Tracker tracker) {
  return tracker == dpapi::TRACKER_AUTO ||
         std::find(host.info.trackers().begin(), host.info.trackers().end(), tracker) != host.info.trackers().end();
}

std::optional<Refused> host_refusal(const Question& question) {
  const std::string& source = question.vm->host;
  const std::string& destination = question.plan.destination();
  if (question.destination == nullptr) {
    return Refused{Refusal::kUnknownHost,
                   fmt::format("no host \"{}\" has registered here (godwitctl hosts lists them)", destination)};
  }
  if (destination == source) {
    return Refused{Refusal::kSameHost, fmt::format("VM \"{}\" is on {} already", question.vm->name, destination)};
  }
  if (question.source == nullptr || !question.source->connected) {
    return Refused{Refusal::kSourceGone, fmt::format("{}, which runs VM \"{}\", is not connected: check its bridge",
                                                     source, question.vm->name)};
  }
  if (!question.source->info.dataplane_up()) {
    return Refused{Refusal::kSourceGone, fmt::format("the data plane of {} is down", source)};
  }
  if (!question.destination->connected) {
    return Refused{Refusal::kDestinationGone, fmt::format("{} is not connected: check its bridge", destination)};
  }
  if (!question.destination->info.dataplane_up()) {
    return Refused{Refusal::kDestinationGone, fmt::format("the data plane of {} is down", destination)};
  }
  const std::string uuid = question.vm->uuid.to_bytes();
  for (const api::RunningVm& vm : question.destination->vms) {
    if (vm.uuid() == uuid) {
      return Refused{Refusal::kVmAtDestination,
                     fmt::format("{} still holds a QEMU of VM \"{}\" (pid {}, {}): end it there first", destination,
                                 question.vm->name, vm.pid(), vm.run_state())};
    }
  }
  if (!offers(*question.destination, question.vm->tracker)) {
    return Refused{
        Refusal::kTrackerNotOffered,
        fmt::format("VM \"{}\" is to be tracked by {}, which {} (kernel {}) does not offer", question.vm->name,
                    config::tracker_name(question.vm->tracker), destination, question.destination->info.kernel())};
  }
  return std::nullopt;
}

/// Where the guest may resume before all of its pages are there.
std::optional<Refused> postcopy_refusal(const Question& question) {
  if (mode_of(question.plan) == dpapi::PRECOPY) {
    return std::nullopt;
  }
  const char* instead = question.plan.keeps_stores()             ? "gather the VM first (godwitctl vm gather)"
                        : question.plan.mode() == dpapi::PRECOPY ? "set on_no_convergence to abort or stop-anyway"
                                                                 : "use mode precopy";
  const api::HostInfo& info = question.destination->info;
  if (!info.postcopy()) {
    const std::string& why = info.postcopy_refusal();
    return Refused{Refusal::kModeNotAvailable,
                   fmt::format("{} cannot be the destination of post-copy: {}; or {}", question.plan.destination(),
                               why.empty() ? "its data plane does not offer it" : printable(why), instead)};
  }
  return std::nullopt;
}

}  // namespace

dpapi::Mode mode_of(const api::Plan& plan) {
  return plan.mode() == dpapi::PRECOPY && plan.on_no_convergence() == dpapi::NO_CONVERGENCE_POSTCOPY ? dpapi::HYBRID
                                                                                                     : plan.mode();
}

ReuseDecision decide_reuse(const ReuseQuestion& question, std::span<const dpapi::Image> images) {
  const auto& [plan, vm_uuid, image_id, bytes_total] = question;
  if (plan.reuse() == api::REUSE_NEVER) {
    return {.reason = "none: the plan says never"};
  }
  const dpapi::Image* best = nullptr;
  std::string refused;
  for (const dpapi::Image& image : images) {
    if (!is_of(image, vm_uuid)) {
      continue;
    }
    if (image.id().image_id() != image_id.to_bytes()) {
      refused = "none: the retained image there is of an earlier boot of the VM";
    } else if (image.in_use()) {
      refused = "none: the retained image there is in use";
    } else if (image.bytes_total() != bytes_total) {
      refused = fmt::format("none: the retained image there is of {}, the VM has {}",
                            config::format_bytes(image.bytes_total()), config::format_bytes(bytes_total));
    } else if (plan.keeps_stores() && image.bytes_resident() > bytes_there(plan, bytes_total)) {
      refused = fmt::format("none: the retained image there has {}, more than the budget",
                            config::format_bytes(image.bytes_resident()));
    } else if (best == nullptr || image.epoch() > best->epoch()) {
      best = &image;
    }
  }
  if (best == nullptr) {
    return {.reason = refused.empty() ? "none: no image of this VM was retained there" : refused};
  }
  return {.reuse = true,
          .image_id = best->id().image_id(),
          .bytes_resident = best->bytes_resident(),
          .reason = fmt::format("retained image of epoch {}, {}", best->epoch(),
                                config::format_bytes(best->bytes_resident()))};
}

bool names_a_host_twice(const google::protobuf::RepeatedPtrField<std::string>& hosts) {
  return std::set<std::string>(hosts.begin(), hosts.end()).size() != static_cast<std::size_t>(hosts.size());
}

std::expected<ReuseDecision, Refused> plan_migration(const Question& question) {
  const api::Plan& plan = question.plan;
  if (auto refused = plan_mistake(plan)) {
    return std::unexpected(*refused);
  }
  if (question.vm == nullptr) {
    return refuse(Refusal::kUnknownVm, fmt::format("no VM \"{}\" (godwitctl vms lists them)", plan.vm()));
  }
  const VmRecord& vm = *question.vm;
  if (vm.host.empty()) {
    return refuse(Refusal::kNotRunning, fmt::format("VM \"{}\" runs nowhere: start it first", vm.name));
  }
  if (question.pulling != nullptr) {
    const MigrationRecord& pulling = *question.pulling;
    return refuse(Refusal::kPagesMissing,
                  fmt::format("VM \"{}\" still needs {} that only {} holds (migration {}): wait until it has them "
                              "(godwitctl watch {})",
                              vm.name, config::format_pages(pulling.destination_stats.paging().pages_missing()),
                              pulling.source, pulling.id.text(), pulling.id.text()));
  }
  if (question.active_migration) {
    return refuse(Refusal::kMigrationActive,
                  fmt::format("VM \"{}\" is in migration {} already", vm.name, question.active_migration->text()));
  }
  if (auto refused = host_refusal(question)) {
    return std::unexpected(*refused);
  }
  if (auto refused = postcopy_refusal(question)) {
    return std::unexpected(*refused);
  }
  const auto& running = question.source->vms;
  if (std::none_of(running.begin(), running.end(), [&](const auto& r) { return r.uuid() == vm.uuid.to_bytes(); })) {
    return refuse(Refusal::kNotRunning,
                  fmt::format("{} reports that VM \"{}\" does not run any more", vm.host, vm.name));
  }
  ReuseDecision reuse =
      decide_reuse({plan, vm.uuid, vm.image_id, bytes_of(vm.definition)}, question.destination->images);
  if (plan.reuse() == api::REUSE_REQUIRE && !reuse.reuse) {
    return refuse(Refusal::kNoReusableImage,
                  fmt::format("the plan requires reuse at {}, but {}", plan.destination(), reuse.reason));
  }
  if (auto refused = memory_refusal(question, reuse)) {
    return std::unexpected(*refused);
  }
  return reuse;
}

std::optional<std::string> definition_mistake(const api::VmDefinition& definition) {
  const std::string& name = definition.name();
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  };
  if (name.empty() || name.size() > kNameLengthMax || name.front() == '.' || name.front() == '-' ||
      !std::all_of(name.begin(), name.end(), allowed)) {
    return "name must be 1 to 64 letters, digits, '-', '_' or '.', and begin with a letter, digit or '_'";
  }
  if (Id128::parse(name)) {
    return "name must not look like a uuid";
  }
  const auto uuid = Id128::from_bytes(definition.uuid());
  if (!uuid || uuid->is_nil()) {
    return "uuid must be 16 bytes, not all zero";
  }
  if (definition.vcpus() == 0) {
    return "vcpus must be at least 1";
  }
  if (definition.regions_size() == 0 || definition.regions_size() > kRegionsMax) {
    return fmt::format("1 to {} RAM regions are needed", kRegionsMax);
  }
  std::set<std::string> names;
  for (const auto& region : definition.regions()) {
    const bool huge = region.backing() == "hugetlbfs";
    if (!huge && region.backing() != "tmpfs") {
      return fmt::format("region \"{}\": backing must be tmpfs or hugetlbfs", region.name());
    }
    const std::uint64_t page_bytes = huge ? 2U << 20 : 4096;
    if (region.bytes() == 0 || region.bytes() % page_bytes != 0 || region.bytes() > kRegionBytesMax) {
      return fmt::format("region \"{}\": bytes must be a multiple of {}, not 0", region.name(), page_bytes);
    }
    if (region.name().empty() || !names.insert(region.name()).second) {
      return "every region needs a name of its own";
    }
  }
  return std::nullopt;
}

std::uint64_t bytes_of(const api::VmDefinition& definition) {
  std::uint64_t bytes = 0;
  for (const auto& region : definition.regions()) {
    bytes += std::min(region.bytes(), std::numeric_limits<std::uint64_t>::max() - bytes);
  }
  return bytes;
}

dpapi::MigrationPolicy policy_of(const api::Plan& plan) {
  dpapi::MigrationPolicy policy;
  policy.set_downtime_limit_us(plan.downtime_limit_us() == 0 ? kDowntimeLimitDefaultUs : plan.downtime_limit_us());
  policy.set_bandwidth_limit_bps(plan.bandwidth_limit_bps());
  policy.set_verify(plan.verify());
  policy.set_on_no_convergence(plan.on_no_convergence());
  policy.set_rounds_max(plan.rounds_max() == 0 ? kRoundsDefault : plan.rounds_max());
  policy.set_time_limit_ms(plan.time_limit_ms());
  policy.set_mode(mode_of(plan));
  policy.set_postcopy_after_rounds(plan.postcopy_after_rounds());
  policy.set_postcopy_after_ms(plan.postcopy_after_ms());
  policy.set_background_order(plan.background_order());
  return policy;
}

}  // namespace godwit::controlplane
