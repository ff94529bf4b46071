#include "dataplane/memory/pagemap.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <span>

#include "dataplane/pages/page.h"

namespace godwit::memory {
namespace {

void append(std::vector<QemuRange>& out, std::uint64_t address, std::uint64_t bytes) {
  if (!out.empty() && out.back().address + out.back().bytes == address) {
    out.back().bytes += bytes;
  } else {
    out.push_back({address, bytes});
  }
}

Error scan_error(int error_number) {
  if (error_number == EPERM) {
    return {ErrorCode::kUnsupported,
            "PAGEMAP_SCAN of QEMU's pagemap: part of its RAM is not registered for tracking (was it mapped anew?)"};
  }
  return kernel_error("PAGEMAP_SCAN", "QEMU's pagemap", error_number);
}

}  // namespace

bool Pagemap::can_scan() const {
  abi::PagemapScan scan{};
  scan.size = sizeof scan;
  scan.category_mask = abi::kPageIsWritten;
  scan.return_mask = abi::kPageIsWritten;
  return ioctl(fd_.get(), abi::kPagemapScanRequest, &scan) >= 0;
}

std::expected<void, Error> Pagemap::scan_written(QemuRange range, bool rearm, std::vector<QemuRange>& out) {
  const std::uint64_t end = range.address + range.bytes;
  for (std::uint64_t at = range.address; at < end;) {
    abi::PagemapScan scan{};
    scan.size = sizeof scan;
    scan.flags = abi::kScanCheckRegistered | (rearm ? abi::kScanRearm : 0);
    scan.start = at;
    scan.end = end;
    scan.vec = reinterpret_cast<std::uint64_t>(found_.data());
    scan.vec_len = found_.size();
    // Exactly WRITTEN in both masks: with any other category, 6.12 does not report a written page whose entry is gone.
    scan.category_mask = abi::kPageIsWritten;
    scan.return_mask = abi::kPageIsWritten;
    const int count = ioctl(fd_.get(), abi::kPagemapScanRequest, &scan);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return std::unexpected(scan_error(errno));
    }
    for (const abi::PageRegion& region : std::span(found_).first(static_cast<std::size_t>(count))) {
      append(out, region.start, region.end - region.start);
    }
    if (scan.walk_end <= at) {
      return std::unexpected(Error{ErrorCode::kKernel, "PAGEMAP_SCAN of QEMU's pagemap made no progress"});
    }
    at = scan.walk_end;
  }
  return {};
}

std::expected<void, Error> Pagemap::find_unprotected(QemuRange range, std::uint32_t page_bytes,
                                                     std::vector<QemuRange>& out) {
  // One word a 4 KiB page; of a huge page the first word speaks for all.
  std::array<std::uint64_t, 8192> words;
  const bool small = page_bytes == pages::kPageSize;
  const std::uint64_t end = range.address + range.bytes;
  for (std::uint64_t at = range.address; at < end;) {
    const std::uint64_t wanted = small ? std::min<std::uint64_t>(words.size(), (end - at) / page_bytes) : 1;
    const ssize_t got = pread(fd_.get(), words.data(), wanted * 8, static_cast<off_t>(at / pages::kPageSize * 8));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 8) {
      // 0: there is no address space any more.
      return std::unexpected(kernel_error("read", "QEMU's pagemap", got < 0 ? errno : ESRCH));
    }
    const auto count = static_cast<std::uint64_t>(got) / 8;
    for (std::uint64_t i = 0; i < count; ++i, at += page_bytes) {
      if ((words[i] & abi::kPagemapWriteProtected) == 0) {
        append(out, at, page_bytes);
      }
    }
  }
  return {};
}

std::vector<QemuRange> coalesce(const std::vector<QemuRange>& ranges, std::uint64_t gap_bytes) {
  std::vector<QemuRange> joined;
  for (const QemuRange& range : ranges) {
    if (!joined.empty() && range.address - (joined.back().address + joined.back().bytes) < gap_bytes) {
      joined.back().bytes = range.address + range.bytes - joined.back().address;
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

}  // namespace godwit::memory
