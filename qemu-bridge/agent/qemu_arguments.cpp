#include "qemu-bridge/agent/qemu_arguments.h"

#include "base/check.h"
#include "qemu-bridge/agent/definition.h"

namespace godwit::bridge {
namespace {

/// In QEMU's option syntax a comma inside a value is written twice.
std::string escaped(const std::string& value) {
  std::string out;
  for (const char c : value) {
    out += c;
    if (c == ',') {
      out += ',';
    }
  }
  return out;
}

std::string size_of(std::uint64_t bytes) { return std::to_string(bytes / 1024) + "K"; }

}  // namespace

HostPaths host_paths(const config::BridgeConfig& config, const Id128& uuid) {
  return {config.run_dir / "vms" / uuid.text(),
          config.memory_dir_tmpfs,
          config.memory_dir_hugetlbfs,
          config.qemu_binary,
          {}};
}

std::filesystem::path ram_path(const HostPaths& paths, const Id128& uuid, const config::RegionDefinition& region) {
  if (const auto elsewhere = paths.ram_files.find(region.name); elsewhere != paths.ram_files.end()) {
    return elsewhere->second;
  }
  const auto& dir = region.backing == config::Backing::kHugetlbfs ? paths.memory_dir_hugetlbfs : paths.memory_dir_tmpfs;
  return dir / (uuid.text() + "." + region.name + ".ram");
}

std::string qmp_argument(const HostPaths& paths) {
  return "unix:" + escaped(paths.qmp_socket()) + ",server=on,wait=off";
}

std::string machine_of_type(const std::string& machine, const std::string& type) {
  if (type.empty()) {
    return machine;
  }
  const std::size_t comma = machine.find(',');
  return comma == std::string::npos ? type : type + machine.substr(comma);
}

std::vector<std::string> qemu_arguments(const config::VmDefinition& definition, const HostPaths& paths,
                                        const std::string& machine, config::Accel accel, StartKind kind) {
  GW_ASSERT(accel != config::Accel::kAuto);
  const bool one_region = definition.regions.size() == 1;
  std::vector<std::string> argv{
      definition.qemu_binary.empty() ? paths.qemu_binary.string() : definition.qemu_binary,
      "-name",
      "guest=" + definition.name + ",debug-threads=on",
      "-uuid",
      definition.uuid.text(),
      "-machine",
      machine + (one_region ? ",memory-backend=" + definition.regions.front().name : std::string()),
      "-accel",
      accel == config::Accel::kKvm ? "kvm" : "tcg",
      "-smp",
      std::to_string(definition.vcpus),
      "-m",
      "size=" + size_of(bytes_total(definition)),
  };
  if (!definition.cpu.empty()) {
    argv.insert(argv.end(), {"-cpu", definition.cpu});
  }
  for (std::size_t i = 0; i < definition.regions.size(); ++i) {
    const auto& region = definition.regions[i];
    argv.insert(argv.end(),
                {"-object", "memory-backend-file,id=" + region.name + ",size=" + size_of(region.bytes) +
                                ",mem-path=" + escaped(ram_path(paths, definition.uuid, region)) + ",share=on"});
    if (!one_region) {
      argv.insert(argv.end(), {"-numa", "node,nodeid=" + std::to_string(i) + ",memdev=" + region.name});
    }
  }
  argv.insert(argv.end(), {"-display", "none", "-qmp", qmp_argument(paths)});
  const std::map<std::string, std::string> variables{
      {"run_dir", paths.run_dir.string()}, {"name", definition.name}, {"uuid", definition.uuid.text()}};
  for (const auto& argument : definition.arguments) {
    argv.push_back(config::expand(argument, variables));
  }
  if (kind == StartKind::kIncoming) {
    argv.insert(argv.end(), {"-incoming", "defer", "-S"});
  }
  return argv;
}

}  // namespace godwit::bridge
