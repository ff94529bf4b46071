#include "dataplane/transfer/round_pages.h"

#include <algorithm>

namespace godwit::transfer {
namespace {
constexpr std::uint64_t kBlockPages = 32;
}

void take_zero_run(pages::Bitmap& zero, pages::PageNumber& from, transport::Work& out) {
  const pages::PageNumber first = zero.next_set(from);
  const pages::PageNumber end = zero.next_clear(first, std::min(first + kZeroRunPagesMax, zero.size()));
  zero.clear_range(first, end - first);
  from = end;
  out.page = first;
  out.count = end - first;
  out.zero = true;
}

void RoundPages::add(const pages::Bitmap& content, const pages::Bitmap& zero) {
  content_ |= content;
  zero_ |= zero;
  content_left_ = content_.count();
  zero_left_ = zero_.count();
  zero_from_ = 0;
  block_from_ = std::min(block_from_, content_.next_set(0));
}

std::uint64_t RoundPages::drop(const pages::Bitmap& pages) {
  const std::uint64_t before = left();
  content_.and_not(pages);
  zero_.and_not(pages);
  content_left_ = content_.count();
  zero_left_ = zero_.count();
  return before - left();
}

bool RoundPages::next_zero(transport::Work& out) {
  take_zero_run(zero_, zero_from_, out);
  zero_left_ -= out.count;
  return true;
}

bool RoundPages::take_block(Block& block) {
  const pages::PageNumber first = content_.next_set(block_from_);
  if (first < content_.size()) {
    block = {first, std::min(first + kBlockPages, content_.size())};
    block_from_ = block.end;
    return true;
  }
  // Every block is taken: help a lane that has not finished its own. Its bits tell it what is gone.
  for (const Block& other : blocks_) {
    const pages::PageNumber at = content_.next_set(other.at);
    if (at < other.end) {
      block = {at, other.end};
      return true;
    }
  }
  return false;
}

bool RoundPages::next(std::uint16_t lane, transport::Work& out) {
  if (zero_left_ != 0) {
    return next_zero(out);
  }
  if (content_left_ == 0) {
    return false;
  }
  if (lane >= blocks_.size()) {
    blocks_.resize(std::size_t{lane} + 1);
  }
  Block block = blocks_[lane];
  block.at = content_.next_set(block.at);
  if (block.at >= block.end) {
    const bool found = take_block(block);
    GW_ASSERT(found);  // content_left_ pages are in blocks or above block_from_
  }
  out.page = block.at;
  out.count = 1;
  out.zero = false;
  content_.clear(block.at);
  --content_left_;
  ++block.at;
  blocks_[lane] = block;
  return true;
}

}  // namespace godwit::transfer
