#include "qemu-bridge/agent/host_info.h"

#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <optional>

#include "base/atomic_file.h"
#include "base/log.h"
#include "base/uuid.h"
#include "config/version.h"
#include "qemu-bridge/agent/ram_files.h"

namespace godwit::bridge {
std::string qemu_version_of(const std::filesystem::path& binary) {
  std::string quoted = "'";
  for (const char c : binary.string()) {
    quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  }
  const auto close = [](FILE* pipe) { ::pclose(pipe); };
  const std::unique_ptr<FILE, decltype(close)> pipe(::popen((quoted + "' --version 2>/dev/null").c_str(), "re"), close);
  std::array<char, 256> line{};
  if (!pipe || std::fgets(line.data(), line.size(), pipe.get()) == nullptr) {
    return {};
  }
  std::string text(line.data());
  while (!text.empty() && text.back() == '\n') {
    text.pop_back();
  }
  return printable(text);
}

controlplane::v1::HostInfo host_info(const config::BridgeConfig& config, const std::string& qemu_version,
                                     const std::optional<dataplane::v1::HelloResult>& hello,
                                     const std::optional<dataplane::v1::ListImagesResult>& images,
                                     const Lending& lending) {
  controlplane::v1::HostInfo info;
  info.set_name(config.host);
  HostMemory memory = host_memory(host_paths(config, Id128{}), lending.unfilled_bytes);
  if (images && images->budget_bytes() > 0) {
    memory.total_bytes = std::min<std::uint64_t>(memory.total_bytes, images->budget_bytes());
    const std::uint64_t left = images->budget_bytes() - std::min(images->budget_bytes(), images->used_bytes());
    memory.free_bytes = std::min<std::uint64_t>(memory.free_bytes, left);
    memory.hugepages_free_bytes = std::min<std::uint64_t>(memory.hugepages_free_bytes, left);
  }
  info.set_memory_total_bytes(memory.total_bytes);
  info.set_memory_free_bytes(memory.free_bytes);
  info.set_hugepages_free_bytes(memory.hugepages_free_bytes);
  info.set_memory_lend_bytes(config.lend_bytes);
  info.set_memory_lent_bytes(lending.lent_bytes);
  utsname system{};
  if (::uname(&system) == 0) {
    info.set_kernel(system.release);
  }
  info.set_qemu_version(qemu_version);
  std::string boot = read_file("/proc/sys/kernel/random/boot_id", 64).value_or("");
  while (!boot.empty() && boot.back() == '\n') {
    boot.pop_back();
  }
  if (const auto id = Id128::parse(boot)) {
    info.set_boot_id(id->to_bytes());
  }
  info.set_version(config::version());
  info.set_dataplane_up(hello.has_value());
  if (hello) {
    info.set_dataplane_address(hello->address());
    info.set_mtu_bytes(hello->mtu_bytes());
    *info.mutable_trackers() = hello->trackers();
    info.set_postcopy(hello->postcopy());
    info.set_postcopy_refusal(printable(hello->postcopy_refusal()));
  }
  return info;
}

}  // namespace godwit::bridge
