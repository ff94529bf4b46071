// Parsing of /proc/PID/maps.

#include <sys/sysmacros.h>

#include <cinttypes>
#include <cstdio>

#include "qemu-bridge/attach/ram_discovery.h"

namespace godwit::bridge {
namespace {

/// "7f0000000000-7f0000100000 rw-s 00000000 00:1a 17   /dev/shm/ram": nothing if the line is not so.
std::optional<FileMapping> parse_line(const std::string& line) {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t offset = 0;
  std::uint64_t inode = 0;
  unsigned device_major = 0;
  unsigned device_minor = 0;
  char mode[5] = "";
  int path_at = 0;
  const int fields = std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &begin,
                                 &end, mode, &offset, &device_major, &device_minor, &inode, &path_at);
  if (fields != 7 || begin >= end || path_at == 0) {
    return std::nullopt;
  }
  return FileMapping{.address = begin,
                     .bytes = end - begin,
                     .file_offset = offset,
                     .device = makedev(device_major, device_minor),
                     .inode = inode,
                     .shared = mode[3] == 's',
                     .writable = mode[1] == 'w',
                     .path = line.substr(static_cast<std::size_t>(path_at))};
}

bool continues(const FileMapping& before, const FileMapping& next) {
  return before.address + before.bytes == next.address && before.file_offset + before.bytes == next.file_offset &&
         before.device == next.device && before.inode == next.inode && before.shared == next.shared &&
         before.writable == next.writable;
}

}  // namespace

std::optional<std::vector<FileMapping>> parse_maps(std::string_view text) {
  std::vector<FileMapping> mappings;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const auto line = parse_line(std::string(text.substr(0, end)));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (!line) {
      return std::nullopt;
    }
    if (line->inode == 0) {
      continue;  // anonymous, stack, vdso
    }
    if (!mappings.empty() && continues(mappings.back(), *line)) {
      mappings.back().bytes += line->bytes;
    } else {
      mappings.push_back(*line);
    }
  }
  return mappings;
}

}  // namespace godwit::bridge
