#pragma once
// Written pages by asynchronous write protection and PAGEMAP_SCAN (kernel 6.7): no thread in the guest's way, one short
// fault a page first written after each collect().
//
// Owner: the guest. Thread: see written_tracker.h; with a balloon also a reader of removals of its own.
// Cost: a re-arming scan makes KVM drop its mappings of the scanned range, so collect() looks first and re-arms only
// what was written. Huge pages: bit 57 of pagemap, then 4 KiB by hashes. A balloon: while this process is down, a
// MADV_REMOVE of QEMU waits until the data plane is back and reads it: the price for losing none.

#include <memory>
#include <optional>

#include "dataplane/memory/pagemap.h"
#include "dataplane/memory/removed_pages.h"
#include "dataplane/memory/userfault.h"
#include "dataplane/memory/userfault_reader.h"
#include "dataplane/memory/written_tracker.h"

namespace godwit::memory {

class PagemapTracker final : public WrittenTracker, private UserfaultEvents {
 public:
  /// `request` is complete but for the descriptors, which come opened.
  PagemapTracker(const TrackerRequest& request, Userfault userfault, Pagemap pagemap);
  ~PagemapTracker() override;

  [[nodiscard]] TrackerKind kind() const override { return TrackerKind::kPagemapScan; }
  std::expected<void, Error> arm() override;
  std::expected<void, Error> collect(pages::Bitmap& out) override;
  std::expected<void, Error> disarm() override;
  [[nodiscard]] bool wants_copies() const override { return any_huge_; }
  void note_copied(pages::PageNumber page, pages::PageBytes bytes) override;
  void note_zero(pages::PageNumber page) override;

 private:
  void on_removed(QemuRange range) override;
  void on_failed(Error error) override;
  std::expected<void, Error> collect_small(const Region& region, pages::Bitmap& out);
  std::expected<void, Error> collect_huge(const Region& region, pages::Bitmap& out);
  std::expected<void, Error> start_reader();

  const GuestRam& ram_;
  std::shared_ptr<KnownHashes> hashes_;
  Userfault userfault_;
  Pagemap pagemap_;
  RemovedPages removed_;
  std::mutex failure_mutex_;
  std::optional<Error> failure_;  // of the reader
  const bool has_balloon_;
  const bool continuing_;
  const bool learn_hashes_;
  const bool any_huge_;
  std::unique_ptr<UserfaultReader> reader_;  // last: ends before what it calls
};

}  // namespace godwit::memory
