#include "dataplane/memory/removed_pages.h"

namespace godwit::memory {

void RemovedPages::on_removed(QemuRange range) {
  const PageRange told = ram_.pages_at(range.address, range.bytes);
  if (told.count == 0) {
    return;
  }
  const std::lock_guard lock(mutex_);
  done_.set_range(newest_.first, newest_.count);
  newest_ = told;
  ++told_;
}

std::expected<void, Error> RemovedPages::collect(pages::Bitmap& out) {
  PageRange newest;
  std::uint64_t told = 0;
  {
    const std::lock_guard lock(mutex_);
    newest = newest_;
    told = told_;
    out |= done_;
    done_.clear_all();
  }
  if (newest.count == 0) {
    return {};
  }
  pages::Bitmap among(ram_.page_count());
  pages::Bitmap zero(ram_.page_count());
  among.set_range(newest.first, newest.count);
  out |= among;
  // Zero before the caller copies it: whether removed already or not, the removal changes nothing any more.
  if (auto found = ram_.find_zero(among, zero); !found) {
    const std::lock_guard lock(mutex_);
    done_ |= out;
    return found;
  }
  if (zero == among) {
    const std::lock_guard lock(mutex_);
    if (told_ == told) {
      newest_ = {};
    }
  }
  return {};
}

std::expected<void, Error> RemovedPages::suspect_zero_pages() {
  pages::Bitmap all(ram_.page_count());
  pages::Bitmap zero(ram_.page_count());
  all.set_all();
  if (auto found = ram_.find_zero(all, zero); !found) {
    return found;
  }
  const std::lock_guard lock(mutex_);
  done_ |= zero;
  return {};
}

}  // namespace godwit::memory
