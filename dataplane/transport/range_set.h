#pragma once
// A set of byte ranges [begin, end) above a floor that only grows: what has arrived, or been acknowledged, out of
// order. Ranges that touch become one. Owner: one lane; its lcore; fixed capacity, no allocation after construction;
// insert() fails when it is full.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/check.h"

namespace godwit::transport {

class RangeSet {
 public:
  struct Range {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };

  explicit RangeSet(std::size_t capacity) : capacity_(capacity), ranges_(std::make_unique<Range[]>(capacity)) {}

  /// All below is in the set.
  [[nodiscard]] std::uint64_t floor() const { return floor_; }
  [[nodiscard]] std::size_t range_count() const { return count_; }
  [[nodiscard]] bool contains(std::uint64_t at) const {
    const Range* const next = first_ending_after(at);
    return at < floor_ || (next != end() && next->begin <= at);
  }

  /// False: the set would need more ranges than it has room for, and is unchanged.
  [[nodiscard]] bool insert(std::uint64_t begin, std::uint64_t end_at) {
    GW_ASSERT(begin < end_at);
    if (begin <= floor_) {
      floor_ = std::max(floor_, end_at);
      absorb_into_floor();
      return true;
    }
    // [first, last) touch the new range.
    Range* const first =
        std::lower_bound(ranges_.get(), end(), begin, [](const Range& r, std::uint64_t v) { return r.end < v; });
    Range* last = first;
    while (last != end() && last->begin <= end_at) {
      begin = std::min(begin, last->begin);
      end_at = std::max(end_at, last->end);
      ++last;
    }
    if (first == last) {
      if (count_ == capacity_) {
        return false;
      }
      std::move_backward(first, end(), end() + 1);
      ++count_;
    } else {
      std::move(last, end(), first + 1);
      count_ -= static_cast<std::size_t>(last - first) - 1;
    }
    *first = {begin, end_at};
    return true;
  }

 private:
  [[nodiscard]] Range* end() const { return ranges_.get() + count_; }
  [[nodiscard]] const Range* first_ending_after(std::uint64_t at) const {
    return std::upper_bound(ranges_.get(), end(), at, [](std::uint64_t v, const Range& r) { return v < r.end; });
  }
  void absorb_into_floor() {
    Range* first = ranges_.get();
    while (first != end() && first->begin <= floor_) {
      floor_ = std::max(floor_, first->end);
      ++first;
    }
    std::move(first, end(), ranges_.get());
    count_ -= static_cast<std::size_t>(first - ranges_.get());
  }

  std::uint64_t floor_ = 0;
  std::size_t capacity_;
  std::size_t count_ = 0;
  std::unique_ptr<Range[]> ranges_;
};

}  // namespace godwit::transport
