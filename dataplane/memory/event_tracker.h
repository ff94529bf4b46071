#pragma once
// Written pages by write-protect events (kernels 5.19 to 6.6): the first write to a page waits until our thread has
// marked the page and taken its protection off.
//
// Owner: the guest. Thread: see written_tracker.h, and a reader of events of its own. One lock is held around "mark and
// unprotect" and around taking the set, so that a page is never unprotected without being in this set or the next.
// While this process is down, a first write to a page makes QEMU's thread wait until the data plane is back. What a
// former data plane had marked but not collected is found again by the protection that is gone.

#include <memory>
#include <mutex>
#include <optional>

#include "dataplane/memory/pagemap.h"
#include "dataplane/memory/removed_pages.h"
#include "dataplane/memory/userfault.h"
#include "dataplane/memory/userfault_reader.h"
#include "dataplane/memory/written_tracker.h"

namespace godwit::memory {

class EventTracker final : public WrittenTracker, private UserfaultEvents {
 public:
  /// `pagemap` is needed only to take over from a former data plane; without it all pages count as written then.
  EventTracker(const TrackerRequest& request, Userfault userfault, std::optional<Pagemap> pagemap);
  /// Ends the reader and takes the protection off, so that no thread of QEMU waits for an answer that nobody gives.
  ~EventTracker() override;

  [[nodiscard]] TrackerKind kind() const override { return TrackerKind::kWriteProtectEvents; }
  std::expected<void, Error> arm() override;
  std::expected<void, Error> collect(pages::Bitmap& out) override;
  std::expected<void, Error> disarm() override;
  [[nodiscard]] bool wants_copies() const override { return any_huge_; }
  void note_copied(pages::PageNumber page, pages::PageBytes bytes) override;
  void note_zero(pages::PageNumber page) override;

 private:
  bool on_write_fault(std::uint64_t address) override;
  void on_removed(QemuRange range) override;
  void on_failed(Error error) override;
  std::expected<void, Error> take_over();
  std::expected<void, Error> protect_again(const pages::Bitmap& written);
  std::expected<void, Error> start_reader();

  const GuestRam& ram_;
  std::shared_ptr<KnownHashes> hashes_;
  Userfault userfault_;
  std::optional<Pagemap> pagemap_;
  RemovedPages removed_;
  const bool has_balloon_;
  const bool continuing_;
  const bool learn_hashes_;
  const bool any_huge_;

  std::mutex mutex_;
  pages::Bitmap written_;                    // marked, not collected yet; pages of a huge page together
  std::optional<Error> failure_;             // of the reader
  std::unique_ptr<UserfaultReader> reader_;  // last: ends before what it calls
};

}  // namespace godwit::memory
