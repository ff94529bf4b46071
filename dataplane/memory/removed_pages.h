#pragma once
// Memory that the guest gave back (balloon, free page reporting: MADV_REMOVE in QEMU): its content changes without a
// write.
//
// Thread: on_removed() from the reader of events, collect() from a job. Failure of collect(): Error, nothing is
// forgotten.
//
// The kernel tells of a removal before it happens, so a page told of must be reported again once it has happened. That
// is known when the page reads as zero, or when the next removal is told of: QEMU removes under its big lock, one range
// after the other.

#include <expected>
#include <mutex>

#include "dataplane/memory/guest_ram.h"
#include "dataplane/memory/userfault.h"

namespace godwit::memory {

class RemovedPages {
 public:
  explicit RemovedPages(const GuestRam& ram) : ram_(ram), done_(ram.page_count()) {}

  void on_removed(QemuRange range);
  /// Adds every page that was removed, or is about to be, since it was last reported.
  std::expected<void, Error> collect(pages::Bitmap& out);
  /// Nobody listened for a while: every page that reads as zero now may have been removed then.
  std::expected<void, Error> suspect_zero_pages();

 private:
  const GuestRam& ram_;
  std::mutex mutex_;
  pages::Bitmap done_;  // removed, not reported since
  PageRange newest_;    // told of, perhaps not removed yet
  std::uint64_t told_ = 0;
};

}  // namespace godwit::memory
