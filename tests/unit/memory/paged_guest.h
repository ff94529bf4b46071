#pragma once
// A guest of which pages are missing, its tracker, its pager, and threads that stand for the lcores: what tests of
// demand paging share.
//
// Owned by one test; failures are gtest's. Page numbers that the source would send are what pattern_of() says.

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "dataplane/memory/demand_pager.h"
#include "dataplane/pages/page_digest.h"
#include "tests/unit/memory/guest_process.h"

namespace godwit::memory::test {

class PagedGuest {
 public:
  PagedGuest(TrackerKind kind, bool huge);
  ~PagedGuest();

  GuestOptions options;
  bool balloon = false;
  bool learn_hashes = false;
  std::vector<QemuRange> ranges;  // of the userfaultfds but the first, once the guest runs
  std::string file;

  /// nullopt, or why this cannot be tested here.
  std::optional<std::string> cannot() const;
  void start();
  std::expected<void, Error> start_tracker(bool continuing = false);
  PagerRequest request();
  /// Pages are reusable, missing or zero in turns of various lengths; then all that is needed to run.
  void prepare(const std::function<bool(pages::PageNumber)>& is_missing);
  void arm();

  /// As an lcore would: reads faults and places what is asked for, as number `lcore`.
  void serve_once(std::uint32_t lcore = 0);
  /// serve_once() on a thread until stop_serving().
  void begin_serving();
  void stop_serving();
  /// Places these pages as number `lcore`, in bursts.
  void place(std::uint32_t lcore, pages::PageNumber first, std::uint64_t count);
  /// And waits for what another lcore is placing.
  void place_all(std::uint32_t lcore);
  pages::Bitmap collect();

  std::unique_ptr<GuestProcess> guest;
  std::optional<GuestRam> ram;
  std::shared_ptr<KnownHashes> hashes;
  std::unique_ptr<WrittenTracker> tracker;
  std::unique_ptr<DemandPager> pager;
  std::vector<pages::PageNumber> demanded;  // by serve_once(), all

 private:
  const TrackerKind kind_;
  const bool huge_;
  std::optional<HugePages> huge_pages_;
  std::atomic<bool> stop_{false};
  std::thread server_;
};

}  // namespace godwit::memory::test
