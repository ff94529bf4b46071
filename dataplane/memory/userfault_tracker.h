#pragma once
// What the two trackers have in common that write-protect QEMU's RAM through its userfaultfd: registering and giving it
// up, the reader of events, removed pages, refinement of huge pages by hashes. Base of pagemap_tracker and
// event_tracker; owner and threads as written_tracker.h says.

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "dataplane/memory/removed_pages.h"
#include "dataplane/memory/userfault_set.h"
#include "dataplane/memory/written_tracker.h"

namespace godwit::memory {

class UserfaultTracker : public WrittenTracker, protected UserfaultEvents {
 public:
  std::expected<void, Error> disarm() final;
  [[nodiscard]] std::shared_ptr<UserfaultSet> userfaults() const final { return userfaults_; }
  [[nodiscard]] bool protects() const final { return true; }
  std::expected<void, Error> end_paging() final;
  [[nodiscard]] bool compares_content() const final { return any_huge_; }
  void note_sent(pages::PageNumber page, pages::PageHash hash) final;
  void note_zero(pages::PageNumber page) final;

 protected:
  /// `request` is complete but for the descriptors, which come opened.
  UserfaultTracker(const TrackerRequest& request, std::shared_ptr<UserfaultSet> userfaults);
  /// Whoever derives ends the reading in its destructor, before anything of itself is gone.
  void stop_reader();

  static QemuRange range_of(const Region& region) { return {region.qemu_address, region.bytes}; }
  /// Learns hashes if asked to, then registers and protects all regions.
  std::expected<void, Error> protect_all();
  std::expected<void, Error> start_reader();
  /// Adds to `out` what of `written`, removed pages included, counts as written.
  std::expected<void, Error> finish_collect(pages::Bitmap written, pages::Bitmap& out);
  void mark(const QemuRange& range, pages::Bitmap& out) const;

  /// For end_paging(), from a job: appends what of `range` lost its protection since it was last armed.
  virtual std::expected<void, Error> find_written(QemuRange range, std::vector<QemuRange>& out) = 0;

  void on_removed(QemuRange range) final { removed_.on_removed(range); }
  void on_failed(Error error) final;

  const GuestRam& ram_;
  const std::shared_ptr<KnownHashes> hashes_;
  const std::shared_ptr<UserfaultSet> userfaults_;
  RemovedPages removed_;
  const bool has_balloon_;
  const bool continuing_;

  std::mutex mutex_;
  std::optional<Error> failure_;  // of the reader
  bool reading_ = false;

 private:
  std::expected<void, Error> end_paging_of(const Region& region, std::uint64_t offset, std::uint64_t bytes);
  std::expected<void, Error> count_changed(const Region& region, std::uint64_t offset,
                                           std::span<const std::byte> before);

  const bool learn_hashes_;
  const bool any_huge_;
};

}  // namespace godwit::memory
