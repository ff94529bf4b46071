#include "qemu-bridge/agent/qemu_inspection.h"

#include <algorithm>
#include <array>

namespace godwit::bridge {
namespace {

constexpr const char* kNilUuid = "00000000-0000-0000-0000-000000000000";

std::unexpected<Refusal> refuse(RefusalCode code, std::string text) {
  return std::unexpected(Refusal{code, std::move(text)});
}

std::unexpected<Refusal> refuse(const QmpError& error) { return refuse(RefusalCode::kQmp, error.text); }

struct DeviceRule {
  std::string_view part;  // of the QOM type
  std::string_view reason;
};

constexpr std::array kDeviceRules{
    DeviceRule{"vhost-user",
               "is vhost-user: another process writes guest RAM unseen; use the virtio device of QEMU "
               "itself (e.g. virtio-blk-pci, virtio-net-pci with -netdev tap)"},
    DeviceRule{"vhost-vdpa", "is vDPA: hardware writes guest RAM unseen; use virtio-net-pci with -netdev tap"},
    DeviceRule{"vfio-", "is VFIO pass-through: hardware writes guest RAM unseen; use a virtio device instead"},
    DeviceRule{"x-pci-proxy-dev", "runs in another process, which writes guest RAM unseen; use QEMU's own device"},
    DeviceRule{"ivshmem", "shares memory with other processes; remove this -device"},
    DeviceRule{"virtio-mem", "plugs guest RAM in and out; use -device pc-dimm with a memory-backend-file instead"},
    DeviceRule{"virtio-pmem", "has memory of its own beside guest RAM; use -device nvdimm or a disk instead"},
};

std::string backend_advice(const std::string& id) {
  return "add -object memory-backend-file,id=" + id +
         ",size=SIZE,mem-path=/dev/shm/FILE,share=on and memory-backend=" + id + " to -machine";
}

std::expected<std::string, QmpError> network_info(QmpClient& qmp) {
  // QMP has no list of netdev backends in QEMU 7.2; the monitor's own command has.
  auto text = qmp.execute("human-monitor-command", {{"command-line", "info network"}});
  if (!text) {
    return std::unexpected(text.error());
  }
  return text->is_string() ? text->get<std::string>() : std::string();
}

std::expected<std::vector<QomDevice>, Refusal> checked_devices(QmpClient& qmp) {
  auto devices = list_devices(qmp);
  if (!devices) {
    return refuse(devices.error());
  }
  auto network = network_info(qmp);
  if (!network) {
    return refuse(network.error());
  }
  if (auto checked = check_devices(*devices, *network); !checked) {
    return std::unexpected(checked.error());
  }
  return std::move(*devices);
}

bool is_balloon(const QomDevice& device) { return device.type.find("virtio-balloon") != std::string::npos; }

std::expected<std::string, Refusal> find_direct_io_node(QmpClient& qmp) {
  auto nodes = qmp.execute("query-named-block-nodes", Json{{"flat", true}});
  if (!nodes) {
    return refuse(nodes.error());
  }
  if (!nodes->is_array()) {
    return refuse(RefusalCode::kQmp, "query-named-block-nodes: QEMU's reply is no list");
  }
  for (const auto& node : *nodes) {
    const auto cache = node.is_object() ? node.find("cache") : node.end();
    if (node.is_object() && cache != node.end() && cache->is_object() && json_bool(*cache, "direct").value_or(false)) {
      return json_string(node, "node-name").value_or("unnamed");
    }
  }
  return std::string();
}

std::expected<void, Refusal> check_blockers(QmpClient& qmp) {
  auto info = query_migrate(qmp);
  if (!info) {
    return refuse(info.error());
  }
  if (!info->blocked_reasons.empty()) {
    return refuse(RefusalCode::kBlocked, "QEMU cannot migrate this guest: " + info->blocked_reasons.front());
  }
  if (info->status == "active" || info->status == "setup" || info->status == "device" ||
      info->status == "pre-switchover" || info->status == "cancelling" || info->status.starts_with("postcopy")) {
    return refuse(RefusalCode::kState, "a migration that godwit did not start is under way in this QEMU (" +
                                           info->status + "): cancel it first");
  }
  return {};
}

}  // namespace

std::string direct_io_advice(const std::string& node) {
  return "block node '" + node +
         "' reads into guest RAM past its page tables (cache.direct=on): set cache.direct=off, or attach the VM with "
         "tracker hashes";
}

std::expected<void, Refusal> check_backends(const std::vector<MemdevInfo>& backends, std::uint64_t guest_bytes) {
  if (backends.empty()) {
    return refuse(RefusalCode::kBackend, "guest RAM has no memory backend: " + backend_advice("ram0"));
  }
  std::uint64_t total = 0;
  for (const auto& backend : backends) {
    const std::string name = "RAM backend '" + backend.id + "'";
    if (backend.type != "memory-backend-file" && backend.type != "memory-backend-memfd") {
      return refuse(RefusalCode::kBackend, name + " (" + (backend.type.empty() ? "unnamed" : backend.type) +
                                               ") is no shared file: " + backend_advice("ram0"));
    }
    if (!backend.share) {
      return refuse(RefusalCode::kBackend,
                    name + " (" + backend.type + ") is not share=on: add share=on to its -object");
    }
    if (backend.bytes > UINT64_MAX - total) {
      return refuse(RefusalCode::kBackend, name + " has an impossible size");
    }
    total += backend.bytes;
  }
  if (total != guest_bytes) {
    return refuse(RefusalCode::kUncoveredMemory,
                  "the guest has " + std::to_string(guest_bytes) + " bytes of RAM, its memory backends " +
                      std::to_string(total) + ": give all RAM, and nothing else, a memory-backend-file with share=on");
  }
  return {};
}

std::expected<void, Refusal> check_devices(const std::vector<QomDevice>& devices, const std::string& network_info) {
  for (const auto& device : devices) {
    for (const auto& rule : kDeviceRules) {
      if (device.type.find(rule.part) != std::string::npos) {
        return refuse(RefusalCode::kDevice,
                      "device " + device.path + " (" + device.type + ") " + std::string(rule.reason));
      }
    }
  }
  for (const std::string_view type : {"type=vhost-user", "type=vhost-vdpa"}) {
    const std::size_t at = network_info.find(type);
    if (at != std::string::npos) {
      const std::size_t line = network_info.rfind('\n', at) + 1;  // npos + 1 is 0
      std::string name = network_info.substr(line, network_info.find(':', line) - line);
      while (name.starts_with(' ') || name.starts_with('\\')) {
        name.erase(0, 1);
      }
      return refuse(RefusalCode::kDevice, "network backend '" + name + "' (" + std::string(type.substr(5)) +
                                              ") writes guest RAM unseen: use -netdev tap, with vhost=on if wanted");
    }
  }
  return {};
}

std::expected<QemuFacts, Refusal> inspect_qemu(QmpClient& qmp) {
  QemuFacts facts;
  auto version = query_version(qmp);
  if (!version) {
    return refuse(version.error());
  }
  facts.version = *version;
  auto capabilities = query_migrate_capabilities(qmp);
  if (!capabilities) {
    return refuse(capabilities.error());
  }
  if (!capabilities->contains("x-ignore-shared")) {
    return refuse(RefusalCode::kNoIgnoreShared, "QEMU " + facts.version.text +
                                                    " has no migration capability x-ignore-shared: use QEMU 4.0 or "
                                                    "later");
  }
  auto memdevs = query_memdev(qmp);
  auto guest_bytes = query_base_memory_bytes(qmp);
  if (!memdevs || !guest_bytes) {
    return refuse(memdevs ? guest_bytes.error() : memdevs.error());
  }
  if (auto checked = check_backends(*memdevs, *guest_bytes); !checked) {
    return std::unexpected(checked.error());
  }
  for (const auto& memdev : *memdevs) {
    facts.backends.push_back({memdev.id, memdev.bytes, memdev.share, memdev.type, memdev.mem_path});
  }
  auto devices = checked_devices(qmp);
  if (!devices) {
    return std::unexpected(devices.error());
  }
  facts.has_balloon = std::ranges::any_of(*devices, is_balloon);
  auto direct = find_direct_io_node(qmp);
  if (!direct) {
    return std::unexpected(direct.error());
  }
  facts.direct_io_node = std::move(*direct);
  if (auto checked = check_blockers(qmp); !checked) {
    return std::unexpected(checked.error());
  }
  auto machine = query_machine_type(qmp);
  auto state = query_status(qmp);
  auto vcpus = query_cpu_count(qmp);
  auto uuid = query_uuid(qmp);
  for (const QmpError* error : {machine ? nullptr : &machine.error(), state ? nullptr : &state.error(),
                                vcpus ? nullptr : &vcpus.error(), uuid ? nullptr : &uuid.error()}) {
    if (error != nullptr) {
      return refuse(*error);
    }
  }
  if (auto kvm = qmp.execute("query-kvm")) {
    facts.kvm = json_bool(*kvm, "enabled").value_or(false);
  }
  facts.machine_type = *machine;
  facts.run_state = *state;
  facts.vcpus = *vcpus;
  facts.uuid = *uuid == kNilUuid ? "" : *uuid;
  return facts;
}

std::expected<void, Refusal> check_still_movable(QmpClient& qmp, const AttachedAs& attached) {
  auto state = query_status(qmp);
  if (!state) {
    return refuse(state.error());
  }
  if (*state != "running") {
    return refuse(RefusalCode::kState, "the guest is not running but '" + *state +
                                           "': only a running guest is migrated; resume it (QMP cont) first");
  }
  auto memdevs = query_memdev(qmp);
  auto guest_bytes = query_base_memory_bytes(qmp);
  if (!memdevs || !guest_bytes) {
    return refuse(memdevs ? guest_bytes.error() : memdevs.error());
  }
  if (auto checked = check_backends(*memdevs, *guest_bytes); !checked) {
    return checked;
  }
  auto devices = checked_devices(qmp);
  if (!devices) {
    return std::unexpected(devices.error());
  }
  if (!attached.has_balloon && std::ranges::any_of(*devices, is_balloon)) {
    return refuse(RefusalCode::kDevice,
                  "a balloon was plugged in after this guest was attached, so memory that it gave back is not known: "
                  "unplug it, or start the VM with it");
  }
  auto direct = find_direct_io_node(qmp);
  if (!direct) {
    return std::unexpected(direct.error());
  }
  if (!direct->empty() && !attached.by_hashes) {
    return refuse(RefusalCode::kDevice, direct_io_advice(*direct));
  }
  return check_blockers(qmp);
}

std::expected<void, Refusal> compare_with_definition(const QemuFacts& facts, const config::VmDefinition& definition,
                                                     const std::vector<MachineType>& machines) {
  std::string wanted = definition.machine.substr(0, definition.machine.find(','));
  if (wanted.starts_with("type=")) {
    wanted.erase(0, 5);
  }
  const auto alias = std::ranges::find(machines, wanted, &MachineType::alias);
  if (alias != machines.end() && !wanted.empty()) {
    wanted = alias->name;
  }
  if (wanted != facts.machine_type) {
    return refuse(RefusalCode::kMismatch, "this QEMU's machine type is " + facts.machine_type +
                                              ", the definition's is " + wanted + ": set machine = \"" +
                                              facts.machine_type + "\" in the definition");
  }
  if (!facts.uuid.empty() && facts.uuid != definition.uuid.text()) {
    return refuse(RefusalCode::kMismatch,
                  "this QEMU's uuid is " + facts.uuid + ", the definition's is " + definition.uuid.text());
  }
  if (facts.vcpus != definition.vcpus) {
    return refuse(RefusalCode::kMismatch, "this QEMU has " + std::to_string(facts.vcpus) +
                                              " vCPUs, the definition says " + std::to_string(definition.vcpus));
  }
  if (facts.backends.size() != definition.regions.size()) {
    return refuse(RefusalCode::kMismatch, "this QEMU has " + std::to_string(facts.backends.size()) +
                                              " RAM backends, the definition " +
                                              std::to_string(definition.regions.size()) + " regions");
  }
  for (const auto& region : definition.regions) {
    const auto backend = std::ranges::find(facts.backends, region.name, &MemoryBackend::id);
    if (backend == facts.backends.end() || backend->bytes != region.bytes) {
      return refuse(RefusalCode::kMismatch,
                    "region '" + region.name + "' of " + std::to_string(region.bytes) + " bytes of the definition is " +
                        (backend == facts.backends.end() ? std::string("no RAM backend of this QEMU")
                                                         : "of " + std::to_string(backend->bytes) + " bytes there"));
    }
  }
  return {};
}

std::expected<void, QmpError> set_migration_capabilities(QmpClient& qmp) {
  auto present = query_migrate_capabilities(qmp);
  if (!present) {
    return std::unexpected(present.error());
  }
  std::map<std::string, bool> change;
  for (const char* off : {"xbzrle", "compress", "multifd", "postcopy-ram", "x-colo", "block", "return-path",
                          "dirty-bitmaps", "auto-converge", "background-snapshot", "pause-before-switchover",
                          "zero-copy-send", "late-block-activate", "release-ram", "rdma-pin-all", "validate-uuid"}) {
    if (const auto found = present->find(off); found != present->end() && found->second) {
      change[off] = false;
    }
  }
  for (const char* on : {"events", "x-ignore-shared"}) {
    if (const auto found = present->find(on); found == present->end() || !found->second) {
      change[on] = true;
    }
  }
  return change.empty() ? std::expected<void, QmpError>{} : migrate_set_capabilities(qmp, change);
}

}  // namespace godwit::bridge
