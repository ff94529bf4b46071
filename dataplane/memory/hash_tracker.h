#pragma once
// Written pages by comparing the hash of every page with that of its last copy: for kernels and QEMUs that allow
// nothing better.
//
// Owner: the guest. Thread: see written_tracker.h; collect() uses all cores and reads all RAM (about 100 ms a GiB and
// core). Content is compared, so a page that was written with what it held is not reported, and memory given back is
// found like any change.

#include "dataplane/memory/written_tracker.h"

namespace godwit::memory {

class HashTracker final : public WrittenTracker {
 public:
  /// The userfaultfds serve demand paging only.
  HashTracker(const TrackerRequest& request, std::shared_ptr<UserfaultSet> userfaults);

  [[nodiscard]] TrackerKind kind() const override { return TrackerKind::kHashes; }
  /// Hashes what is unknown; continuing: nothing, so that the first collect() reports every page that nobody knows.
  std::expected<void, Error> arm() override;
  std::expected<void, Error> collect(pages::Bitmap& out) override;
  [[nodiscard]] std::shared_ptr<UserfaultSet> userfaults() const override { return userfaults_; }
  std::expected<void, Error> end_paging() override;
  [[nodiscard]] bool compares_content() const override { return true; }
  void note_sent(pages::PageNumber page, pages::PageHash hash) override;
  void note_zero(pages::PageNumber page) override;

 private:
  const GuestRam& ram_;
  std::shared_ptr<KnownHashes> hashes_;
  std::shared_ptr<UserfaultSet> userfaults_;  // may be nullptr
  pages::Bitmap all_;
  const bool continuing_;
};

}  // namespace godwit::memory
