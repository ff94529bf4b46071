#pragma once
// Threads that add to counters in a guest's RAM, mapped by this process, and keep account of it outside: no write may
// be lost, and nothing of before may come back, wherever its pages are meanwhile. And how long that is done.
//
// Owned by one test. Each thread has a word of its own in several places of each page, so that a page in which parts of
// two versions met is noticed too. They hold zeros when it begins (write_to()).

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "dataplane/pages/page.h"

namespace godwit::memory::test {

/// GODWIT_TORTURE_SECONDS, or as usual.
std::chrono::seconds torture_time(std::chrono::seconds usual = std::chrono::seconds(2));

class Counters {
 public:
  Counters(std::byte* ram, std::uint64_t page_count, std::uint32_t threads);
  ~Counters() { stop(); }
  Counters(const Counters&) = delete;
  Counters& operator=(const Counters&) = delete;

  void begin();
  /// Waits for all of them.
  void stop();
  /// False: some wait for a page still.
  bool stop_within(std::chrono::seconds limit);
  /// Counters that were not what had been written last when they were added to.
  [[nodiscard]] std::uint64_t wrong_met() const { return wrong_met_; }
  [[nodiscard]] std::uint64_t additions() const;
  /// The counters as they are to be, in what a page is to hold.
  void write_to(pages::PageNumber page, std::span<std::byte> content) const;

 private:
  void run(std::uint32_t id);

  std::byte* const ram_;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> wrong_met_{0};
  std::vector<std::vector<std::uint64_t>> counts_;  // of each thread, by page
  std::mutex mutex_;
  std::condition_variable ended_;
  std::size_t running_ = 0;  // behind the mutex
  std::vector<std::thread> threads_;
};

}  // namespace godwit::memory::test
