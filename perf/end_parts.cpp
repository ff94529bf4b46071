#include "perf/end_parts.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/pages/page.h"

namespace godwit::perf {
namespace {
constexpr std::uint32_t kMemoryMb = 128;
}  // namespace

std::expected<EndParts, std::string> open_end_parts(int ram_file, std::uint64_t pages, const port::PortOptions& options,
                                                    const std::string& cpus) {
  std::vector<memory::RegionFile> files;
  files.push_back({.name = "ram0",
                   .bytes = pages * pages::kPageSize,
                   .page_bytes = pages::kPageSize,
                   .file = UniqueFd(::dup(ram_file))});
  auto ram = memory::GuestRam::open(std::move(files));
  if (!ram) return std::unexpected(ram.error().text);
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
  return EndParts{std::move(*ram), std::move(*environment), std::move(*port), std::move(*doorbell)};
}

}  // namespace godwit::perf
