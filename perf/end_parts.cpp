#include "perf/end_parts.h"

#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/pages/page.h"

namespace godwit::perf {
namespace {
constexpr std::uint32_t kMemoryMb = 128;
constexpr unsigned kPrefixBits = 24;
}  // namespace

wire::IpAddress end_address(bool gives) {
  wire::IpAddress address;
  address.bytes = {10, 99, 0, static_cast<std::uint8_t>(gives ? 1 : 2)};
  return address;
}

port::NeighboursOptions end_neighbours(const port::Port& port, bool gives) {
  return {.mac = {port.mac()}, .addresses = {{end_address(gives), kPrefixBits}}};
}

daemon::FlowConfig end_flow_config(bool gives, std::uint32_t mtu, transport::Cipher cipher) {
  daemon::FlowConfig config;
  config.local_flow_id = kEndFlowId;
  config.peer_flow_id = kEndFlowId;
  config.local = end_address(gives);
  config.peer = {end_address(!gives), kEndUdpPort};
  config.mtu_bytes = mtu;
  config.cipher = cipher;
  config.figures = daemon::make_flow_figures(config.bulk_lanes);
  return config;
}

daemon::DataPathOptions end_data_path(const port::Port& port, bool gives) {
  return {.neighbours = end_neighbours(port, gives),
          .udp_port = kEndUdpPort,
          .wake = [] {},
          .on_sleeping = [](bool) {},
          .watch = {}};
}

port::PortOptions end_memif(const std::string& socket, bool gives, std::uint32_t mtu) {
  port::PortOptions options;
  options.driver = port::Driver::kMemif;
  options.socket = socket;
  options.memif_server = !gives;
  options.mtu = mtu;
  return options;
}

std::expected<memory::GuestRam, std::string> open_end_ram(int ram_file, std::uint64_t pages) {
  std::vector<memory::RegionFile> files;
  files.push_back({.name = "ram0",
                   .bytes = pages * pages::kPageSize,
                   .page_bytes = pages::kPageSize,
                   .file = UniqueFd(::dup(ram_file))});
  auto ram = memory::GuestRam::open(std::move(files));
  if (!ram) return std::unexpected(ram.error().text);
  return std::move(*ram);
}

std::expected<EndPort, std::string> open_end_port(const port::PortOptions& options, const std::string& cpus) {
  const auto device = port::device_arguments(options);
  if (!device) return std::unexpected(device.error().text);
  port::EnvironmentOptions environment_options;
  environment_options.hugepages = false;
  environment_options.memory_mb = kMemoryMb;
  environment_options.log_level = "error";  // memif warns of the multi-process channel that a trial has not
  environment_options.lcores = {{kEndLcore, cpus}};
  if (!device->empty()) environment_options.vdevs = {*device};
  auto environment = port::Environment::start(environment_options);
  if (!environment) return std::unexpected(environment.error().text);
  auto port = port::Port::open(options);
  if (!port) return std::unexpected(port.error().text);
  auto doorbell = port::Doorbell::open();
  if (!doorbell) return std::unexpected(doorbell.error().text);
  return EndPort{std::move(*environment), std::move(*port), std::move(*doorbell)};
}

void wait_for_memif_server(const std::atomic<bool>& ready, const std::atomic<bool>& stop) {
  while (!ready && !stop) {
    ::usleep(1000);
  }
}

std::unexpected<std::string> run_on_end_lcore(EndPort& end, const std::function<void()>& run,
                                              const std::string& error) {
  end.environment.launch(kEndLcore, run);
  end.environment.wait(kEndLcore);
  if (!error.empty()) {
    return std::unexpected(error);
  }
  leave_port_open();
}

void tell_error(const std::string& text, EndError& out) {
  std::copy_n(text.data(), std::min(text.size(), out.size() - 1), out.data());
}

std::expected<void, std::string> wait_for_ends(Children& ends, Duration longest, std::span<const EndError> errors) {
  auto ended = ends.wait(longest);
  for (const EndError& error : errors) {
    if (error[0] != '\0') return std::unexpected(std::string(error.data()));
  }
  return ended;
}

}  // namespace godwit::perf
