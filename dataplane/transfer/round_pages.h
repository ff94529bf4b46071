#pragma once
// The pages of one round that no lane has been given yet. One thread. Hands them out in page order, in blocks of
// neighbours to each lane, so that a lane fills a frame with two neighbouring pages and the destination places long
// runs.

#include <vector>

#include "dataplane/pages/bitmap.h"
#include "dataplane/transport/lane.h"

namespace godwit::transfer {

/// One zero run, limited so that the destination's giving back of memory never holds up its lcore for long.
inline constexpr std::uint64_t kZeroRunPagesMax = 512;

/// Takes the first run of `zero`, in which nothing is set below `from`, into a work; moves `from` behind it.
void take_zero_run(pages::Bitmap& zero, pages::PageNumber& from, transport::Work& out);

class RoundPages {
 public:
  RoundPages() = default;
  explicit RoundPages(std::uint64_t page_count) : content_(page_count), zero_(page_count) {}

  /// Adds pages to send with content and pages to send as zero; disjoint, and new to this round.
  void add(const pages::Bitmap& content, const pages::Bitmap& zero);
  /// Takes pages out again that a newer round will carry. How many there were.
  std::uint64_t drop(const pages::Bitmap& pages);
  /// False when nothing is left. Sets page, count and zero of `out`.
  bool next(std::uint16_t lane, transport::Work& out);
  [[nodiscard]] std::uint64_t left() const { return content_left_ + zero_left_; }
  [[nodiscard]] std::uint64_t content_left() const { return content_left_; }
  [[nodiscard]] const pages::Bitmap& content() const { return content_; }
  [[nodiscard]] const pages::Bitmap& zero() const { return zero_; }

 private:
  struct Block {
    pages::PageNumber at = 0, end = 0;
  };
  bool next_zero(transport::Work& out);
  bool take_block(Block& block);

  pages::Bitmap content_, zero_;
  std::uint64_t content_left_ = 0, zero_left_ = 0;
  pages::PageNumber zero_from_ = 0;   // nothing set below
  pages::PageNumber block_from_ = 0;  // blocks were taken up to here
  std::vector<Block> blocks_;         // by lane
};

}  // namespace godwit::transfer
