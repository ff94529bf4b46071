#pragma once
// Takes pages out of a running guest's memory, so that it stays within its resident budget, and loses no write: pin,
// punch, read. The pinned page is the one that every mapping had; after the punch nobody can write it any more, so what
// is read from the pin is its last content, and who touches the page waits for the pager.
//
// Owner: the guest's split. It uses RAM, pager and pages on their way out, which outlive it. Thread: one, no lcore: a
// batch of 64 pages takes some 0.2 ms, in which faults on those pages wait, and QEMU's removals. Units: pages. Failure:
// error values; kUnsupported: this guest's pages cannot be evicted, and why. After kLost guest RAM is damaged.
//
// What makes it sound:
//   * Each page is held (demand_pager.h) from before it is pinned until its content is at hand: nobody places it.
//   * It is missing before it is punched.
//   * A page of tmpfs that is part of a larger folio is left alone: pinned and punched it would be zeroed in place, and
//     no fault would ever come. It is looked at when it is pinned, as nothing can make it part of one from then on.
//   * Whether it was written since the tracker's last collect() is the tracker's to say when it comes back.
//   * Who gave it back (balloon) before the batch or after it is told apart by the pager.
//
// What it cannot see: a pin of somebody else's that is written through later, such as QEMU's direct I/O
// (cache.direct=on) or vfio. The device would write what is no page of the guest any more. Whoever makes an evictor
// refuses such a guest by what QMP tells. Copies by the kernel (virtio, vhost-net, KVM) fault like any access.

#include <cstdint>
#include <deque>
#include <expected>
#include <memory>
#include <optional>
#include <vector>

#include "base/single_writer.h"
#include "base/unique_fd.h"
#include "dataplane/memory/demand_pager.h"
#include "dataplane/memory/leaving_pages.h"
#include "dataplane/memory/victim_policy.h"

namespace godwit::memory {

struct EvictorRequest {
  GuestRam* ram = nullptr;
  WrittenTracker* tracker = nullptr;
  DemandPager* pager = nullptr;  // armed
  LeavingPages* leaving = nullptr;
  VictimPolicy* policy = nullptr;
  std::uint64_t high_pages = 0;  // eviction begins above this, which leaves placing room below the budget
  std::uint64_t low_pages = 0;   // and goes on down to this
};

struct EvictedBatch {
  std::vector<LeavingPage> pages;             // to be sent to their holders
  std::vector<pages::PageNumber> zero_pages;  // need no holder, nor any memory: not missing, and holes
  bool somebody_waits = false;                // for a page of the batch: wake who reads faults
  bool nothing_left = false;                  // nothing that could be evicted now is in memory
};

struct EvictorStats {
  std::uint64_t batches = 0;
  std::uint64_t evicted_pages = 0;  // zero pages among them
  std::uint64_t zero_pages = 0;
  std::uint64_t busy_pages = 0;  // chosen, and being placed or removed, or gone
  std::uint64_t huge_pages = 0;  // chosen, and part of a huge page
};

class Evictor {
 public:
  static std::expected<std::unique_ptr<Evictor>, Error> create(const EvictorRequest& request);

  /// Other watermarks from now on, as if it had just begun; what is counted goes on.
  void set_marks(std::uint64_t high_pages, std::uint64_t low_pages);
  /// Whether to evict: above the high watermark, and from then on until the low one is reached.
  std::expected<bool, Error> wanted();
  /// Until the low one is reached, also from below the high one.
  void go_down() { evicting_ = true; }
  /// Chooses what leaves next until `stay_pages` are here. Those, and what is missing now; nothing else leaves before
  /// any_may_leave().
  std::expected<pages::Bitmap, Error> set_apart(std::uint64_t stay_pages);
  void any_may_leave();
  /// One batch. Empty where the pages on their way out have no room left: some must be confirmed first.
  std::expected<EvictedBatch, Error> evict_batch();
  /// Any thread.
  [[nodiscard]] EvictorStats stats() const;

 private:
  enum class Fate : std::uint8_t { kStays, kTaken, kZero };

  Evictor(const EvictorRequest& request, UniqueFd own_pagemap, UniqueFd page_flags);
  std::expected<void, Error> choose(EvictedBatch& out);
  std::expected<void, Error> look();
  void choose_victims(std::uint64_t count, std::vector<pages::PageNumber>& victims);
  void keep_resident();
  std::expected<void, Error> take_out(std::uint32_t pinned);
  std::expected<void, Error> punch(PageRange pages);
  [[nodiscard]] std::size_t run_length(std::size_t place, std::size_t end) const;
  std::expected<void, Error> choose_small(std::size_t place, std::size_t count);
  void settle(EvictedBatch& out);

  EvictorRequest with_;
  const UniqueFd own_pagemap_;  // /proc/self/pagemap
  const UniqueFd page_flags_;   // /proc/kpageflags
  bool evicting_ = false;
  pages::Bitmap here_;                          // candidates of this round
  std::optional<pages::Bitmap> may_leave_;      // none: any
  std::deque<pages::PageNumber> chosen_ahead_;  // leave next
  std::vector<pages::PageNumber> batch_;
  std::vector<Fate> fates_;
  SingleWriter<std::uint64_t> batches_, evicted_, zero_, busy_, huge_;
};

}  // namespace godwit::memory
