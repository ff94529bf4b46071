#include "dataplane/daemon/settings.h"

#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>

#include "base/atomic_file.h"
#include "dataplane/transport/credit.h"

namespace godwit::daemon {
namespace {

static_assert(config::kCreditPacketsMin == transport::kCreditPacketsInitial);
static_assert(config::kCreditPacketsMax == transport::kCreditPacketsMax);

wire::IpAddress to_wire(const IpAddress& address) {
  return {address.is_ipv6() ? wire::IpFamily::kV6 : wire::IpFamily::kV4, address.bytes()};
}

std::string cpu_list(const std::vector<std::uint32_t>& cpus) {
  std::string text;
  for (const std::uint32_t cpu : cpus) {
    text += (text.empty() ? "" : ",") + std::to_string(cpu);
  }
  return text;
}

port::Driver driver_of(config::DeviceKind kind) {
  switch (kind) {
    case config::DeviceKind::kPci:
      return port::Driver::kPci;
    case config::DeviceKind::kAfPacket:
      return port::Driver::kAfPacket;
    case config::DeviceKind::kMemif:
      return port::Driver::kMemif;
    case config::DeviceKind::kOther:
      break;
  }
  return port::Driver::kOther;
}

std::optional<memory::TrackerKind> tracker_of(config::Tracker tracker) {
  switch (tracker) {
    case config::Tracker::kAuto:
      return std::nullopt;
    case config::Tracker::kPagemapScan:
      return memory::TrackerKind::kPagemapScan;
    case config::Tracker::kWriteProtectEvents:
      return memory::TrackerKind::kWriteProtectEvents;
    case config::Tracker::kHashes:
      return memory::TrackerKind::kHashes;
  }
  return std::nullopt;
}

port::PortOptions port_options(const config::DataplaneConfig& config) {
  port::PortOptions options;
  options.driver = driver_of(config.port.kind);
  options.device = config.port.device;
  options.interface = config.port.interface;
  options.socket = config.port.socket.string();
  options.memif_server = config.port.role == config::MemifRole::kServer;
  options.udp_port = config.port.udp_port;
  options.mtu = config.port.mtu_bytes;
  options.queues = config.port.queues;
  // One migration in each direction, every lane's credit used up.
  options.in_flight_max = 2 * config.transport.credit_packets * (1U + config.transport.bulk_lanes);
  return options;
}

port::EnvironmentOptions environment_options(const config::DataplaneConfig& config, const port::PortOptions& port) {
  port::EnvironmentOptions options;
  options.hugepages = config.eal.hugepages;
  options.telemetry = config.telemetry.dpdk;
  options.memory_mb = static_cast<std::uint32_t>(config.eal.memory_mib());
  for (const config::LcoreConfig& lcore : config.eal.lcores) {
    options.lcores.push_back({lcore.lcore, cpu_list(lcore.cpus)});
  }
  if (options.lcores.empty()) {
    options.lcores.push_back({0, {}});
  }
  if (port.driver == port::Driver::kPci) {
    options.pci_addresses.push_back(port.device);
  } else if (const auto device = port::device_arguments(port); device && !device->empty()) {
    options.vdevs.push_back(*device);
  }  // else: opening the port says what is wrong
  return options;
}

bool is_hugetlbfs(const std::filesystem::path& directory) {
  struct statfs status {};
  return statfs(directory.c_str(), &status) == 0 && status.f_type == HUGETLBFS_MAGIC;
}

}  // namespace

Settings make_settings(const config::DataplaneConfig& config) {
  Settings settings;
  settings.port = port_options(config);
  settings.environment = environment_options(config, settings.port);
  for (const IpPrefix& prefix : config.port.addresses) {
    settings.neighbours.addresses.push_back({to_wire(prefix.address), prefix.length});
  }
  if (config.port.gateway_ipv4) {
    settings.neighbours.gateway_v4 = to_wire(*config.port.gateway_ipv4);
  }
  if (config.port.gateway_ipv6) {
    settings.neighbours.gateway_v6 = to_wire(*config.port.gateway_ipv6);
  }
  const auto ordinary = std::find_if_not(config.memory_dirs.begin(), config.memory_dirs.end(), is_hugetlbfs);
  settings.image_dir = (ordinary != config.memory_dirs.end() ? *ordinary : config.run_dir).string();
  ServiceOptions& service = settings.service;
  service.run_dir = config.run_dir.string();
  service.memory_dir = config.memory_dirs.front().string();
  service.missing_dir = settings.image_dir;
  service.address = config.port.addresses.front().address.text();
  service.udp_port = config.port.udp_port;
  service.mtu_bytes = config.port.mtu_bytes;
  service.bulk_lanes = config.transport.bulk_lanes;
  service.credit_packets = config.transport.credit_packets;
  service.peer_timeout = config.transport.peer_timeout;
  service.base_rtt = config.transport.base_rtt;
  service.rtt_granularity = config.transport.rtt_granularity;
  service.tracker = tracker_of(config.tracking.tracker);
  if (config.eviction.order == config::EvictionOrder::kHighestFirst) {
    service.eviction_order = memory::EvictionOrder::kHighestFirst;
  }
  service.allow_clear_text = config.allow_clear_text;
  service.config_file = config.file.string();
  service.addresses = settings.neighbours.addresses;
  // A host without a boot id (never seen) gets one for this run: its tracking files are then good for nothing later,
  // which is safe.
  const auto boot = read_file("/proc/sys/kernel/random/boot_id", 64);
  const auto boot_id = boot ? Id128::parse(std::string_view(*boot).substr(0, Id128::kTextLength)) : std::nullopt;
  service.host_boot_id = boot_id.value_or(Id128::random());
  service.daemon_boot_id = Id128::random();
  return settings;
}

port::IdleOptions idle_options(const config::DataplaneConfig& config, bool has_doorbell) {
  port::IdleOptions options;
  options.mode = config.port.idle == config::Idle::kPoll ? port::IdleMode::kPoll : port::IdleMode::kAdaptive;
  options.has_doorbell = has_doorbell;
  return options;
}

}  // namespace godwit::daemon
