#include "qemu-bridge/attach/ram_discovery.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>

namespace godwit::bridge {
namespace {

constexpr std::uint32_t kSmallPage = 4096;
constexpr std::uint32_t kHugePage = 2U << 20;

std::unexpected<DiscoveryError> refuse(DiscoveryFailure failure, const MemoryBackend& backend,
                                       const std::string& text) {
  return std::unexpected(DiscoveryError{failure, "memory backend '" + backend.id + "': " + text});
}

/// The command line that would do, with this backend's own values in it.
std::string option_for(const MemoryBackend& backend) {
  const std::string path = backend.mem_path.empty() ? "/dev/shm/" + backend.id : backend.mem_path;
  return "-object memory-backend-file,id=" + backend.id + ",size=" + std::to_string(backend.bytes) +
         ",mem-path=" + path + ",share=on";
}

std::string proc(pid_t pid, const std::string& rest) { return "/proc/" + std::to_string(pid) + "/" + rest; }

std::expected<std::vector<FileMapping>, DiscoveryError> read_maps(pid_t pid) {
  std::ifstream file(proc(pid, "maps"));
  if (!file) {
    const bool gone = errno == ENOENT || errno == ESRCH;
    return std::unexpected(DiscoveryError{gone ? DiscoveryFailure::kProcessGone : DiscoveryFailure::kNotPermitted,
                                          proc(pid, "maps") + ": " + std::strerror(errno)});
  }
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (text.empty()) {
    return std::unexpected(
        DiscoveryError{DiscoveryFailure::kProcessGone, proc(pid, "maps") + " is empty: it has exited"});
  }
  auto mappings = parse_maps(text);
  if (!mappings) {
    return std::unexpected(DiscoveryError{DiscoveryFailure::kKernel, proc(pid, "maps") + " is not of the known form"});
  }
  return std::move(*mappings);
}

std::string without_deleted(const std::string& path) {
  constexpr std::string_view kDeleted = " (deleted)";
  return path.ends_with(kDeleted) ? path.substr(0, path.size() - kDeleted.size()) : path;
}

bool is_deleted(const FileMapping& mapping) { return without_deleted(mapping.path) != mapping.path; }

/// mem-path may name the file, or a directory (hugetlbfs) in which QEMU made and removed one.
bool path_fits(pid_t pid, const MemoryBackend& backend, const FileMapping& mapping) {
  if (backend.mem_path.empty()) {
    return true;
  }
  const std::string path = without_deleted(mapping.path);
  if (path == backend.mem_path || path.starts_with(backend.mem_path + "/")) {
    return true;
  }
  // Another name of the same file: symbolic link, relative path, mount namespace.
  const std::string base =
      backend.mem_path.starts_with('/') ? proc(pid, "root") + backend.mem_path : proc(pid, "cwd/") + backend.mem_path;
  struct stat status {};
  return stat(base.c_str(), &status) == 0 && S_ISREG(status.st_mode) && status.st_ino == mapping.inode;
}

struct OpenFile {
  UniqueFd file;
  struct stat status;
};

bool is_file_of(const FileMapping& mapping, const struct stat& status) {
  return S_ISREG(status.st_mode) && status.st_ino == mapping.inode && status.st_dev == mapping.device;
}

std::optional<OpenFile> open_if_same(const std::string& path, const FileMapping& mapping) {
  OpenFile opened{UniqueFd(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK)), {}};
  if (!opened.file.valid() || fstat(opened.file.get(), &opened.status) != 0 || !is_file_of(mapping, opened.status)) {
    return std::nullopt;
  }
  return opened;
}

/// By the mapping itself, by one of the process's descriptors, or by name: whatever is allowed, if it is the same file.
std::optional<OpenFile> open_mapped(pid_t pid, const FileMapping& mapping, std::uint64_t first_part_end) {
  char range[40];
  std::snprintf(range, sizeof range, "map_files/%llx-%llx", static_cast<unsigned long long>(mapping.address),
                static_cast<unsigned long long>(first_part_end));
  if (auto opened = open_if_same(proc(pid, range), mapping)) {
    return opened;
  }
  if (DIR* directory = opendir(proc(pid, "fd").c_str())) {
    std::optional<OpenFile> opened;
    while (const dirent* entry = opened ? nullptr : readdir(directory)) {
      const std::string path = proc(pid, "fd/") + entry->d_name;
      struct stat status {};
      // Only what is this file is opened: opening others could have effects.
      if (stat(path.c_str(), &status) == 0 && is_file_of(mapping, status)) {
        opened = open_if_same(path, mapping);
      }
    }
    closedir(directory);
    if (opened) {
      return opened;
    }
  }
  return open_if_same(proc(pid, "root") + mapping.path, mapping);
}

/// map_files has one entry for each line of maps: the end of the first line of a joined mapping.
std::uint64_t first_part_end(pid_t pid, const FileMapping& mapping) {
  std::ifstream file(proc(pid, "maps"));
  for (std::string line; std::getline(file, line);) {
    unsigned long long begin = 0;
    unsigned long long end = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx", &begin, &end) == 2 && begin == mapping.address) {
      return end;
    }
  }
  return mapping.address + mapping.bytes;
}

std::expected<std::uint32_t, DiscoveryError> page_size_of(const MemoryBackend& backend, const UniqueFd& file) {
  struct statfs system {};
  if (fstatfs(file.get(), &system) != 0) {
    return refuse(DiscoveryFailure::kKernel, backend, std::string("fstatfs of its file: ") + std::strerror(errno));
  }
  if (system.f_type == TMPFS_MAGIC) {
    return kSmallPage;
  }
  if (system.f_type != HUGETLBFS_MAGIC) {
    return refuse(DiscoveryFailure::kUnsupported, backend,
                  "its file is neither on tmpfs nor on hugetlbfs: put mem-path into /dev/shm or a hugetlbfs mount");
  }
  if (static_cast<std::uint64_t>(system.f_bsize) != kHugePage) {
    return refuse(DiscoveryFailure::kUnsupported, backend,
                  "its huge pages have " + std::to_string(system.f_bsize) + " bytes: use a hugetlbfs with pagesize=2M");
  }
  return kHugePage;
}

std::expected<RamRegion, DiscoveryError> open_region(pid_t pid, const MemoryBackend& backend,
                                                     const FileMapping& mapping) {
  auto opened = open_mapped(pid, mapping, first_part_end(pid, mapping));
  if (!opened) {
    return refuse(DiscoveryFailure::kNotPermitted, backend,
                  "its RAM file (" + mapping.path +
                      ") cannot be opened for writing: run the bridge with CAP_SYS_ADMIN "
                      "or CAP_CHECKPOINT_RESTORE, or as the owner of the file");
  }
  const auto page_bytes = page_size_of(backend, opened->file);
  if (!page_bytes) {
    return std::unexpected(page_bytes.error());
  }
  if (static_cast<std::uint64_t>(opened->status.st_size) != backend.bytes) {
    return refuse(DiscoveryFailure::kWrongSize, backend,
                  "its RAM file " + mapping.path + " has " + std::to_string(opened->status.st_size) +
                      " bytes, the backend " + std::to_string(backend.bytes) +
                      ": remove the file and start the VM anew");
  }
  if (backend.bytes % *page_bytes != 0 || mapping.address % *page_bytes != 0) {
    return refuse(DiscoveryFailure::kUnsupported, backend,
                  "size or address is no multiple of its page size " + std::to_string(*page_bytes));
  }
  const bool named = !is_deleted(mapping) && !mapping.path.starts_with("/memfd:");
  return RamRegion{.name = backend.id,
                   .bytes = backend.bytes,
                   .page_bytes = *page_bytes,
                   .qemu_address = mapping.address,
                   .path = named ? mapping.path : "",
                   .file = std::move(opened->file)};
}

/// Mappings that may be this backend's RAM.
std::vector<const FileMapping*> candidates(pid_t pid, const MemoryBackend& backend,
                                           const std::vector<FileMapping>& mappings) {
  std::vector<const FileMapping*> fitting;
  for (const FileMapping& mapping : mappings) {
    if (mapping.shared && mapping.writable && mapping.file_offset == 0 && mapping.bytes == backend.bytes &&
        path_fits(pid, backend, mapping)) {
      fitting.push_back(&mapping);
    }
  }
  return fitting;
}

std::expected<void, DiscoveryError> check_backend(const MemoryBackend& backend) {
  if (backend.bytes == 0 || backend.bytes % kSmallPage != 0) {
    return refuse(DiscoveryFailure::kWrongSize, backend,
                  std::to_string(backend.bytes) + " bytes are no multiple of 4096");
  }
  if (!backend.share) {
    return refuse(DiscoveryFailure::kNotShared, backend,
                  "its RAM is private (share=off); start the VM with " + option_for(backend));
  }
  return {};
}

}  // namespace

std::expected<std::vector<RamRegion>, DiscoveryError> discover_ram(pid_t pid, std::span<const MemoryBackend> backends) {
  // All refusals that need no look at the process come first.
  for (const MemoryBackend& backend : backends) {
    if (auto checked = check_backend(backend); !checked) {
      return std::unexpected(checked.error());
    }
  }
  if (backends.empty()) {
    return std::unexpected(DiscoveryError{DiscoveryFailure::kNotShared,
                                          "the VM has no memory backend; start it with -object "
                                          "memory-backend-file,id=ram0,size=SIZE,mem-path=/dev/shm/ram0,"
                                          "share=on -machine TYPE,memory-backend=ram0"});
  }
  const auto mappings = read_maps(pid);
  if (!mappings) {
    return std::unexpected(mappings.error());
  }
  std::vector<RamRegion> regions;
  std::set<std::uint64_t> taken;
  for (const MemoryBackend& backend : backends) {
    const auto fitting = candidates(pid, backend, *mappings);
    if (fitting.empty()) {
      return refuse(DiscoveryFailure::kNotFound, backend,
                    "no shared file of " + std::to_string(backend.bytes) +
                        " bytes is mapped by QEMU for it; start the VM with " + option_for(backend));
    }
    if (fitting.size() > 1) {
      return refuse(
          DiscoveryFailure::kAmbiguous, backend,
          "several shared files of its size are mapped; give every backend its own file: " + option_for(backend));
    }
    if (!taken.insert(fitting[0]->address).second) {
      return refuse(DiscoveryFailure::kAmbiguous, backend,
                    "its RAM file is that of another backend, too: give every backend its own mem-path");
    }
    auto region = open_region(pid, backend, *fitting[0]);
    if (!region) {
      return std::unexpected(region.error());
    }
    regions.push_back(std::move(*region));
  }
  return regions;
}

}  // namespace godwit::bridge
