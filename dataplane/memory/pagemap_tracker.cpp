#include "dataplane/memory/pagemap_tracker.h"

#include <thread>

namespace godwit::memory {
namespace {

constexpr std::uint64_t kCoalesceGapBytes = 2U << 20;

}  // namespace

std::expected<void, Error> PagemapTracker::arm() {
  if (has_balloon_) {
    if (auto started = start_reader(); !started) {
      return started;
    }
  }
  if (continuing_) {
    // Registered and armed by the former data plane; the kernel has kept the written set.
    return has_balloon_ ? removed_.suspect_zero_pages() : std::expected<void, Error>{};
  }
  return protect_all();
}

std::expected<void, Error> PagemapTracker::collect(pages::Bitmap& out) {
  GW_ASSERT(out.size() == ram_.page_count());
  {
    const std::lock_guard lock(mutex_);
    if (failure_) {
      return std::unexpected(*failure_);
    }
  }
  pages::Bitmap written(ram_.page_count());
  for (const Region& region : ram_.regions()) {
    auto done = region.page_bytes == kHugePageSize ? collect_huge(region, written) : collect_small(region, written);
    if (!done) {
      return done;
    }
  }
  return finish_collect(std::move(written), out);
}

std::expected<void, Error> PagemapTracker::collect_small(const Region& region, pages::Bitmap& out) {
  std::vector<QemuRange> seen;
  if (auto done = pagemap_.scan_written(range_of(region), false, seen); !done) {
    return done;
  }
  std::vector<QemuRange> rearm = coalesce(seen, kCoalesceGapBytes);
  std::uint64_t bytes = 0;
  for (const QemuRange& range : rearm) {
    bytes += range.bytes;
  }
  if (bytes > region.bytes / 2) {
    rearm = {range_of(region)};
  }
  // The second scan's answer counts: it takes the set and arms in one step.
  std::vector<QemuRange> written;
  for (const QemuRange& range : rearm) {
    if (auto done = pagemap_.scan_written(range, true, written); !done) {
      return done;
    }
  }
  for (const QemuRange& range : written) {
    mark(range, out);
  }
  return {};
}

std::expected<void, Error> PagemapTracker::collect_huge(const Region& region, pages::Bitmap& out) {
  std::vector<QemuRange> written;
  if (auto done = pagemap_.find_unprotected(range_of(region), region.page_bytes, written); !done) {
    return done;
  }
  // Exactly what was seen written is armed again: a page between two of them may be written right now.
  for (const QemuRange& range : written) {
    if (auto done = userfaults_->protect(range); !done) {
      return done;
    }
    mark(range, out);
  }
  return {};
}

std::expected<void, Error> PagemapTracker::find_written(QemuRange range, std::vector<QemuRange>& out) {
  const PageRange pages = ram_.pages_at(range.address, range.bytes);
  return pagemap_.find_unprotected(range, ram_.region_of(pages.first).page_bytes, out);
}

std::expected<bool, Error> PagemapTracker::may_protect(PageRange pages) {
  std::vector<QemuRange> written;
  if (auto done = find_written(ram_.qemu_range(pages), written); !done) {
    return std::unexpected(done.error());
  }
  return written.empty();
}

std::expected<void, Error> PagemapTracker::count_as_written(PageRange pages) {
  for (auto done = userfaults_->try_unprotect(ram_.qemu_range(pages)); !done || !*done;
       done = userfaults_->try_unprotect(ram_.qemu_range(pages))) {
    if (!done) {
      return std::unexpected(done.error());
    }
    std::this_thread::yield();  // until the reader has read what QEMU changes
  }
  return {};
}

}  // namespace godwit::memory
