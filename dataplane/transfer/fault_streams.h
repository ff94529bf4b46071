#pragma once
// Where the next faults will be: whoever faulted at equal distances (a sweep through memory, a column of a matrix) goes
// on so. Several streams at once, told apart by where they are, because vCPUs and arrays take turns: processors'
// prefetchers keep a table like this one, and Leap (Al Maruf and Chowdhury, ATC 2020) predicts strides of remote
// memory. A wrong guess costs nothing but the order: every page has to come.
//
// A stream runs further ahead with each fault that it foresaw. One thread; no units but pages; nothing fails.

#include <array>
#include <cstdint>

#include "dataplane/pages/bitmap.h"
#include "dataplane/transfer/guest.h"

namespace godwit::transfer {

class FaultStreams {
 public:
  /// The vCPUs of a large guest, a few arrays each.
  static constexpr std::size_t kStreamsMax = 32;
  /// Faults further apart are of two streams: a guest's own huge page (2 MiB) is the longest run of its addresses that
  /// is one of ours too.
  static constexpr std::uint64_t kStrideMax = 512;
  /// One fault in so many then; of a link of 1 Gbit/s that is 8 ms.
  static constexpr std::uint64_t kAheadMax = 256;

  /// A vCPU waits for this page.
  void on_fault(pages::PageNumber page);
  /// The next pages of `left` that a stream will ask for, those of the latest fault first: a run of at most `pages_max`
  /// whose first page is one of them; empty: none is foreseen.
  PageRun next(const pages::Bitmap& left, std::uint64_t pages_max);

 private:
  struct Stream {
    std::int64_t last = INT64_MIN;  // its latest fault; INT64_MIN: no stream
    std::int64_t stride = 0;        // 0: not known yet
    std::int64_t next = 0;          // to be handed out, if `ahead` is not 0
    std::uint64_t ahead = 0;        // pages still to be handed out
    std::uint64_t window = 0;       // how far ahead of `last` it runs
    /// It foresaw a fault.
    [[nodiscard]] bool holds() const { return window > 1; }
    [[nodiscard]] bool foresaw(std::int64_t page) const;
    void go_on(std::int64_t page);
    void begin(std::int64_t page);
  };
  Stream& oldest();
  Stream& stream_of(std::int64_t page);

  std::array<Stream, kStreamsMax> streams_{};  // the latest first
};

}  // namespace godwit::transfer
