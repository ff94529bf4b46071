#pragma once
// What the last copy of every page looked like: one hash a page, or "unknown", which equals nothing. The hash tracker
// and the refinement of written huge pages compare RAM with it.
//
// Any thread: each entry is one atomic word, because the lcore notes what it sends while a job collects.
// Rule that makes it sound: an entry is the hash of whatever the receiver may hold. A page that changed between the
// scan and its reading, and changed back before the next scan, would otherwise be lost; note_sent() turns such an entry
// into "unknown". A page that was sent several times may be held as any of those was, so one that differs is enough.

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "dataplane/pages/page.h"

namespace godwit::memory {

class KnownHashes {
 public:
  /// A page that truly hashes to this value is only reported too often.
  static constexpr std::uint64_t kUnknown = 0;

  explicit KnownHashes(std::uint64_t page_count) : hashes_(page_count, kUnknown) {}

  [[nodiscard]] std::uint64_t size() const { return hashes_.size(); }
  [[nodiscard]] std::uint64_t get(pages::PageNumber page) const { return entry(page).load(std::memory_order_relaxed); }
  /// Bytes of this hash were placed here, or are known by a retained image to be here.
  void set(pages::PageNumber page, std::uint64_t hash) { entry(page).store(hash, std::memory_order_relaxed); }
  void forget(pages::PageNumber page) { set(page, kUnknown); }
  /// Bytes of this hash are on their way to a receiver. Other bytes than those last noted: in doubt, reported by the
  /// next collect().
  void note_sent(pages::PageNumber page, std::uint64_t hash) {
    if (get(page) != hash) {
      forget(page);
    }
  }

 private:
  [[nodiscard]] std::atomic_ref<std::uint64_t> entry(pages::PageNumber page) const {
    GW_ASSERT(page < hashes_.size());
    return std::atomic_ref<std::uint64_t>(hashes_[page]);
  }
  mutable std::vector<std::uint64_t> hashes_;
};

}  // namespace godwit::memory
