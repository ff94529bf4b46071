#include "dataplane/transfer/pull_pages.h"

#include <algorithm>
#include <utility>

#include "dataplane/transfer/round_pages.h"

namespace godwit::transfer {

PullPages::PullPages(std::uint64_t page_count, std::unique_ptr<PullOrder> order)
    : order_(std::move(order)),
      unsorted_(page_count),
      content_(page_count),
      zero_(page_count),
      sent_(page_count),
      in_flight_(page_count),
      priority_(page_count) {}

void PullPages::load(pages::Bitmap missing) {
  unsorted_ = std::move(missing);
  unsorted_.and_not(sent_);
  unsorted_left_ = unsorted_.count();
  sort_from_ = 0;
}

void PullPages::forget_lanes() {
  for (pages::Bitmap* set : {&unsorted_, &content_, &zero_, &sent_, &in_flight_, &priority_}) {
    set->clear_all();
  }
  unsorted_left_ = sorting_left_ = content_left_ = zero_left_ = in_flight_count_ = 0;
  asked_.clear();
  blocks_.clear();
}

void PullPages::take(pages::PageNumber page) {
  for (const auto& [set, left] :
       {std::pair(&unsorted_, &unsorted_left_), std::pair(&content_, &content_left_), std::pair(&zero_, &zero_left_)}) {
    if (set->test(page)) {
      set->clear(page);
      --*left;
    }
  }
}

bool PullPages::ask(pages::PageNumber page, bool again) {
  order_->on_fault(page);
  // Once acknowledged it has arrived, and only a timer that says otherwise is believed.
  if (priority_.test(page) || (sent_.test(page) && !again)) {
    return false;
  }
  take(page);
  sent_.set(page);
  priority_.set(page);
  asked_.push_back(page);
  return true;
}

std::optional<pages::Bitmap> PullPages::take_unsorted(std::uint64_t pages_max) {
  if (unsorted_left_ == 0) {
    return std::nullopt;
  }
  pages::Bitmap stretch(unsorted_.size());
  while (sorting_left_ < pages_max && unsorted_left_ != 0) {
    const pages::PageNumber first = unsorted_.next_set(sort_from_);
    const pages::PageNumber end =
        unsorted_.next_clear(first, std::min(first + (pages_max - sorting_left_), unsorted_.size()));
    stretch.set_range(first, end - first);
    unsorted_.clear_range(first, end - first);
    unsorted_left_ -= end - first;
    sorting_left_ += end - first;
    sort_from_ = end;
  }
  return stretch;
}

void PullPages::sorted(pages::Bitmap content, pages::Bitmap zero) {
  sorting_left_ = 0;
  content_ |= content.and_not(sent_);
  zero_ |= zero.and_not(sent_);
  content_left_ = content_.count();
  zero_left_ = zero_.count();
  zero_from_ = 0;
}

void PullPages::hand_out(const transport::Work& work) {
  sent_.set_range(work.page, work.count);
  for (pages::PageNumber page = work.page; page < work.page + work.count; ++page) {
    in_flight_count_ += in_flight_.test(page) ? 0U : 1U;
  }
  in_flight_.set_range(work.page, work.count);
}

bool PullPages::next_asked(transport::Work& out) {
  if (asked_.empty()) {
    return false;
  }
  out.page = asked_.front();
  out.count = 1;
  asked_.pop_front();
  hand_out(out);
  return true;
}

bool PullPages::next_background(std::uint16_t lane, transport::Work& out) {
  if (zero_left_ != 0) {
    take_zero_run(zero_, zero_from_, out);
    zero_left_ -= out.count;
    hand_out(out);
    return true;
  }
  if (content_left_ == 0) {
    return false;
  }
  if (lane >= blocks_.size()) {
    blocks_.resize(std::size_t{lane} + 1);
  }
  PageRun& block = blocks_[lane];
  const pages::PageNumber end = block.first + block.count;
  pages::PageNumber page = content_.next_set(block.first, end);
  if (page == end) {
    block = order_->next_block(content_);
    page = block.first;
  }
  content_.clear(page);
  --content_left_;
  block.count -= page + 1 - block.first;
  block.first = page + 1;
  out.page = page;
  out.count = 1;
  out.zero = false;
  hand_out(out);
  return true;
}

void PullPages::on_acknowledged(const transport::Work& work) {
  for (pages::PageNumber page = work.page; page < work.page + work.count; ++page) {
    if (in_flight_.test(page)) {
      in_flight_.clear(page);
      --in_flight_count_;
    }
    priority_.clear(page);
  }
}

}  // namespace godwit::transfer
