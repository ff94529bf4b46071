#include "dataplane/memory/event_tracker.h"

#include <thread>

namespace godwit::memory {

EventTracker::EventTracker(const TrackerRequest& request, std::shared_ptr<UserfaultSet> userfaults,
                           std::optional<Pagemap> pagemap)
    : UserfaultTracker(request, std::move(userfaults)), pagemap_(std::move(pagemap)), written_(ram_.page_count()) {}

EventTracker::~EventTracker() {
  if (!reading_) {
    return;
  }
  // While the reader still answers: a removal under way would make this wait for its event to be read.
  for (const Region& region : ram_.regions()) {
    for (auto done = userfaults_->try_unprotect(range_of(region)); done && !*done;) {
      std::this_thread::yield();
      done = userfaults_->try_unprotect(range_of(region));
    }
  }
  stop_reader();
}

std::expected<void, Error> EventTracker::arm() {
  if (continuing_) {
    return take_over();
  }
  if (auto started = start_reader(); !started) {
    return started;
  }
  return protect_all();
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
      mark(range, lost);
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
    if (auto done = userfaults_->wake(range_of(region)); !done) {
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
  const auto done = userfaults_->try_unprotect({region.qemu_address + offset, region.page_bytes});
  if (!done && done.error().code == ErrorCode::kLost) {
    return true;  // end_paging() is between two steps: its first has let the writer go on
  }
  if (!done) {
    failure_ = done.error();
    return true;
  }
  return *done;
}

std::expected<void, Error> EventTracker::count_as_written(PageRange pages) {
  const std::lock_guard lock(mutex_);
  written_.set_range(pages.first, pages.count);
  return {};
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
  return finish_collect(std::move(written), out);
}

std::expected<void, Error> EventTracker::protect_again(const pages::Bitmap& written) {
  for (const Region& region : ram_.regions()) {
    const pages::PageNumber end = region.first_page + region.page_count;
    for (pages::PageNumber first = written.next_set(region.first_page); first < end;) {
      const pages::PageNumber last = std::min(written.next_clear(first), end);
      const std::uint64_t offset = (first - region.first_page) * pages::kPageSize;
      if (auto done = userfaults_->protect({region.qemu_address + offset, (last - first) * pages::kPageSize}); !done) {
        return done;
      }
      first = written.next_set(last);
    }
  }
  return {};
}

}  // namespace godwit::memory
