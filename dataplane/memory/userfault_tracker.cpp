#include "dataplane/memory/userfault_tracker.h"

#include <utility>

#include "dataplane/memory/hash_compare.h"
#include "dataplane/memory/huge_pages.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memory {

UserfaultTracker::UserfaultTracker(const TrackerRequest& request, Userfault userfault)
    : ram_(*request.ram),
      hashes_(request.hashes),
      userfault_(std::move(userfault)),
      removed_(ram_),
      has_balloon_(request.has_balloon),
      continuing_(request.continuing),
      learn_hashes_(request.learn_hashes),
      any_huge_(ram_.any_huge()) {}

std::expected<void, Error> UserfaultTracker::start_reader() {
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

std::expected<void, Error> UserfaultTracker::protect_all() {
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

void UserfaultTracker::mark(const QemuRange& range, pages::Bitmap& out) const {
  const PageRange touched = ram_.pages_at(range.address, range.bytes);
  out.set_range(touched.first, touched.count);
}

std::expected<void, Error> UserfaultTracker::finish_collect(pages::Bitmap written, pages::Bitmap& out) {
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

std::expected<void, Error> UserfaultTracker::disarm() {
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

void UserfaultTracker::note_copied(pages::PageNumber page, pages::PageBytes bytes) {
  if (any_huge_) {
    hashes_->note_copied(page, pages::hash_page(bytes));
  }
}

void UserfaultTracker::note_zero(pages::PageNumber page) {
  if (any_huge_) {
    hashes_->note_copied(page, pages::zero_page_hash());
  }
}

void UserfaultTracker::on_failed(Error error) {
  const std::lock_guard lock(mutex_);
  failure_ = std::move(error);
}

}  // namespace godwit::memory
