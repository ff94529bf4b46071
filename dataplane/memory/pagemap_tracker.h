#pragma once
// Written pages by asynchronous write protection and PAGEMAP_SCAN (kernel 6.7): no thread in the guest's way, one short
// fault a page first written after each collect().
//
// Owner: the guest. Thread: see written_tracker.h; with a balloon also a reader of removals of its own.
// Cost: a re-arming scan makes KVM drop its mappings of the scanned range, so collect() looks first and re-arms only
// what was written. Huge pages: bit 57 of pagemap, then 4 KiB by hashes. A balloon: while this process is down, a
// MADV_REMOVE of QEMU waits until the data plane is back and reads it: the price for losing none.

#include "dataplane/memory/pagemap.h"
#include "dataplane/memory/userfault_tracker.h"

namespace godwit::memory {

class PagemapTracker final : public UserfaultTracker {
 public:
  PagemapTracker(const TrackerRequest& request, std::shared_ptr<UserfaultSet> userfaults, Pagemap pagemap)
      : UserfaultTracker(request, std::move(userfaults)), pagemap_(std::move(pagemap)) {}
  ~PagemapTracker() override { stop_reader(); }

  [[nodiscard]] TrackerKind kind() const override { return TrackerKind::kPagemapScan; }
  std::expected<void, Error> arm() override;
  std::expected<void, Error> collect(pages::Bitmap& out) override;
  std::expected<bool, Error> may_protect(PageRange pages) override;
  std::expected<void, Error> count_as_written(PageRange pages) override;

 private:
  std::expected<void, Error> find_written(QemuRange range, std::vector<QemuRange>& out) override;
  std::expected<void, Error> collect_small(const Region& region, pages::Bitmap& out);
  std::expected<void, Error> collect_huge(const Region& region, pages::Bitmap& out);

  Pagemap pagemap_;
};

}  // namespace godwit::memory
