#include "config/vm_definition.h"

#include <algorithm>
#include <array>
#include <set>

#include "config/parsers.h"

namespace godwit::config {

namespace {

constexpr std::array<std::string_view, 3> kVariables = {"run_dir", "name", "uuid"};

/// Options that godwit writes itself, from the other keys or because a migration needs them.
constexpr std::array<std::string_view, 12> kOwnOptions = {"machine", "M",    "accel", "enable-kvm", "cpu",       "smp",
                                                          "m",       "name", "uuid",  "incoming",   "daemonize", "S"};

constexpr std::uint64_t page_bytes(Backing backing) { return backing == Backing::kHugetlbfs ? 2ULL << 20 : 4096; }

std::string region_name_rule(std::string_view name) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  const auto allowed = [&](char c) { return letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.'; };
  if (name.empty() || name.size() > 63 || !letter(name[0]) || !std::ranges::all_of(name, allowed)) {
    return fmt::format("is \"{}\", must be a QEMU object id: a letter, then letters, digits, '-', '_' or '.'", name);
  }
  return {};
}

std::string machine_rule(std::string_view machine) {
  if (machine.empty() || machine.find(' ') != std::string_view::npos) {
    return fmt::format("is \"{}\", must be a machine type as `qemu-system-x86_64 -machine help` shows it", machine);
  }
  if (machine.find("memory-backend") != std::string_view::npos) {
    return "must not set memory-backend: the regions do";
  }
  return {};
}

/// A value of one QEMU option, or of a name of the system: one word.
std::string word_rule(std::string_view word) {
  return word.find_first_of(" \t") == std::string_view::npos ? ""
                                                             : fmt::format("is \"{}\", must not have spaces", word);
}

/// The name in each ${name} of an argument must be known.
std::string variable_problem(std::string_view argument) {
  for (auto at = argument.find("${"); at != std::string_view::npos; at = argument.find("${", at + 2)) {
    const auto end = argument.find('}', at);
    const auto name = argument.substr(at + 2, end == std::string_view::npos ? end : end - at - 2);
    if (end == std::string_view::npos || std::ranges::find(kVariables, name) == kVariables.end()) {
      return fmt::format("names the variable \"{}\"; known are ${{run_dir}}, ${{name}} and ${{uuid}}", name);
    }
  }
  return {};
}

std::string argument_rule(std::string_view argument) {
  auto option = argument;
  while (option.starts_with('-')) {
    option.remove_prefix(1);
  }
  if (option.size() < argument.size() && std::ranges::find(kOwnOptions, option) != kOwnOptions.end()) {
    return fmt::format("is {}, which godwit sets itself from the keys of this file", argument);
  }
  return variable_problem(argument);
}

void read_region(Reader& reader, RegionDefinition& region) {
  reader.required("name", region.name, text(region_name_rule));
  const bool sized = reader.required("size", region.bytes, bytes(1ULL << 20, 16ULL << 40));
  reader.optional("backing", region.backing,
                  one_of<Backing>({{"tmpfs", Backing::kTmpfs}, {"hugetlbfs", Backing::kHugetlbfs}}));
  if (sized && region.bytes % page_bytes(region.backing) != 0) {
    reader.fail("size",
                fmt::format("is no multiple of the {} pages of {}",
                            region.backing == Backing::kHugetlbfs ? "2 MiB" : "4 KiB", backing_name(region.backing)));
  }
}

}  // namespace

bool read_split(Reader& reader, std::uint64_t& budget_bytes, std::vector<std::string>& sub_hosts) {
  const bool budget = reader.optional("resident_budget", budget_bytes, bytes(kResidentBudgetBytesMin, 16ULL << 40));
  reader.optional("sub_hosts", sub_hosts, list(text(name_rule), 0, 64));
  if (budget && budget_bytes % page_bytes(Backing::kTmpfs) != 0) {
    reader.fail("resident_budget", "is no multiple of 4 KiB");
  }
  const std::set<std::string> distinct(sub_hosts.begin(), sub_hosts.end());
  if (distinct.size() != sub_hosts.size()) {
    reader.fail("sub_hosts", "names a host twice");
  }
  return budget;
}

void read(Reader& reader, VmDefinition& definition) {
  reader.required("name", definition.name, text(name_rule));
  reader.required("uuid", definition.uuid, uuid());
  reader.required("machine", definition.machine, text(machine_rule));
  reader.optional("accel", definition.accel,
                  one_of<Accel>({{"auto", Accel::kAuto}, {"tcg", Accel::kTcg}, {"kvm", Accel::kKvm}}));
  reader.optional("cpu", definition.cpu, text(word_rule));
  reader.optional("vcpus", definition.vcpus, integer<std::uint32_t>(1, 1024));
  reader.optional("arguments", definition.arguments, list(text(argument_rule), 0, 1024));
  reader.optional("user", definition.user, text(word_rule));
  std::filesystem::path qemu_binary;
  if (reader.optional("qemu_binary", qemu_binary, absolute_path())) {
    definition.qemu_binary = qemu_binary.string();
  }
  reader.tables("region", 1, 64, [&](Reader& region) { read_region(region, definition.regions.emplace_back()); });
  const bool split = read_split(reader, definition.resident_budget_bytes, definition.sub_hosts);
  if (!split && !definition.sub_hosts.empty()) {
    reader.fail("sub_hosts", "is of no use without resident_budget");
  }
  std::set<std::string> names;
  for (const auto& region : definition.regions) {
    if (!region.name.empty() && !names.insert(region.name).second) {
      reader.fail("region", fmt::format("the name \"{}\" is there twice", region.name));
    }
  }
}

Loaded<VmDefinition> load_vm_definition(const std::filesystem::path& file) { return load_file<VmDefinition>(file); }

std::string_view backing_name(Backing backing) { return backing == Backing::kHugetlbfs ? "hugetlbfs" : "tmpfs"; }

std::string_view accel_name(Accel accel) {
  switch (accel) {
    case Accel::kTcg:
      return "tcg";
    case Accel::kKvm:
      return "kvm";
    case Accel::kAuto:
      break;
  }
  return "auto";
}

std::string expand(std::string_view argument, const std::map<std::string, std::string>& variables) {
  std::string out;
  while (true) {
    const auto start = argument.find("${");
    const auto end = start == std::string_view::npos ? start : argument.find('}', start);
    if (end == std::string_view::npos) {
      return out.append(argument);
    }
    out.append(argument.substr(0, start));
    const auto value = variables.find(std::string(argument.substr(start + 2, end - start - 2)));
    out.append(value != variables.end() ? std::string_view(value->second) : argument.substr(start, end + 1 - start));
    argument.remove_prefix(end + 1);
  }
}

}  // namespace godwit::config
