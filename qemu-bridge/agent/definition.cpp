#include "qemu-bridge/agent/definition.h"

#include <algorithm>
#include <set>

#include "base/log.h"

namespace godwit::bridge {
namespace {

constexpr std::size_t kNameLengthMax = 64;
constexpr std::size_t kRegionsMax = 32;  // as the data plane takes
constexpr std::size_t kArgumentsMax = 1000;
constexpr std::size_t kArgumentLengthMax = 4096;
constexpr std::uint32_t kVcpusMax = 4096;
constexpr std::uint64_t kRegionBytesMax = std::uint64_t{1} << 46;

bool is_name(std::string_view text, std::string_view extra) {
  const auto fits = [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || extra.contains(c);
  };
  return !text.empty() && text.size() <= kNameLengthMax && std::ranges::all_of(text, fits);
}

std::unexpected<std::string> bad(const std::string& field, std::string_view value, const std::string& need) {
  return std::unexpected("VM definition: " + field + " '" + printable(value, 80) + "' " + need);
}

bool is_text(std::string_view text) {
  return text.size() <= kArgumentLengthMax && std::ranges::none_of(text, [](char c) { return c == '\0' || c == '\n'; });
}

std::expected<config::RegionDefinition, std::string> region_of(const controlplane::v1::VmDefinition::Region& proto) {
  config::RegionDefinition region{proto.name(), proto.bytes(), config::Backing::kTmpfs};
  // A comma or '=' in it would add options to -object.
  if (!is_name(proto.name(), "._-") || !std::isalpha(static_cast<unsigned char>(proto.name()[0]))) {
    return bad("region name", proto.name(), "is not a letter and then letters, digits, '.', '_' or '-'");
  }
  if (proto.backing() == "hugetlbfs") {
    region.backing = config::Backing::kHugetlbfs;
  } else if (proto.backing() != "tmpfs" && !proto.backing().empty()) {
    return bad("backing of region " + proto.name(), proto.backing(), "is neither tmpfs nor hugetlbfs");
  }
  const std::uint64_t unit = region.backing == config::Backing::kHugetlbfs ? 2u << 20 : 4096;
  if (proto.bytes() == 0 || proto.bytes() % unit != 0 || proto.bytes() > kRegionBytesMax) {
    return bad("size of region " + proto.name(), std::to_string(proto.bytes()),
               "is not a multiple of its page size (" + std::to_string(unit) + ") between one page and 64 TiB");
  }
  return region;
}

}  // namespace

std::expected<config::VmDefinition, std::string> definition_of(const controlplane::v1::VmDefinition& proto) {
  config::VmDefinition definition;
  definition.name = proto.name();
  if (!is_name(definition.name, "._-") || definition.name[0] == '.') {
    return bad("name", definition.name, "is not 1 to 64 letters, digits, '.', '_' or '-'");
  }
  const auto uuid = Id128::from_bytes(proto.uuid());
  if (!uuid || uuid->is_nil()) {
    return bad("uuid", "of " + std::to_string(proto.uuid().size()) + " bytes", "is not 16 bytes other than all zero");
  }
  definition.uuid = *uuid;
  definition.machine = proto.machine();
  if (definition.machine.empty() || !is_text(definition.machine) ||
      definition.machine.find("memory-backend") != std::string::npos) {
    return bad("machine", definition.machine, "is empty or names a memory-backend (the regions do that)");
  }
  if (proto.accel() == "tcg") {
    definition.accel = config::Accel::kTcg;
  } else if (proto.accel() == "kvm") {
    definition.accel = config::Accel::kKvm;
  } else if (proto.accel() != "auto" && !proto.accel().empty()) {
    return bad("accel", proto.accel(), "is none of auto, tcg, kvm");
  }
  definition.vcpus = proto.vcpus() == 0 ? 1 : proto.vcpus();
  if (definition.vcpus > kVcpusMax) {
    return bad("vcpus", std::to_string(definition.vcpus), "is over " + std::to_string(kVcpusMax));
  }
  definition.cpu = proto.cpu();
  definition.user = proto.user();
  definition.qemu_binary = proto.qemu_binary();
  if (!is_text(definition.cpu) || (!definition.user.empty() && !is_name(definition.user, "._-")) ||
      !is_text(definition.qemu_binary) || (!definition.qemu_binary.empty() && definition.qemu_binary[0] != '/')) {
    return bad("cpu, user or qemu_binary", definition.qemu_binary, "is no such thing (qemu_binary: an absolute path)");
  }
  if (proto.regions().empty() || static_cast<std::size_t>(proto.regions_size()) > kRegionsMax) {
    return bad("number of regions", std::to_string(proto.regions_size()), "is not 1 to 32");
  }
  std::set<std::string> names;
  for (const auto& region : proto.regions()) {
    auto checked = region_of(region);
    if (!checked) {
      return std::unexpected(checked.error());
    }
    if (!names.insert(checked->name).second) {
      return bad("region name", checked->name, "occurs twice");
    }
    definition.regions.push_back(std::move(*checked));
  }
  definition.resident_budget_bytes = proto.resident_budget_bytes();
  for (const auto& host : proto.sub_hosts()) {
    if (!is_name(host, "._-")) {
      return bad("sub host", host, "is not 1 to 64 letters, digits, '.', '_' or '-'");
    }
    definition.sub_hosts.push_back(host);
  }
  if (static_cast<std::size_t>(proto.arguments_size()) > kArgumentsMax) {
    return bad("number of arguments", std::to_string(proto.arguments_size()), "is over 1000");
  }
  for (const auto& argument : proto.arguments()) {
    if (!is_text(argument)) {
      return bad("argument", argument, "has a line break or is over 4096 bytes");
    }
    definition.arguments.push_back(argument);
  }
  return definition;
}

controlplane::v1::VmDefinition to_proto(const config::VmDefinition& definition) {
  controlplane::v1::VmDefinition proto;
  proto.set_name(definition.name);
  proto.set_uuid(definition.uuid.to_bytes());
  proto.set_machine(definition.machine);
  proto.set_accel(std::string(config::accel_name(definition.accel)));
  proto.set_cpu(definition.cpu);
  proto.set_vcpus(definition.vcpus);
  for (const auto& region : definition.regions) {
    auto* out = proto.add_regions();
    out->set_name(region.name);
    out->set_bytes(region.bytes);
    out->set_backing(std::string(config::backing_name(region.backing)));
  }
  for (const auto& argument : definition.arguments) {
    proto.add_arguments(argument);
  }
  proto.set_user(definition.user);
  proto.set_qemu_binary(definition.qemu_binary);
  proto.set_resident_budget_bytes(definition.resident_budget_bytes);
  for (const auto& host : definition.sub_hosts) {
    proto.add_sub_hosts(host);
  }
  return proto;
}

std::uint64_t bytes_total(const config::VmDefinition& definition) {
  std::uint64_t total = 0;
  for (const auto& region : definition.regions) {
    total += region.bytes;  // at most 32 x 64 TiB
  }
  return total;
}

}  // namespace godwit::bridge
