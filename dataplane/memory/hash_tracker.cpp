#include "dataplane/memory/hash_tracker.h"

#include "dataplane/memory/hash_compare.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memory {

HashTracker::HashTracker(const TrackerRequest& request, std::shared_ptr<UserfaultSet> userfaults)
    : ram_(*request.ram),
      hashes_(request.hashes),
      userfaults_(std::move(userfaults)),
      all_(ram_.page_count()),
      continuing_(request.continuing) {
  all_.set_all();
}

std::expected<void, Error> HashTracker::arm() {
  return continuing_ ? std::expected<void, Error>{} : learn_unknown(ram_, all_, *hashes_);
}

std::expected<void, Error> HashTracker::collect(pages::Bitmap& out) {
  GW_ASSERT(out.size() == ram_.page_count());
  return find_changed(ram_, all_, *hashes_, out);
}

std::expected<void, Error> HashTracker::end_paging() {
  for (const Region& region : ram_.regions()) {
    if (auto done = userfaults_->unregister({region.qemu_address, region.bytes}); !done) {
      return done;
    }
  }
  return {};
}

void HashTracker::note_sent(pages::PageNumber page, pages::PageHash hash) { hashes_->note_sent(page, hash); }

void HashTracker::note_zero(pages::PageNumber page) { hashes_->note_sent(page, pages::zero_page_hash()); }

}  // namespace godwit::memory
