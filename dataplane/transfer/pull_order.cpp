#include "dataplane/transfer/pull_order.h"

#include <algorithm>
#include <utility>

#include "dataplane/transfer/fault_streams.h"

namespace godwit::transfer {
namespace {

constexpr std::size_t kCentresMax = 16;
/// How far a window grows to either side: 16 MiB, beyond which a fault says little about its neighbours.
constexpr std::uint64_t kReachPages = 4096;

PageRun block_at(const pages::Bitmap& left, pages::PageNumber first) {
  return {first, std::min(PullOrder::kBlockPages, left.size() - first)};
}

class Sequential : public PullOrder {
 public:
  PageRun next_block(const pages::Bitmap& left) override {
    pages::PageNumber first = left.next_set(at_);
    if (first == left.size()) {
      first = left.next_set(0);  // what other blocks have left behind
    }
    const PageRun block = block_at(left, first);
    at_ = block.first + block.count;
    return block;
  }

 private:
  pages::PageNumber at_ = 0;
};

class AroundFaults final : public PullOrder {
 public:
  void on_fault(pages::PageNumber page) override {
    streams_.on_fault(page);
    // A fault inside a window says that its pages are wanted.
    const auto same = std::find_if(centres_.begin(), centres_.end(), [page](const Centre& c) {
      return page + PullOrder::kBlockPages >= c.low && page < c.high + PullOrder::kBlockPages;
    });
    const auto last = same != centres_.end() ? same : centres_.end() - 1;
    std::rotate(centres_.begin(), last, last + 1);
    centres_.front() = {page, page + 1, page, page + 1, true};
  }

  PageRun next_block(const pages::Bitmap& left) override {
    if (const PageRun block = streams_.next(left, kBlockPages); block.count != 0) {
      return block;
    }
    for (Centre& centre : centres_) {
      if (const PageRun block = grow(centre, left); block.count != 0) {
        return block;
      }
    }
    return rest_.next_block(left);
  }

 private:
  struct Centre {
    pages::PageNumber low = 0, high = 0;  // the window: what is in it was handed out
    pages::PageNumber from = 0, to = 0;   // where it began
    bool down = false;                    // the side that had its turn last
  };

  static PageRun grow(Centre& centre, const pages::Bitmap& left) {
    for (int side = 0; side < 2; ++side) {
      centre.down = !centre.down;
      const PageRun block = centre.down ? below(centre, left) : above(centre, left);
      if (block.count != 0) {
        return block;
      }
    }
    return {};
  }
  static PageRun above(Centre& centre, const pages::Bitmap& left) {
    const pages::PageNumber limit = std::min(centre.to + kReachPages, left.size());
    const pages::PageNumber first = left.next_set(std::min(centre.high, limit), limit);
    if (first >= limit) {
      centre.high = limit;
      return {};
    }
    const PageRun block = block_at(left, first);
    centre.high = block.first + block.count;
    return block;
  }
  static PageRun below(Centre& centre, const pages::Bitmap& left) {
    const pages::PageNumber limit = centre.from - std::min(centre.from, kReachPages);
    while (centre.low > limit) {
      const pages::PageNumber low = centre.low - std::min(centre.low - limit, PullOrder::kBlockPages);
      const pages::PageNumber first = left.next_set(low, centre.low);
      const pages::PageNumber high = std::exchange(centre.low, low);
      if (first < high) {
        return {first, high - first};
      }
    }
    return {};
  }

  FaultStreams streams_;
  std::array<Centre, kCentresMax> centres_{};  // the latest first; empty ones are about page 0
  Sequential rest_;
};

class ByRank final : public PullOrder {
 public:
  explicit ByRank(std::vector<PageRun> rank) : rank_(std::move(rank)) {}
  PageRun next_block(const pages::Bitmap& left) override {
    for (; run_ < rank_.size(); ++run_, at_ = 0) {
      const pages::PageNumber begin = std::min(rank_[run_].first, left.size());
      const pages::PageNumber end = begin + std::min(rank_[run_].count, left.size() - begin);
      const pages::PageNumber first = left.next_set(std::min(std::max(begin, at_), end), end);
      if (first < end) {
        at_ = std::min(first + kBlockPages, end);
        return {first, at_ - first};
      }
    }
    return rest_.next_block(left);
  }

 private:
  std::vector<PageRun> rank_;
  std::size_t run_ = 0;
  pages::PageNumber at_ = 0;  // in that run
  Sequential rest_;
};

}  // namespace

std::unique_ptr<PullOrder> make_pull_order(PullOrderKind kind, std::vector<PageRun> rank) {
  switch (kind) {
    case PullOrderKind::kAroundFaults:
      return std::make_unique<AroundFaults>();
    case PullOrderKind::kByRank:
      return std::make_unique<ByRank>(std::move(rank));
    case PullOrderKind::kSequential:
      break;
  }
  return std::make_unique<Sequential>();
}

}  // namespace godwit::transfer
