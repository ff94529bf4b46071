#pragma once
// In which order a source streams the pages that nobody has asked for. Policy objects; one thread, the source's home
// lcore. An order owns no pages: it is shown what is left and names the next block of it.

#include <array>
#include <memory>
#include <vector>

#include "dataplane/pages/bitmap.h"
#include "dataplane/transfer/guest.h"

namespace godwit::transfer {

enum class PullOrderKind : std::uint8_t {
  kSequential,
  kAroundFaults,  // outwards from the pages that were asked for last
  kByRank         // hottest first, as named from outside
};

class PullOrder {
 public:
  /// Of one block: some frames for one lane, and not long behind the next fault.
  static constexpr std::uint64_t kBlockPages = 32;

  virtual ~PullOrder() = default;
  /// A vCPU waits for this page.
  virtual void on_fault(pages::PageNumber) {}
  /// The next pages to send: those of `left`, which has any, in a run whose first page is one of them. At most
  /// kBlockPages long.
  virtual PageRun next_block(const pages::Bitmap& left) = 0;
};

/// `rank`: for kByRank, the hottest pages first; what it does not name comes last, in page order.
[[nodiscard]] std::unique_ptr<PullOrder> make_pull_order(PullOrderKind kind, std::vector<PageRun> rank);

}  // namespace godwit::transfer
