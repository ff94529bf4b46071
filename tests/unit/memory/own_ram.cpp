#include "tests/unit/memory/own_ram.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

namespace godwit::memory::test {

UniqueFd make_huge_tmpfs_file() {
  const UniqueFd context(fsopen("tmpfs", FSOPEN_CLOEXEC));
  if (!context.valid() || fsconfig(context.get(), FSCONFIG_SET_STRING, "huge", "always", 0) != 0 ||
      fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return {};
  }
  const UniqueFd mounted(fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
  return UniqueFd(openat(mounted.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
}

std::optional<OwnRam> OwnRam::map(UniqueFd file, std::uint64_t bytes) {
  // More than it takes, so that it begins at a huge page.
  void* const wide = mmap(nullptr, bytes + kHugePageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!file.valid() || ftruncate(file.get(), static_cast<off_t>(bytes)) != 0 || wide == MAP_FAILED) {
    return std::nullopt;
  }
  const std::uint64_t aligned =
      (reinterpret_cast<std::uint64_t>(wide) + kHugePageSize - 1) / kHugePageSize * kHugePageSize;
  void* const address =
      mmap(reinterpret_cast<void*>(aligned), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.get(), 0);
  return address == MAP_FAILED ? std::nullopt
                               : std::optional(OwnRam(std::move(file), bytes, static_cast<std::byte*>(address)));
}

std::optional<OwnRam> OwnRam::on_tmpfs(std::uint64_t bytes) {
  return map(UniqueFd(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)), bytes);
}

std::optional<OwnRam> OwnRam::on_huge_tmpfs(std::uint64_t bytes) {
  auto ram = map(make_huge_tmpfs_file(), bytes);
  if (!ram) {
    return std::nullopt;
  }
  std::memset(ram->data(), 7, bytes);
  std::ifstream maps("/proc/self/smaps_rollup");
  std::string huge;
  for (std::string line; std::getline(maps, line);) {
    huge = line.starts_with("ShmemPmdMapped:") ? line : huge;
  }
  return huge.find("    0 kB") != std::string::npos ? std::nullopt : std::move(ram);
}

OwnRam::~OwnRam() {
  if (address_ != nullptr) {
    munmap(address_, bytes_);
  }
}

std::vector<RegionFile> OwnRam::region_files() const {
  std::vector<RegionFile> files;
  files.push_back({.name = "ram0",
                   .bytes = bytes_,
                   .page_bytes = pages::kPageSize,
                   .qemu_address = reinterpret_cast<std::uint64_t>(address_),
                   .path = "",
                   .file = UniqueFd(fcntl(file_.get(), F_DUPFD_CLOEXEC, 0))});
  return files;
}

TrackerRequest OwnRam::tracker_request(const GuestRam& ram) const {
  TrackerRequest request;
  request.ram = &ram;
  request.userfaultfd.reset(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  request.pagemap.reset(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  return request;
}

}  // namespace godwit::memory::test
