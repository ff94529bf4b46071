#pragma once
// /proc/PID/pagemap of QEMU: which pages were written since they were last armed. Addresses are QEMU's.
//
// Owns the descriptor. One thread at a time. Failure: Error; kProcessGone when QEMU has exited, kUnsupported when a
// range is not registered for asynchronous write protection.

#include <expected>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/error.h"
#include "dataplane/memory/kernel_abi.h"
#include "dataplane/memory/userfault.h"

namespace godwit::memory {

class Pagemap {
 public:
  explicit Pagemap(UniqueFd fd) : fd_(std::move(fd)) {}

  /// The kernel has PAGEMAP_SCAN (6.7).
  [[nodiscard]] bool can_scan() const;
  /// Appends the written stretches of `range`; with `rearm` they are armed in the same step.
  std::expected<void, Error> scan_written(QemuRange range, bool rearm, std::vector<QemuRange>& out);
  /// Appends every page of page_bytes in `range` whose write-protect mark is gone: written. Works on every kernel
  /// since 5.19 and is the only sound signal on hugetlb, where PAGEMAP_SCAN forgets a written page whose entry was
  /// dropped.
  std::expected<void, Error> find_unprotected(QemuRange range, std::uint32_t page_bytes, std::vector<QemuRange>& out);

 private:
  UniqueFd fd_;
  std::vector<abi::PageRegion> found_ = std::vector<abi::PageRegion>(8192);
};

/// Joins stretches less than `gap_bytes` apart. Sorted input.
std::vector<QemuRange> coalesce(const std::vector<QemuRange>& ranges, std::uint64_t gap_bytes);

}  // namespace godwit::memory
