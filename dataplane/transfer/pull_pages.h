#pragma once
// What a source has to give once the guest runs at the destination: what was asked for, what streams unasked, what is
// on its way. One thread, the home lcore. Its pages do not change any more, so a page may go out as often as is asked.

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "dataplane/pages/bitmap.h"
#include "dataplane/transfer/pull_order.h"
#include "dataplane/transport/lane.h"

namespace godwit::transfer {

class PullPages {
 public:
  PullPages(std::uint64_t page_count, std::unique_ptr<PullOrder> order);

  /// What the destination does not have, instead of anything before: on new lanes too. Pages asked for in between are
  /// not sent twice.
  void load(pages::Bitmap missing);
  /// Nothing is on its way any more, nothing is asked for, nothing known to be missing: the lanes are gone.
  void forget_lanes();

  /// A vCPU waits for `page`. `again`: it was asked for before and has not come. True: it goes out on the priority lane
  /// now; false: it is on its way, or has arrived.
  bool ask(pages::PageNumber page, bool again);
  /// Which of the next pages are zero is looked up in stretches: the next of them, of at most `pages_max`; nullopt: all
  /// is sorted.
  [[nodiscard]] std::optional<pages::Bitmap> take_unsorted(std::uint64_t pages_max);
  void sorted(pages::Bitmap content, pages::Bitmap zero);

  /// The next page that was asked for; whether it is zero is the caller's to see.
  bool next_asked(transport::Work& out);
  /// The next page or zero run for a bulk lane.
  bool next_background(std::uint16_t lane, transport::Work& out);
  void on_acknowledged(const transport::Work& work);

  /// Not handed out yet, of what is known to be missing.
  [[nodiscard]] std::uint64_t left() const { return unsorted_left_ + sorting_left_ + content_left_ + zero_left_; }
  /// All that is missing has been acknowledged.
  [[nodiscard]] bool all_sent() const { return left() == 0 && in_flight_count_ == 0 && asked_.empty(); }

 private:
  void hand_out(const transport::Work& work);
  /// Out of what waits unasked.
  void take(pages::PageNumber page);

  std::unique_ptr<PullOrder> order_;
  pages::Bitmap unsorted_, content_, zero_;  // disjoint: not handed out
  std::uint64_t unsorted_left_ = 0, sorting_left_ = 0, content_left_ = 0, zero_left_ = 0;
  pages::PageNumber sort_from_ = 0, zero_from_ = 0;
  std::vector<PageRun> blocks_;  // by lane
  std::deque<pages::PageNumber> asked_;
  pages::Bitmap sent_;       // handed out or asked for since the lanes are there
  pages::Bitmap in_flight_;  // handed out and not acknowledged
  pages::Bitmap priority_;   // asked for, and not acknowledged since
  std::uint64_t in_flight_count_ = 0;
};

}  // namespace godwit::transfer
