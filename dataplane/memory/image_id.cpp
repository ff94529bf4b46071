// Names and identities of retained images: ids as text, the host's boot, RAM files.

#include <sys/stat.h>

#include <fstream>

#include "dataplane/memory/retained_image.h"

namespace godwit::memory {
namespace {

constexpr std::string_view kDigits = "0123456789abcdef";

bool dash_before(std::size_t byte) { return byte == 4 || byte == 6 || byte == 8 || byte == 10; }

}  // namespace

std::string to_string(const Id& id) {
  std::string text;
  for (std::size_t i = 0; i < id.size(); ++i) {
    if (dash_before(i)) {
      text += '-';
    }
    const auto value = std::to_integer<unsigned>(id[i]);
    text += kDigits[value >> 4];
    text += kDigits[value & 15];
  }
  return text;
}

std::optional<Id> parse_id(std::string_view text) {
  if (text.size() != 36) {
    return std::nullopt;
  }
  Id id{};
  std::size_t at = 0;
  for (std::size_t i = 0; i < id.size(); ++i) {
    if (dash_before(i) && text[at++] != '-') {
      return std::nullopt;
    }
    const std::size_t high = kDigits.find(text[at]);
    const std::size_t low = kDigits.find(text[at + 1]);
    if (high == std::string_view::npos || low == std::string_view::npos) {
      return std::nullopt;
    }
    id[i] = static_cast<std::byte>(high << 4 | low);
    at += 2;
  }
  return id;
}

std::expected<Id, Error> read_boot_id() {
  constexpr const char* kPath = "/proc/sys/kernel/random/boot_id";
  std::string text;
  std::ifstream(kPath) >> text;
  if (const auto id = parse_id(text)) {
    return *id;
  }
  return std::unexpected(Error{ErrorCode::kKernel, std::string(kPath) + " holds no boot id"});
}

std::expected<ImageRegion, Error> describe_ram_file(std::string name, std::uint64_t bytes, std::uint32_t page_bytes,
                                                    std::string path, int file) {
  struct stat status {};
  if (fstat(file, &status) != 0) {
    return std::unexpected(kernel_error("fstat", "RAM file of region '" + name + "'", errno));
  }
  return ImageRegion{.name = std::move(name),
                     .bytes = bytes,
                     .page_bytes = page_bytes,
                     .path = std::move(path),
                     .device = status.st_dev,
                     .inode = status.st_ino};
}

std::string_view name_of(Refusal refusal) {
  switch (refusal) {
    case Refusal::kMissing:
      return "missing";
    case Refusal::kInUse:
      return "in-use";
    case Refusal::kTruncated:
      return "truncated";
    case Refusal::kNotAnImage:
      return "not-an-image";
    case Refusal::kVersion:
      return "version";
    case Refusal::kChecksum:
      return "checksum";
    case Refusal::kMalformed:
      return "malformed";
    case Refusal::kOtherVm:
      return "other-vm";
    case Refusal::kOtherImage:
      return "other-image";
    case Refusal::kOtherBoot:
      return "other-boot";
    case Refusal::kOtherRegions:
      return "other-regions";
    case Refusal::kRamFileGone:
      return "ram-file-gone";
    case Refusal::kRamFileReplaced:
      return "ram-file-replaced";
    case Refusal::kRamFileResized:
      return "ram-file-resized";
    case Refusal::kSystem:
      return "system";
  }
  return "unknown";
}

}  // namespace godwit::memory
