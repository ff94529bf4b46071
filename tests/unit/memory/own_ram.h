#pragma once
// RAM of a guest that is this very process: its threads touch the mapping, and wait for the pager like a QEMU's.
//
// Owned by one test. nullopt: cannot be made here.

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/written_tracker.h"

namespace godwit::memory::test {

/// A file on a tmpfs of huge pages, in a mount of its own that is nowhere to be seen, and goes with the file. Not valid
/// where they are off.
UniqueFd make_huge_tmpfs_file();

class OwnRam {
 public:
  static std::optional<OwnRam> on_tmpfs(std::uint64_t bytes);
  /// On a tmpfs of huge pages; filled, so that they are there.
  static std::optional<OwnRam> on_huge_tmpfs(std::uint64_t bytes);
  OwnRam(OwnRam&& other) noexcept
      : file_(std::move(other.file_)), bytes_(other.bytes_), address_(std::exchange(other.address_, nullptr)) {}
  OwnRam& operator=(OwnRam&&) = delete;
  ~OwnRam();

  [[nodiscard]] std::byte* data() const { return address_; }
  [[nodiscard]] std::vector<RegionFile> region_files() const;
  /// With a new userfaultfd of this process.
  [[nodiscard]] TrackerRequest tracker_request(const GuestRam& ram) const;

 private:
  OwnRam(UniqueFd file, std::uint64_t bytes, std::byte* address)
      : file_(std::move(file)), bytes_(bytes), address_(address) {}
  static std::optional<OwnRam> map(UniqueFd file, std::uint64_t bytes);

  UniqueFd file_;
  std::uint64_t bytes_;
  std::byte* address_;
};

}  // namespace godwit::memory::test
