#pragma once
// Finds the RAM of a running QEMU: for every memory backend its file, address and page size, from what QMP tells and
// what /proc/PID shows. Refuses whatever cannot be migrated, naming the option to add.
//
// Stateless; any thread. Hostile input: sizes and names come from QMP, maps from /proc; nothing is believed that the
// opened file does not confirm (device, inode, size, file system). Units: bytes.

#include <sys/types.h>

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"

namespace godwit::bridge {

/// One entry of query-memdev, with what else QMP knows of the object.
struct MemoryBackend {
  std::string id;  // QOM id, e.g. "ram0"
  std::uint64_t bytes = 0;
  bool share = false;
  std::string type;      // "memory-backend-file", "-memfd", "-ram" or "" when unknown: only for texts
  std::string mem_path;  // qom-get mem-path, "" when there is none
};

struct RamRegion {
  std::string name;
  std::uint64_t bytes = 0;
  std::uint32_t page_bytes = 0;  // 4096 or 2 MiB
  std::uint64_t qemu_address = 0;
  std::string path;  // "" for a memfd or a deleted file: it cannot be retained
  UniqueFd file;     // open for reading and writing
};

enum class DiscoveryFailure : std::uint8_t {
  kProcessGone,
  kNotShared,    // share=off: text has the option to add
  kNotFound,     // no mapping fits this backend
  kAmbiguous,    // several fit: give each its own mem-path
  kUnsupported,  // file system, page size or a mapping in pieces
  kWrongSize,    // the file is not as large as the backend
  kNotPermitted,
  kKernel,
};

struct DiscoveryError {
  DiscoveryFailure failure = DiscoveryFailure::kKernel;
  std::string text;  // one line: backend, what is wrong, what to do
};

/// The regions in the order of `backends`, each with its file opened.
std::expected<std::vector<RamRegion>, DiscoveryError> discover_ram(pid_t pid, std::span<const MemoryBackend> backends);

/// A stretch of one file mapped contiguously, as several lines of maps may make it up.
struct FileMapping {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  std::uint64_t file_offset = 0;
  std::uint64_t device = 0;  // as st_dev
  std::uint64_t inode = 0;
  bool shared = false;
  bool writable = false;
  std::string path;
};

/// Parses the text of /proc/PID/maps; lines that are not file mappings are left out, neighbours that continue each
/// other are joined. nullopt: a line is not of the form that the kernel writes.
std::optional<std::vector<FileMapping>> parse_maps(std::string_view text);

}  // namespace godwit::bridge
