#include "config/dataplane_config.h"

#include <algorithm>

#include "config/parsers.h"

namespace godwit::config {

namespace {

constexpr std::uint64_t kMiB = 1ULL << 20;
constexpr std::uint32_t kLcoreMax = 126;  // 127 is the control thread's

bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

/// "0000:01:00.0" by pattern, where 'x' is any hex digit.
bool matches(std::string_view text, std::string_view pattern) {
  return std::ranges::equal(text, pattern, [](char c, char p) { return p == 'x' ? is_hex(c) : c == p; });
}

bool is_pci_address(std::string_view device) {
  return device.size() == 12 && matches(device.substr(0, 11), "xxxx:xx:xx.") && device[11] >= '0' && device[11] <= '7';
}

std::string device_rule(std::string_view device) {
  if (matches(device, "xx:xx.x")) {
    return fmt::format("is \"{0}\", must name the PCI domain too: \"0000:{0}\"", device);
  }
  if (device.empty() || device.find(' ') != std::string_view::npos) {
    return fmt::format("is \"{}\", must be a PCI address, \"net_af_packet\", \"net_memif\" or other DPDK devargs",
                       device);
  }
  return {};
}

DeviceKind kind_of(std::string_view device) {
  if (is_pci_address(device)) {
    return DeviceKind::kPci;
  }
  if (device == "net_af_packet") {
    return DeviceKind::kAfPacket;
  }
  return device == "net_memif" ? DeviceKind::kMemif : DeviceKind::kOther;
}

std::string interface_rule(std::string_view name) {
  if (name.empty() || name.size() > 15 || name == "." || name == ".." ||
      name.find_first_of("/: ,") != std::string_view::npos) {
    return fmt::format("is \"{}\", must be the name of a network interface as `ip link` shows it", name);
  }
  return {};
}

void check_device(Reader& reader, const PortConfig& port) {
  const auto belongs = [&](std::string_view key, bool needed, std::string_view device) {
    if (needed && !reader.given(key)) {
      reader.fail(key, fmt::format("is missing; device = \"{}\" needs it", device));
    } else if (!needed && reader.given(key)) {
      reader.fail(key, fmt::format("is only for device = \"{}\"", device));
    }
  };
  belongs("interface", port.kind == DeviceKind::kAfPacket, "net_af_packet");
  belongs("socket", port.kind == DeviceKind::kMemif, "net_memif");
  belongs("role", port.kind == DeviceKind::kMemif, "net_memif");
}

/// One address a family: a port answers ARP and neighbour solicitations for each.
void check_addresses(Reader& reader, const PortConfig& port) {
  for (const bool ipv6 : {false, true}) {
    const auto count =
        std::ranges::count_if(port.addresses, [ipv6](const IpPrefix& p) { return p.address.is_ipv6() == ipv6; });
    if (count > 1) {
      reader.fail("addresses",
                  fmt::format("has {} {} addresses, at most one is possible", count, ipv6 ? "IPv6" : "IPv4"));
    }
  }
}

void take_gateways(Reader& reader, const std::vector<IpAddress>& gateways, PortConfig& port) {
  for (const auto& gateway : gateways) {
    auto& slot = gateway.is_ipv6() ? port.gateway_ipv6 : port.gateway_ipv4;
    const auto subnet =
        std::ranges::find_if(port.addresses, [&](const IpPrefix& address) { return address.contains(gateway); });
    if (slot) {
      reader.fail("gateways", "has two gateways of one address family, at most one is possible");
    } else if (subnet == port.addresses.end()) {
      reader.fail("gateways", fmt::format("{} is in no subnet of this port's addresses", gateway.text()));
    } else if (subnet->address == gateway) {
      reader.fail("gateways", fmt::format("{} is this port's own address", gateway.text()));
    }
    slot = gateway;
  }
}

void read_port(Reader& reader, PortConfig& port) {
  if (reader.required("device", port.device, text(device_rule))) {
    port.kind = kind_of(port.device);
  }
  reader.optional("interface", port.interface, text(interface_rule));
  reader.optional("socket", port.socket, socket_path());
  reader.optional("role", port.role,
                  one_of<MemifRole>({{"server", MemifRole::kServer}, {"client", MemifRole::kClient}}));
  const bool addresses_good = reader.required("addresses", port.addresses, list(host_address(), 1, 8));
  std::vector<IpAddress> gateways;
  reader.optional("gateways", gateways, list(ip_address(), 0, 8));
  reader.optional("mtu", port.mtu_bytes, integer<std::uint32_t>(kMtuBytesMin, kMtuBytesMax));
  reader.optional("queues", port.queues, integer<std::uint16_t>(1, kLcoresMax));
  reader.optional("udp_port", port.udp_port, integer<std::uint16_t>(1, 65535));
  reader.optional("idle", port.idle, one_of<Idle>({{"adaptive", Idle::kAdaptive}, {"poll", Idle::kPoll}}));
  if (!port.device.empty()) {
    check_device(reader, port);
  }
  if (addresses_good) {
    check_addresses(reader, port);
    take_gateways(reader, gateways, port);
  }
}

Parser<EvictionOrder> eviction_order() {
  return one_of<EvictionOrder>(
      {{"coldest-first", EvictionOrder::kColdestFirst}, {"highest-first", EvictionOrder::kHighestFirst}});
}

/// One entry of [[eal.lcores]].
void read_lcore(Reader& reader, LcoreConfig& lcore) {
  reader.required("lcore", lcore.lcore, integer<std::uint32_t>(0, kLcoreMax));
  reader.required("cpus", lcore.cpus, cpu_list());
}

void read_eal(Reader& reader, EalConfig& eal) {
  reader.optional("hugepages", eal.hugepages, boolean());
  if (reader.optional("memory", eal.memory_bytes, bytes(64 * kMiB, 1ULL << 40)) && eal.memory_bytes % kMiB != 0) {
    reader.fail("memory", "is no whole number of MiB");
  }
  reader.tables("lcores", 0, kLcoresMax, [&](Reader& entry) { read_lcore(entry, eal.lcores.emplace_back()); });
  std::set<std::uint32_t> numbers;
  for (const auto& lcore : eal.lcores) {
    if (!numbers.insert(lcore.lcore).second) {
      reader.fail("lcores", fmt::format("has lcore {} twice", lcore.lcore));
    }
  }
}

void read_transport(Reader& reader, TransportConfig& transport) {
  reader.optional("credit_packets", transport.credit_packets, integer(kCreditPacketsMin, kCreditPacketsMax));
  reader.optional("peer_timeout", transport.peer_timeout, duration(milliseconds(100), milliseconds(600'000)));
  reader.optional("bulk_lanes", transport.bulk_lanes, integer<std::uint16_t>(1, kLcoresMax));
  reader.optional("base_rtt", transport.base_rtt, duration(microseconds(1), milliseconds(1000)));
  reader.optional("rtt_granularity", transport.rtt_granularity, duration(microseconds(1), milliseconds(1000)));
}

/// Every lcore has a queue and at least one bulk lane, or it would run for nothing.
void match_lcores(Reader& reader, DataplaneConfig& config) {
  const auto lcores = static_cast<std::uint16_t>(std::max<std::size_t>(config.eal.lcores.size(), 1));
  if (config.port.queues == 0) {
    config.port.queues = lcores;
  }
  if (config.transport.bulk_lanes == 0) {
    config.transport.bulk_lanes = lcores;
  }
  if (config.port.queues != lcores) {
    reader.fail("port", fmt::format("queues = {}, but there {} {} lcore{}: each lcore has one queue; leave queues out, "
                                    "or give as many [[eal.lcores]]",
                                    config.port.queues, lcores == 1 ? "is" : "are", lcores, lcores == 1 ? "" : "s"));
  }
  if (config.transport.bulk_lanes < lcores) {
    reader.fail("transport", fmt::format("bulk_lanes = {} leaves some of the {} lcores without a lane",
                                         config.transport.bulk_lanes, lcores));
  }
}

/// A PCI port without hugepages cannot do DMA safely; vdevs can.
void check_together(Reader& reader, const DataplaneConfig& config) {
  if (config.port.kind == DeviceKind::kPci && !config.eal.hugepages) {
    reader.fail("eal", fmt::format("hugepages = false is for vdevs only; {} needs hugepages", config.port.device));
  }
  std::set<std::filesystem::path> directories;
  for (const auto& directory : config.memory_dirs) {
    if (!directories.insert(directory).second) {
      reader.fail("memory_dirs", fmt::format("has {} twice", directory.string()));
    }
  }
}

}  // namespace

std::string LcoreConfig::cpus_text() const { return fmt::format("{}", fmt::join(cpus, ",")); }

void read(Reader& reader, DataplaneConfig& config) {
  reader.optional("control_socket", config.control_socket, socket_path());
  reader.optional("run_dir", config.run_dir, absolute_path());
  reader.required("memory_dirs", config.memory_dirs, list(absolute_path(), 1, 8));
  reader.optional("memory_budget", config.memory_budget_bytes, bytes(0, 1ULL << 50));
  reader.optional("allow_clear_text", config.allow_clear_text, boolean());
  read_log(reader, config.log);
  reader.table("eal", [&](Reader& eal) { read_eal(eal, config.eal); });
  reader.tables("port", 1, 1, [&](Reader& port) { read_port(port, config.port); });
  reader.table("transport", [&](Reader& transport) { read_transport(transport, config.transport); });
  read_tracking(reader, config.tracking);
  reader.table("eviction",
               [&](Reader& eviction) { eviction.optional("order", config.eviction.order, eviction_order()); });
  reader.table("telemetry", [&](Reader& telemetry) { telemetry.optional("dpdk", config.telemetry.dpdk, boolean()); });
  read_metrics(reader, config.metrics);
  match_lcores(reader, config);
  check_together(reader, config);
}

Loaded<DataplaneConfig> load_dataplane_config(const std::filesystem::path& file) {
  auto loaded = load_file<DataplaneConfig>(file);
  if (loaded) {
    loaded->file = file;
  }
  return loaded;
}

}  // namespace godwit::config
