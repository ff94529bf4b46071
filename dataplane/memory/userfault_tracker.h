#pragma once
// What the two trackers have in common that write-protect QEMU's RAM through its userfaultfd: registering and giving it
// up, the reader of events, removed pages, refinement of huge pages by hashes. Base of pagemap_tracker and
// event_tracker; owner and threads as written_tracker.h says.

#include <memory>
#include <mutex>
#include <optional>

#include "dataplane/memory/removed_pages.h"
#include "dataplane/memory/userfault.h"
#include "dataplane/memory/userfault_reader.h"
#include "dataplane/memory/written_tracker.h"

namespace godwit::memory {

class UserfaultTracker : public WrittenTracker, protected UserfaultEvents {
 public:
  std::expected<void, Error> disarm() final;
  [[nodiscard]] bool wants_copies() const final { return any_huge_; }
  void note_copied(pages::PageNumber page, pages::PageBytes bytes) final;
  void note_zero(pages::PageNumber page) final;

 protected:
  /// `request` is complete but for the descriptors, which come opened.
  UserfaultTracker(const TrackerRequest& request, Userfault userfault);

  static QemuRange range_of(const Region& region) { return {region.qemu_address, region.bytes}; }
  /// Learns hashes if asked to, then registers and protects all regions.
  std::expected<void, Error> protect_all();
  std::expected<void, Error> start_reader();
  /// Adds to `out` what of `written`, removed pages included, counts as written.
  std::expected<void, Error> finish_collect(pages::Bitmap written, pages::Bitmap& out);
  void mark(const QemuRange& range, pages::Bitmap& out) const;

  void on_removed(QemuRange range) final { removed_.on_removed(range); }
  void on_failed(Error error) final;

  const GuestRam& ram_;
  const std::shared_ptr<KnownHashes> hashes_;
  Userfault userfault_;
  RemovedPages removed_;
  const bool has_balloon_;
  const bool continuing_;

  std::mutex mutex_;
  std::optional<Error> failure_;  // of the reader
  /// Calls this object: whoever derives ends it in its destructor, before anything of itself is gone.
  std::unique_ptr<UserfaultReader> reader_;

 private:
  const bool learn_hashes_;
  const bool any_huge_;
};

}  // namespace godwit::memory
