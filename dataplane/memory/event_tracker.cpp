#include "dataplane/memory/event_tracker.h"

#include "dataplane/memory/hash_compare.h"
#include "dataplane/memory/huge_pages.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memory {
namespace {

QemuRange range_of(const Region& region) { return {region.qemu_address, region.bytes}; }

}  // namespace

EventTracker::EventTracker(const TrackerRequest& request, Userfault userfault, std::optional<Pagemap> pagemap)
    : ram_(*request.ram),
      hashes_(request.hashes),
      userfault_(std::move(userfault)),
      pagemap_(std::move(pagemap)),
      removed_(ram_),
      has_balloon_(request.has_balloon),
      continuing_(request.continuing),
      learn_hashes_(request.learn_hashes),
      any_huge_(ram_.any_huge()),
      written_(ram_.page_count()) {}

EventTracker::~EventTracker() {
  if (!reader_) {
    return;
  }
  // While the reader still answers: a removal under way would make this wait for its event to be read.
  for (const Region& region : ram_.regions()) {
    for (auto done = userfault_.try_unprotect(range_of(region)); done && !*done;) {
      std::this_thread::yield();
      done = userfault_.try_unprotect(range_of(region));
    }
  }
  reader_.reset();
}

std::expected<void, Error> EventTracker::start_reader() {
  if (reader_) {
    return {};
  }
  auto reader = UserfaultReader::start(userfault_.fd(), *this);
  if (!reader) {
    return std::unexpected(reader.error());
  }
  reader_ = std::move(*reader);
  return {};
}

std::expected<void, Error> EventTracker::arm() {
  if (continuing_) {
    return take_over();
  }
  if (any_huge_ && learn_hashes_) {
    // Before protecting: a write in between makes a hash stale, which only reports a page too often.
    if (auto learned = learn_unknown(ram_, huge_region_pages(ram_), *hashes_); !learned) {
      return learned;
    }
  }
  if (auto started = start_reader(); !started) {
    return started;
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

std::expected<void, Error> EventTracker::take_over() {
  pages::Bitmap lost(ram_.page_count());
  for (const Region& region : ram_.regions()) {
    std::vector<QemuRange> unprotected;
    if (!pagemap_) {
      unprotected.push_back(range_of(region));
    } else if (auto done = pagemap_->find_unprotected(range_of(region), region.page_bytes, unprotected); !done) {
      return done;
    }
    for (const QemuRange& range : unprotected) {
      const PageRange touched = ram_.pages_at(range.address, range.bytes);
      lost.set_range(touched.first, touched.count);
    }
  }
  {
    const std::lock_guard lock(mutex_);
    written_ |= lost;
  }
  if (has_balloon_) {
    if (auto done = removed_.suspect_zero_pages(); !done) {
      return done;
    }
  }
  if (auto started = start_reader(); !started) {
    return started;
  }
  // A fault that the former data plane had read but not answered is raised again.
  for (const Region& region : ram_.regions()) {
    if (auto done = userfault_.wake(range_of(region)); !done) {
      return done;
    }
  }
  return {};
}

bool EventTracker::on_write_fault(std::uint64_t address) {
  const PageRange at = ram_.pages_at(address, 1);
  if (at.count == 0) {
    on_failed({ErrorCode::kBadArgument, "userfaultfd: a write fault outside the guest's RAM"});
    return true;
  }
  const Region& region = ram_.region_of(at.first);
  const std::uint64_t offset = (address - region.qemu_address) / region.page_bytes * region.page_bytes;
  const std::lock_guard lock(mutex_);
  written_.set_range(region.first_page + offset / pages::kPageSize, region.page_bytes / pages::kPageSize);
  const auto done = userfault_.try_unprotect({region.qemu_address + offset, region.page_bytes});
  if (!done) {
    failure_ = done.error();
    return true;
  }
  return *done;
}

std::expected<void, Error> EventTracker::collect(pages::Bitmap& out) {
  GW_ASSERT(out.size() == ram_.page_count());
  pages::Bitmap written(ram_.page_count());
  {
    const std::lock_guard lock(mutex_);
    if (failure_) {
      return std::unexpected(*failure_);
    }
    std::swap(written, written_);
  }
  if (auto done = protect_again(written); !done) {
    return done;
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

std::expected<void, Error> EventTracker::protect_again(const pages::Bitmap& written) {
  for (const Region& region : ram_.regions()) {
    const pages::PageNumber end = region.first_page + region.page_count;
    for (pages::PageNumber first = written.next_set(region.first_page); first < end;) {
      const pages::PageNumber last = std::min(written.next_clear(first), end);
      const std::uint64_t offset = (first - region.first_page) * pages::kPageSize;
      if (auto done = userfault_.protect({region.qemu_address + offset, (last - first) * pages::kPageSize}); !done) {
        return done;
      }
      first = written.next_set(last);
    }
  }
  return {};
}

std::expected<void, Error> EventTracker::disarm() {
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

void EventTracker::note_copied(pages::PageNumber page, pages::PageBytes bytes) {
  if (any_huge_) {
    hashes_->note_copied(page, pages::hash_page(bytes));
  }
}

void EventTracker::note_zero(pages::PageNumber page) {
  if (any_huge_) {
    hashes_->note_copied(page, pages::zero_page_hash());
  }
}

void EventTracker::on_removed(QemuRange range) { removed_.on_removed(range); }

void EventTracker::on_failed(Error error) {
  const std::lock_guard lock(mutex_);
  failure_ = std::move(error);
}

}  // namespace godwit::memory
