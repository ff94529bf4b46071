#pragma once
// A guest within a resident budget: pager, evictor, and a store of this process that stands for all sub hosts. What
// tests of eviction share; the guest itself, its RAM and its tracker are the test's.
//
// Owned by one test; failures are gtest's. Step by step (evict_once(), serve_once()) or on two threads of its own.

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "dataplane/memory/coldest_first.h"
#include "dataplane/memory/evictor.h"

namespace godwit::memory::test {

struct SplitLimits {
  std::uint64_t budget_pages = 0;
  std::uint64_t high_pages = 0;
  std::uint64_t low_pages = 0;
  std::uint32_t slots = 256;
};

class SplitGuest {
 public:
  SplitGuest(GuestRam& ram, WrittenTracker& tracker, SplitLimits limits);
  ~SplitGuest();

  /// Makes what it needs, with nothing missing, and arms.
  void start();
  MissingOf of() const;
  PagerRequest pager_request();
  std::expected<std::unique_ptr<Evictor>, Error> make_evictor();

  /// A batch, whatever the watermarks say; what left stays on its way until confirm_all().
  EvictedBatch evict_once();
  /// Batches until nothing is left that could go.
  void evict_all();
  void confirm_all();
  void serve_once();
  /// Both, on threads, by the watermarks, until stop().
  void begin();
  void stop();
  void begin_serving();

  /// The page's content, wherever it is, while nothing is evicted; safe beside begin().
  std::vector<std::byte> content(pages::PageNumber page);
  /// Copies what the tracker says was written, as a migration would.
  void copy_written(std::vector<std::byte>& copied);
  std::uint64_t resident_pages() const;

  std::string missing_file, leaving_file;
  std::unique_ptr<ResidentRoom> room;
  std::unique_ptr<DemandPager> pager;
  std::unique_ptr<LeavingPages> leaving;
  std::unique_ptr<ColdestFirst> policy;
  std::unique_ptr<Evictor> evictor;
  std::uint64_t resident_most = 0;  // seen by the thread of begin()
  std::uint64_t from_leaving = 0;   // pages served before they were confirmed
  std::uint64_t from_store = 0;
  std::uint64_t written_pages = 0;  // by copy_written()

 private:
  void keep_evicting();

  GuestRam& ram_;
  WrittenTracker& tracker_;
  const SplitLimits limits_;
  std::vector<pages::PageNumber> again_;
  std::deque<LeavingPage> unconfirmed_;
  std::mutex evicting_;  // held by whoever evicts, and while pages are copied
  std::mutex store_mutex_;
  std::map<pages::PageNumber, std::vector<std::byte>> store_;
  std::atomic<bool> stop_{false};
  std::thread server_, evicting_thread_;
};

}  // namespace godwit::memory::test
