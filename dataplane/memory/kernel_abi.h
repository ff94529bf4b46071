#pragma once
// Kernel interfaces newer than Debian 12's headers (6.1): PAGEMAP_SCAN (6.7), userfaultfd's asynchronous write
// protection (6.7) and mapping a page write-protected (6.4). Values as in the kernel's uapi; they cannot change.

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstdint>

namespace godwit::memory::abi {

struct PageRegion {
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t categories;
};

struct PagemapScan {
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t walk_end;
  std::uint64_t vec;
  std::uint64_t vec_len;
  std::uint64_t max_pages;
  std::uint64_t category_inverted;
  std::uint64_t category_mask;
  std::uint64_t category_anyof_mask;
  std::uint64_t return_mask;
};
static_assert(sizeof(PageRegion) == 24 && sizeof(PagemapScan) == 96);

inline constexpr unsigned long kPagemapScanRequest = _IOWR('f', 16, PagemapScan);
inline constexpr std::uint64_t kScanRearm = 1;                                   // PM_SCAN_WP_MATCHING
inline constexpr std::uint64_t kScanCheckRegistered = 2;                         // PM_SCAN_CHECK_WPASYNC
inline constexpr std::uint64_t kPageIsWritten = 2;                               // PAGE_IS_WRITTEN
inline constexpr std::uint64_t kPagemapWriteProtected = std::uint64_t{1} << 57;  // in /proc/PID/pagemap

inline constexpr std::uint64_t kFeatureWpFaults = 1U << 0;         // UFFD_FEATURE_PAGEFAULT_FLAG_WP
inline constexpr std::uint64_t kFeatureEventRemove = 1U << 3;      // UFFD_FEATURE_EVENT_REMOVE
inline constexpr std::uint64_t kFeatureMissingHuge = 1U << 4;      // UFFD_FEATURE_MISSING_HUGETLBFS
inline constexpr std::uint64_t kFeatureMissingShmem = 1U << 5;     // UFFD_FEATURE_MISSING_SHMEM
inline constexpr std::uint64_t kFeatureMinorHuge = 1U << 9;        // UFFD_FEATURE_MINOR_HUGETLBFS, 5.13
inline constexpr std::uint64_t kFeatureWpHugeAndShmem = 1U << 12;  // UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 5.19
inline constexpr std::uint64_t kFeatureWpUnpopulated = 1U << 13;   // UFFD_FEATURE_WP_UNPOPULATED, 6.4
inline constexpr std::uint64_t kFeatureWpAsync = 1U << 15;         // UFFD_FEATURE_WP_ASYNC, 6.7
inline constexpr std::uint64_t kFeatureInitialized = 1U
                                                     << 31;  // set by the kernel in fdinfo once UFFDIO_API was called

/// UFFDIO_CONTINUE_MODE_WP. No feature of its own tells of it: it came with WP_UNPOPULATED, in 6.4.
inline constexpr std::uint64_t kContinueWriteProtected = 1U << 1;

}  // namespace godwit::memory::abi
