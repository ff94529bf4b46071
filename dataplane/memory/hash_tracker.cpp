#include "dataplane/memory/hash_tracker.h"

#include "dataplane/memory/hash_compare.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memory {

HashTracker::HashTracker(const TrackerRequest& request)
    : ram_(*request.ram), hashes_(request.hashes), all_(ram_.page_count()), continuing_(request.continuing) {
  all_.set_all();
}

std::expected<void, Error> HashTracker::arm() {
  return continuing_ ? std::expected<void, Error>{} : learn_unknown(ram_, all_, *hashes_);
}

std::expected<void, Error> HashTracker::collect(pages::Bitmap& out) {
  GW_ASSERT(out.size() == ram_.page_count());
  return find_changed(ram_, all_, *hashes_, out);
}

void HashTracker::note_copied(pages::PageNumber page, pages::PageBytes bytes) {
  hashes_->note_copied(page, pages::hash_page(bytes));
}

void HashTracker::note_zero(pages::PageNumber page) { hashes_->note_copied(page, pages::zero_page_hash()); }

}  // namespace godwit::memory
