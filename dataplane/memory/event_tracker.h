#pragma once
// Written pages by write-protect events (kernels 5.19 to 6.6): the first write to a page waits until our thread has
// marked the page and taken its protection off.
//
// Owner: the guest. Thread: see written_tracker.h, and a reader of events of its own. One lock is held around "mark and
// unprotect" and around taking the set, so that a page is never unprotected without being in this set or the next.
// While this process is down, a first write to a page makes QEMU's thread wait until the data plane is back. What a
// former data plane had marked but not collected is found again by the protection that is gone.

#include <optional>

#include "dataplane/memory/pagemap.h"
#include "dataplane/memory/userfault_tracker.h"

namespace godwit::memory {

class EventTracker final : public UserfaultTracker {
 public:
  /// `pagemap` is needed only to take over from a former data plane; without it all pages count as written then.
  EventTracker(const TrackerRequest& request, std::shared_ptr<UserfaultSet> userfaults, std::optional<Pagemap> pagemap);
  /// Ends the reader and takes the protection off, so that no thread of QEMU waits for an answer that nobody gives.
  ~EventTracker() override;

  [[nodiscard]] TrackerKind kind() const override { return TrackerKind::kWriteProtectEvents; }
  std::expected<void, Error> arm() override;
  std::expected<void, Error> collect(pages::Bitmap& out) override;
  /// What was written is in the set here, whatever becomes of its entry.
  std::expected<bool, Error> may_protect(PageRange /*pages*/) override { return true; }
  std::expected<void, Error> count_as_written(PageRange pages) override;

 private:
  /// Nothing: it is in the set here already, and may be protected again.
  std::expected<void, Error> find_written(QemuRange /*range*/, std::vector<QemuRange>& /*out*/) override { return {}; }
  bool on_write_fault(std::uint64_t address) override;
  std::expected<void, Error> take_over();
  std::expected<void, Error> protect_again(const pages::Bitmap& written);

  std::optional<Pagemap> pagemap_;
  pages::Bitmap written_;  // under the lock: marked, not collected yet; pages of a huge page together
};

}  // namespace godwit::memory
