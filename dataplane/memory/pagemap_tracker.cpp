#include "dataplane/memory/pagemap_tracker.h"

#include "dataplane/memory/hash_compare.h"
#include "dataplane/memory/huge_pages.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memory {
namespace {

constexpr std::uint64_t kCoalesceGapBytes = 2U << 20;

QemuRange range_of(const Region& region) { return {region.qemu_address, region.bytes}; }

}  // namespace

PagemapTracker::PagemapTracker(const TrackerRequest& request, Userfault userfault, Pagemap pagemap)
    : ram_(*request.ram),
      hashes_(request.hashes),
      userfault_(std::move(userfault)),
      pagemap_(std::move(pagemap)),
      removed_(ram_),
      has_balloon_(request.has_balloon),
      continuing_(request.continuing),
      learn_hashes_(request.learn_hashes),
      any_huge_(ram_.any_huge()) {}

PagemapTracker::~PagemapTracker() = default;

std::expected<void, Error> PagemapTracker::start_reader() {
  if (!has_balloon_ || reader_) {
    return {};
  }
  auto reader = UserfaultReader::start(userfault_.fd(), *this);
  if (!reader) {
    return std::unexpected(reader.error());
  }
  reader_ = std::move(*reader);
  return {};
}

std::expected<void, Error> PagemapTracker::arm() {
  if (auto started = start_reader(); !started) {
    return started;
  }
  if (continuing_) {
    // Registered and armed by the former data plane; the kernel has kept the written set.
    return has_balloon_ ? removed_.suspect_zero_pages() : std::expected<void, Error>{};
  }
  if (any_huge_ && learn_hashes_) {
    // Before protecting: a write in between makes a hash stale, which only reports a page too often.
    if (auto learned = learn_unknown(ram_, huge_region_pages(ram_), *hashes_); !learned) {
      return learned;
    }
  }
  for (const Region& region : ram_.regions()) {
    if (auto done = userfault_.register_write_protect(range_of(region)); !done) {
      return done;
    }
    if (auto done = userfault_.protect(range_of(region)); !done) {
      return done;
    }
  }
  return {};
}

std::expected<void, Error> PagemapTracker::collect(pages::Bitmap& out) {
  GW_ASSERT(out.size() == ram_.page_count());
  {
    const std::lock_guard lock(failure_mutex_);
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
  if (has_balloon_) {
    if (reader_) {
      reader_->settle();
    }
    if (auto done = removed_.collect(written); !done) {
      return done;
    }
  }
  return add_refined(ram_, std::move(written), *hashes_, out);
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
    const PageRange touched = ram_.pages_at(range.address, range.bytes);
    out.set_range(touched.first, touched.count);
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
    if (auto done = userfault_.protect(range); !done) {
      return done;
    }
    const PageRange touched = ram_.pages_at(range.address, range.bytes);
    out.set_range(touched.first, touched.count);
  }
  return {};
}

std::expected<void, Error> PagemapTracker::disarm() {
  // One region that cannot be given up is no reason to leave the others armed without a reader.
  std::expected<void, Error> result;
  for (const Region& region : ram_.regions()) {
    auto done = userfault_.unregister(range_of(region));
    if (!done && done.error().code != ErrorCode::kProcessGone && result) {
      result = std::move(done);
    }
  }
  reader_.reset();  // only now: a removal under way waits for its event to be read
  return result;
}

void PagemapTracker::note_copied(pages::PageNumber page, pages::PageBytes bytes) {
  if (any_huge_) {
    hashes_->note_copied(page, pages::hash_page(bytes));
  }
}

void PagemapTracker::note_zero(pages::PageNumber page) {
  if (any_huge_) {
    hashes_->note_copied(page, pages::zero_page_hash());
  }
}

void PagemapTracker::on_removed(QemuRange range) { removed_.on_removed(range); }

void PagemapTracker::on_failed(Error error) {
  const std::lock_guard lock(failure_mutex_);
  failure_ = std::move(error);
}

}  // namespace godwit::memory
