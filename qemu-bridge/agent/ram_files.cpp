#include "qemu-bridge/agent/ram_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <system_error>

#include "base/atomic_file.h"

namespace godwit::bridge {
namespace {

constexpr std::uint64_t kHugePageBytes = 2u << 20;

/// "Name:   123 kB" of /proc/meminfo, in bytes; 0 when it is not there.
std::uint64_t meminfo_bytes(const std::string& text, std::string_view name) {
  const std::size_t at = text.find(std::string(name) + ":");
  if (at == std::string::npos) {
    return 0;
  }
  std::size_t digit = text.find_first_of("0123456789", at);
  std::uint64_t kibibytes = 0;
  if (digit != std::string::npos) {
    std::from_chars(text.data() + digit, text.data() + text.size(), kibibytes);
  }
  return kibibytes * 1024;
}

std::uint64_t number_in(const std::string& path) {
  const auto text = read_file(path, 64);
  std::uint64_t value = 0;
  if (text) {
    std::from_chars(text->data(), text->data() + text->size(), value);
  }
  return value;
}

std::uint64_t hugepages_free_bytes() {
  const std::string dir = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const std::uint64_t free = number_in(dir + "free_hugepages");
  const std::uint64_t promised = number_in(dir + "resv_hugepages");
  return (free - std::min(free, promised)) * kHugePageBytes;
}

std::string mebibytes(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

struct Need {
  std::uint64_t small_bytes = 0;
  std::uint64_t huge_bytes = 0;
};

Need need_of(const RoomQuestion& question) {
  const auto& [definition, paths, budget_bytes, promised_bytes] = question;
  Need need;
  for (const auto& region : definition.regions) {
    struct stat old {};
    const bool exists = ::stat(ram_path(paths, definition.uuid, region).c_str(), &old) == 0;
    const std::uint64_t present =
        exists && old.st_blocks > 0 ? std::min(region.bytes, static_cast<std::uint64_t>(old.st_blocks) * 512) : 0;
    (region.backing == config::Backing::kHugetlbfs ? need.huge_bytes : need.small_bytes) += region.bytes - present;
  }
  if (budget_bytes > 0) {
    need.small_bytes = std::min(need.small_bytes, budget_bytes);
  }
  return need;
}

std::unexpected<std::string> failed(const std::string& what, const std::filesystem::path& path) {
  return std::unexpected(what + " " + path.string() + ": " + std::strerror(errno));
}

}  // namespace

HostMemory host_memory(const HostPaths& paths, std::uint64_t promised_bytes) {
  HostMemory memory;
  const std::string meminfo = read_file("/proc/meminfo").value_or("");
  memory.total_bytes = meminfo_bytes(meminfo, "MemTotal");
  memory.free_bytes = meminfo_bytes(meminfo, "MemAvailable");
  struct statvfs files {};
  // A tmpfs without a limit says 0 blocks.
  if (::statvfs(paths.memory_dir_tmpfs.c_str(), &files) == 0 && files.f_blocks > 0) {
    memory.total_bytes = std::min(memory.total_bytes, std::uint64_t{files.f_blocks} * files.f_frsize);
    memory.free_bytes = std::min(memory.free_bytes, std::uint64_t{files.f_bavail} * files.f_frsize);
  }
  memory.free_bytes -= std::min(memory.free_bytes, promised_bytes);
  memory.hugepages_free_bytes = paths.memory_dir_hugetlbfs.empty() ? 0 : hugepages_free_bytes();
  return memory;
}

std::uint64_t bytes_short(const RoomQuestion& question) {
  const Need need = need_of(question);
  const HostMemory memory = host_memory(question.paths, question.promised_bytes);
  return need.small_bytes - std::min(need.small_bytes, memory.free_bytes) + need.huge_bytes -
         std::min(need.huge_bytes, memory.hugepages_free_bytes);
}

std::expected<void, std::string> check_room(const RoomQuestion& question) {
  const auto& [definition, paths, budget_bytes, promised_bytes] = question;
  for (const auto& region : definition.regions) {
    if (region.backing == config::Backing::kHugetlbfs && paths.memory_dir_hugetlbfs.empty()) {
      return std::unexpected("region '" + region.name + "' is on hugetlbfs, and this host has none: set " +
                             "memory_dir_hugetlbfs in bridge.toml");
    }
  }
  const Need need = need_of(question);
  const HostMemory memory = host_memory(paths, promised_bytes);
  if (need.small_bytes > memory.free_bytes) {
    return std::unexpected("too little memory: the guest needs " + mebibytes(need.small_bytes) + " more in " +
                           paths.memory_dir_tmpfs.string() + ", " + mebibytes(memory.free_bytes) + " are free");
  }
  if (need.huge_bytes > memory.hugepages_free_bytes) {
    return std::unexpected("too few huge pages: the guest needs " + std::to_string(need.huge_bytes / kHugePageBytes) +
                           " more of 2 MiB, " + std::to_string(memory.hugepages_free_bytes / kHugePageBytes) +
                           " are free: raise vm.nr_hugepages");
  }
  return {};
}

std::expected<void, std::string> make_ram_files(const config::VmDefinition& definition, const HostPaths& paths,
                                                const std::optional<UserIds>& user, OldFiles old_files) {
  for (const auto& region : definition.regions) {
    const auto path = ram_path(paths, definition.uuid, region);
    std::error_code error;
    std::filesystem::create_directories(path.parent_path(), error);
    struct stat old {};
    const bool usable = old_files == OldFiles::kKeep && ::lstat(path.c_str(), &old) == 0 && S_ISREG(old.st_mode) &&
                        static_cast<std::uint64_t>(old.st_size) == region.bytes;
    if (!usable && ::unlink(path.c_str()) != 0 && errno != ENOENT) {
      return failed("cannot remove old RAM file", path);
    }
    const UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file.valid() || ::ftruncate(file.get(), static_cast<off_t>(region.bytes)) != 0 ||
        ::fchown(file.get(), user ? user->uid : ::geteuid(), user ? user->gid : ::getegid()) != 0) {
      return failed("cannot make RAM file", path);
    }
  }
  return {};
}

void remove_ram_files(const config::VmDefinition& definition, const HostPaths& paths) {
  for (const auto& region : definition.regions) {
    ::unlink(ram_path(paths, definition.uuid, region).c_str());
  }
}

std::expected<void, std::string> make_run_dir(const HostPaths& paths, const std::optional<UserIds>& user) {
  std::error_code error;
  std::filesystem::create_directories(paths.run_dir, error);
  if (error || ::chmod(paths.run_dir.c_str(), 0700) != 0 ||
      ::chown(paths.run_dir.c_str(), user ? user->uid : ::geteuid(), user ? user->gid : ::getegid()) != 0) {
    if (error) {
      errno = error.value();
    }
    return failed("cannot make run directory", paths.run_dir);
  }
  ::unlink(paths.qmp_socket().c_str());
  return {};
}

}  // namespace godwit::bridge
