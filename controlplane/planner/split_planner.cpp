#include "controlplane/planner/split_planner.h"

#include <fmt/format.h>

#include <algorithm>

#include "config/units.h"
#include "config/vm_definition.h"

namespace godwit::controlplane {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kPageStoreFixedBytes = 1 << 20;
constexpr std::size_t kSubHostsMax = 64;

std::unexpected<Refused> refuse(Refusal refusal, std::string text) {
  return std::unexpected(Refused{refusal, std::move(text)});
}

std::optional<Refused> vm_refusal(const SplitQuestion& question) {
  const VmRecord& vm = question.vm;
  const std::uint64_t total_bytes = bytes_of(vm.definition);
  if (question.budget_bytes < config::kResidentBudgetBytesMin || question.budget_bytes % kPageBytes != 0) {
    return Refused{Refusal::kBadPlan, fmt::format("the budget must be a multiple of 4 KiB, and at least {}",
                                                  config::format_bytes(config::kResidentBudgetBytesMin))};
  }
  if (question.budget_bytes >= total_bytes) {
    return Refused{Refusal::kBadPlan,
                   fmt::format("VM \"{}\" has {}: with a budget of {} there is nothing to split", vm.name,
                               config::format_bytes(total_bytes), config::format_bytes(question.budget_bytes))};
  }
  for (const auto& region : vm.definition.regions()) {
    if (region.backing() == "hugetlbfs") {
      return Refused{
          Refusal::kCannotBeSplit,
          fmt::format("region \"{}\" of VM \"{}\" is on hugetlbfs, whose pages cannot be evicted: only tmpfs "
                      "can be split",
                      region.name(), vm.name)};
    }
  }
  if (vm.tracker == dpapi::TRACKER_HASHES || question.tracker == dpapi::TRACKER_HASHES) {
    return Refused{Refusal::kCannotBeSplit,
                   fmt::format("VM \"{}\" is tracked by hashes, which would take evicted pages for written ones: start "
                               "it with another tracker",
                               vm.name)};
  }
  return std::nullopt;
}

/// What the host can still promise, or why it can promise nothing.
std::expected<std::uint64_t, Refused> lendable_bytes(const SplitQuestion& question, const std::string& name) {
  const auto found = question.hosts.find(name);
  if (found == question.hosts.end()) {
    return refuse(Refusal::kUnknownHost,
                  fmt::format("no host \"{}\" has registered here (godwitctl hosts lists them)", name));
  }
  const HostView& host = *found->second;
  if (question.without.contains(name)) {
    return refuse(Refusal::kBadPlan,
                  fmt::format("{} is to hold nothing of VM \"{}\": name another sub host", name, question.vm.name));
  }
  if (name == question.vm.host) {
    return refuse(Refusal::kSameHost,
                  fmt::format("VM \"{}\" runs on {}, its main host: name another as sub host", question.vm.name, name));
  }
  if (!host.connected || !host.info.dataplane_up()) {
    return refuse(Refusal::kDestinationGone,
                  fmt::format("{} {}", name, host.connected ? "has its data plane down" : "is not connected"));
  }
  if (host.info.memory_lend_bytes() == 0) {
    return refuse(Refusal::kNotEnoughMemory,
                  fmt::format("{} lends no memory: set lend in [memory] of its bridge.toml", name));
  }
  const auto of_host = [&](const std::map<std::string, std::uint64_t>& bytes) {
    const auto found_bytes = bytes.find(name);
    return found_bytes == bytes.end() ? 0 : found_bytes->second;
  };
  const std::uint64_t freed_bytes = of_host(question.freed);
  std::uint64_t lent_bytes = std::max(host.info.memory_lent_bytes(), of_host(question.promised));
  lent_bytes -= std::min(lent_bytes, freed_bytes);
  const std::uint64_t left_bytes = host.info.memory_lend_bytes() - std::min(host.info.memory_lend_bytes(), lent_bytes);
  return std::min(left_bytes, host.info.memory_free_bytes() + freed_bytes);
}

/// Equal shares, but nobody's above what it can lend.
std::vector<SubShare> share_out(std::uint64_t need_bytes, std::vector<SubShare> free) {
  std::ranges::sort(free, {}, &SubShare::bytes_lent);
  std::vector<SubShare> shares;
  for (std::size_t i = 0; i < free.size(); ++i) {
    const std::uint64_t hosts_left = free.size() - i;
    const std::uint64_t equal_bytes = (need_bytes / kPageBytes + hosts_left - 1) / hosts_left * kPageBytes;
    const std::uint64_t bytes = std::min(free[i].bytes_lent / kPageBytes * kPageBytes, equal_bytes);
    if (bytes > 0) {
      shares.push_back({free[i].host, bytes});
    }
    need_bytes -= std::min(need_bytes, bytes);
  }
  return shares;
}

/// The fewest hosts that can lend so much: those with most free memory for each VM that they run or hold already.
std::vector<SubShare> choose(const SplitQuestion& question, std::uint64_t need_bytes) {
  struct Candidate {
    SubShare share;
    double rank = 0;
  };
  std::vector<Candidate> candidates;
  for (const auto& [name, host] : question.hosts) {
    const auto free_bytes = lendable_bytes(question, name);
    if (free_bytes && std::ranges::find(question.own, name, &PageStoreRecord::sub_host) == question.own.end()) {
      const auto busy = static_cast<double>(1 + host->vms.size() + host->stores.size());
      candidates.push_back({{name, *free_bytes}, static_cast<double>(*free_bytes) / busy});
    }
  }
  std::ranges::stable_sort(candidates, std::ranges::greater(), &Candidate::rank);
  std::vector<SubShare> chosen;
  std::uint64_t bytes = 0;
  for (const Candidate& candidate : candidates) {
    if (bytes < need_bytes && chosen.size() < kSubHostsMax) {
      chosen.push_back(candidate.share);
      bytes += candidate.share.bytes_lent;
    }
  }
  return chosen;
}

}  // namespace

std::uint64_t page_store_bytes(std::uint64_t bytes_of_pages) {
  const std::uint64_t bytes = bytes_of_pages + bytes_of_pages / 64 + kPageStoreFixedBytes;
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

std::expected<std::vector<SubShare>, Refused> plan_split(const SplitQuestion& question) {
  if (auto refused = vm_refusal(question)) {
    return std::unexpected(std::move(*refused));
  }
  std::uint64_t need_bytes = page_store_bytes(bytes_of(question.vm.definition) - question.budget_bytes);
  for (const PageStoreRecord& own : question.own) {
    need_bytes -= std::min(need_bytes, own.bytes_lent);
  }
  std::vector<SubShare> free;
  for (const std::string& name : question.sub_hosts) {
    if (std::ranges::find(question.own, name, &PageStoreRecord::sub_host) != question.own.end()) {
      continue;  // it is one already
    }
    const auto bytes = lendable_bytes(question, name);
    if (!bytes) {
      return std::unexpected(bytes.error());
    }
    free.push_back({name, *bytes});
  }
  if (question.sub_hosts.empty()) {
    free = choose(question, need_bytes);
  } else if (need_bytes == 0) {
    // Asked for all the same: an equal part of what is away, so that the others get less of what comes.
    need_bytes = page_store_bytes(bytes_of(question.vm.definition) - question.budget_bytes) /
                 (question.own.size() + free.size()) * free.size();
  }
  std::uint64_t free_bytes = 0;
  for (const SubShare& each : free) {
    free_bytes += each.bytes_lent;
  }
  if (free_bytes < need_bytes) {
    return refuse(Refusal::kNotEnoughMemory,
                  fmt::format("{} of VM \"{}\" must lie elsewhere, and {} can lend {}: raise the budget, name further "
                              "hosts, or raise lend in [memory] of their bridge.toml",
                              config::format_bytes(need_bytes), question.vm.name,
                              question.sub_hosts.empty() ? "all other hosts together" : "these hosts",
                              config::format_bytes(free_bytes)));
  }
  return share_out(need_bytes, std::move(free));
}

std::optional<Refused> gather_refusal(const VmRecord& vm, const HostView& main, std::uint64_t resident_bytes) {
  const std::uint64_t total_bytes = bytes_of(vm.definition);
  const std::uint64_t need_bytes = total_bytes - std::min(total_bytes, resident_bytes);
  if (need_bytes <= main.info.memory_free_bytes()) {
    return std::nullopt;
  }
  return Refused{Refusal::kNotEnoughMemory,
                 fmt::format("{} has not enough memory for all of VM \"{}\": {} more needed, {} free", vm.host, vm.name,
                             config::format_bytes(need_bytes), config::format_bytes(main.info.memory_free_bytes()))};
}

}  // namespace godwit::controlplane
