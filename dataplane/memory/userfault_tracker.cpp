#include "dataplane/memory/userfault_tracker.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "dataplane/memory/hash_compare.h"
#include "dataplane/memory/huge_pages.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memory {

UserfaultTracker::UserfaultTracker(const TrackerRequest& request, std::shared_ptr<UserfaultSet> userfaults)
    : ram_(*request.ram),
      hashes_(request.hashes),
      userfaults_(std::move(userfaults)),
      removed_(ram_),
      has_balloon_(request.has_balloon),
      continuing_(request.continuing),
      learn_hashes_(request.learn_hashes),
      any_huge_(ram_.any_huge()) {}

std::expected<void, Error> UserfaultTracker::start_reader() {
  userfaults_->reader().hand_tracking_to(this);
  reading_ = true;
  return userfaults_->reader().start_thread();
}

void UserfaultTracker::stop_reader() {
  if (reading_) {
    userfaults_->reader().hand_tracking_to(nullptr);
    userfaults_->reader().stop_thread();
    reading_ = false;
  }
}

std::expected<void, Error> UserfaultTracker::protect_all() {
  if (any_huge_ && learn_hashes_) {
    // Before protecting: a write in between makes a hash stale, which only reports a page too often.
    if (auto learned = learn_unknown(ram_, huge_region_pages(ram_), *hashes_); !learned) {
      return learned;
    }
  }
  for (const Region& region : ram_.regions()) {
    if (auto done = userfaults_->register_write_protect(range_of(region)); !done) {
      return done;
    }
    if (auto done = userfaults_->protect(range_of(region)); !done) {
      return done;
    }
  }
  return {};
}

void UserfaultTracker::mark(const QemuRange& range, pages::Bitmap& out) const {
  const PageRange touched = ram_.pages_at(range.address, range.bytes);
  out.set_range(touched.first, touched.count);
}

std::expected<void, Error> UserfaultTracker::finish_collect(pages::Bitmap written, pages::Bitmap& out) {
  if (has_balloon_) {
    userfaults_->reader().settle();
    if (auto done = removed_.collect(written); !done) {
      return done;
    }
  }
  return add_refined(ram_, std::move(written), *hashes_, out);
}

std::expected<void, Error> UserfaultTracker::disarm() {
  // One region that cannot be given up is no reason to leave the others armed without a reader.
  std::expected<void, Error> result;
  for (const Region& region : ram_.regions()) {
    auto done = userfaults_->unregister(range_of(region));
    if (!done && done.error().code != ErrorCode::kProcessGone && result) {
      result = std::move(done);
    }
  }
  stop_reader();  // only now: a removal under way waits for its event to be read
  return result;
}

/// No call takes faults on missing pages off a range and leaves its marks: registering anew with fewer modes changes
/// nothing, and giving a range up clears its marks. So 2 MiB at a time are given up, registered and protected again,
/// but for what was written. A write in between shows in the content: what was unwritten before and has the same
/// content after need not be reported, whoever wrote what in between.
std::expected<void, Error> UserfaultTracker::end_paging() {
  for (const Region& region : ram_.regions()) {
    for (std::uint64_t offset = 0; offset < region.bytes; offset += kHugePageSize) {
      const std::uint64_t bytes = std::min<std::uint64_t>(kHugePageSize, region.bytes - offset);
      if (auto done = end_paging_of(region, offset, bytes); !done) {
        return done;
      }
    }
  }
  return {};
}

std::expected<void, Error> UserfaultTracker::end_paging_of(const Region& region, std::uint64_t offset,
                                                           std::uint64_t bytes) {
  const QemuRange all{region.qemu_address + offset, bytes};
  std::vector<std::byte> before(bytes);
  if (auto read = ram_.read_pages(region.first_page + offset / pages::kPageSize, before); !read) {
    return read;
  }
  std::vector<QemuRange> written;
  if (auto found = find_written(all, written); !found) {
    return found;
  }
  if (auto done = userfaults_->unregister(all); !done) {
    return done;
  }
  if (auto done = userfaults_->register_write_protect(all); !done) {
    return done;
  }
  written.push_back({all.address + all.bytes, 0});
  std::uint64_t at = all.address;
  for (const QemuRange& range : written) {
    if (range.address > at) {
      if (auto done = userfaults_->protect({at, range.address - at}); !done) {
        return done;
      }
    }
    at = range.address + range.bytes;
  }
  return count_changed(region, offset, before);
}

std::expected<void, Error> UserfaultTracker::count_changed(const Region& region, std::uint64_t offset,
                                                           std::span<const std::byte> before) {
  const pages::PageNumber first = region.first_page + offset / pages::kPageSize;
  std::vector<std::byte> after(before.size());
  if (auto read = ram_.read_pages(first, after); !read) {
    return read;
  }
  for (std::size_t at = 0; at < before.size(); at += region.page_bytes) {
    if (std::memcmp(&before[at], &after[at], region.page_bytes) != 0) {
      const PageRange changed{first + at / pages::kPageSize, region.page_bytes / pages::kPageSize};
      if (auto done = count_as_written(changed); !done) {
        return done;
      }
    }
  }
  return {};
}

void UserfaultTracker::note_sent(pages::PageNumber page, pages::PageHash hash) {
  if (any_huge_) {
    hashes_->note_sent(page, hash);
  }
}

void UserfaultTracker::note_zero(pages::PageNumber page) {
  if (any_huge_) {
    hashes_->note_sent(page, pages::zero_page_hash());
  }
}

void UserfaultTracker::on_failed(Error error) {
  const std::lock_guard lock(mutex_);
  failure_ = std::move(error);
}

}  // namespace godwit::memory
