#pragma once
// How a destination whose guest may run already places what arrives on the lanes of one lcore: whole pages only, put
// together from fragments first, each as one step for whoever looks (paging_guest.h).
//
// One per lcore; only that lcore calls it. Placers may get the same page (asked for, and in the background): the
// missing set lets one of them place it. The table is not touched: it says already what the page will be. Hashes are of
// what arrived: memory may be another when somebody looks. Failure: error(), once; nothing is placed after it.

#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "dataplane/pages/page_digest.h"
#include "dataplane/transfer/page_assembly.h"
#include "dataplane/transfer/page_placer.h"
#include "dataplane/transfer/paging_guest.h"

namespace godwit::transfer {

class PullPlacer {
 public:
  /// `guest` null: nothing is ever pulled. `gate` is open for kPullRound while pages are wanted.
  PullPlacer(PagingGuest* guest, std::uint32_t lcore, std::uint64_t page_count, const RoundGate& gate)
      : guest_(guest), lcore_(lcore), page_count_(page_count), gate_(gate) {}

  /// As LaneUser has them, of kPullRound; bytes must stay valid until place().
  void on_page(pages::PageNumber page, std::uint32_t offset, std::span<const std::byte> bytes);
  void on_zero_run(pages::PageNumber first, std::uint64_t count);
  /// End of a receive burst.
  void place();
  /// What has been placed since the caller last cleared it.
  [[nodiscard]] std::vector<PlacedRun>& placed() { return placed_; }
  [[nodiscard]] const std::optional<TransferError>& error() const { return error_; }
  /// New lanes: what fragments the old ones brought will not be completed.
  void forget_lanes();

 private:
  [[nodiscard]] bool takes(pages::PageNumber first, std::uint64_t count);
  void note_placed(const PlacedRun& run);

  PagingGuest* const guest_;
  const std::uint32_t lcore_;  // as PagingGuest counts them
  const std::uint64_t page_count_;
  const RoundGate& gate_;
  PageAssembly assembly_;
  std::unordered_map<pages::PageNumber, std::unique_ptr<std::byte[]>> partial_;
  std::vector<std::unique_ptr<std::byte[]>> whole_;  // put together, until place()
  std::vector<PageWrite> writes_;
  std::vector<PageRun> zeroed_;
  std::vector<PlacedRun> placed_;
  std::optional<TransferError> error_;
};

}  // namespace godwit::transfer
