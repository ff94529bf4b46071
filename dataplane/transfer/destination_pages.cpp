// How a destination places pages: once a round, wholly or by fragments, and with which generation.

#include <algorithm>

#include "dataplane/transfer/destination_impl.h"

namespace godwit::transfer {
namespace {
constexpr std::uint64_t kHashRestPagesMax = 16384;  // of one job: some 8 ms
}

bool Destination::Impl::takes(std::uint32_t round, pages::PageNumber first, std::uint64_t count) {
  if (phase_ != Phase::kRounds || round < round_) {
    return false;  // a late copy of what another packet has brought, or nothing is wanted any more
  }
  if (round > round_ || !acknowledged_) {
    protocol_error("sent a page of round " + std::to_string(round) + ", which is not begun");
    return false;
  }
  if (first >= page_count_ || count > page_count_ - first) {
    protocol_error("sent page " + std::to_string(first) + " + " + std::to_string(count) + " of " +
                   std::to_string(page_count_));
    return false;
  }
  return true;
}

void Destination::Impl::claim(pages::PageNumber first, std::uint64_t count) {
  placed_.set_range(first, count);
  if (!placed_runs_.empty() && placed_runs_.back().first + placed_runs_.back().count == first) {
    placed_runs_.back().count += count;
  } else {
    placed_runs_.push_back({first, count});
  }
}

void Destination::Impl::on_page(std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                                std::span<const std::byte> bytes) {
  if (!takes(round, page, 1) || placed_.test(page)) {
    return;
  }
  if (bytes.empty() || offset >= pages::kPageSize || bytes.size() > pages::kPageSize - offset) {
    return protocol_error("sent bytes outside a page");
  }
  const bool whole = bytes.size() == pages::kPageSize;
  PageAssembly::Result result = PageAssembly::Result::kComplete;
  if (whole) {
    assembly_.forget(page);
  } else {
    result = assembly_.add(page, offset, static_cast<std::uint32_t>(bytes.size()));
  }
  if (result == PageAssembly::Result::kNothingNew) {
    return;
  }
  if (result == PageAssembly::Result::kRefused) {
    return protocol_error("left too many pages in fragments");
  }
  table_.set(page, pages::kUnknownGeneration);
  arrivals_.push_back({page, offset, bytes});
  if (result == PageAssembly::Result::kComplete) {
    claim(page, 1);
    completed_.push_back(page);
  }
  wake_ = wake_ || all_placed_.has_value();
}

void Destination::Impl::on_zero_run(std::uint32_t round, pages::PageNumber first, std::uint64_t count) {
  if (count == 0 || !takes(round, first, count)) {
    return;
  }
  const pages::PageNumber end = first + count;
  for (pages::PageNumber at = first; assembly_.size() != 0 && at < end; ++at) {
    if (assembly_.partial(at)) {
      return protocol_error("sent page " + std::to_string(at) + " in part and as zero in one round");
    }
  }
  for (pages::PageNumber at = placed_.next_clear(first); at < end;) {
    const pages::PageNumber stop = std::min(placed_.next_set(at), end);
    for (pages::PageNumber page = at; page < stop; ++page) {
      table_.set(page, pages::kUnknownGeneration);
    }
    if (const auto zeroed = memory_.zero_pages(at, stop - at); !zeroed) {
      return fail(Failure::kGuestMemory, zeroed.error().text);
    }
    claim(at, stop - at);
    placed_pages_ += stop - at;
    totals_.pages_zero += stop - at;
    set_generation(at, stop - at);
    hash_later(at, stop - at);
    at = placed_.next_clear(stop);
  }
  wake_ = wake_ || all_placed_.has_value();
}

void Destination::Impl::set_generation(pages::PageNumber first, std::uint64_t count) {
  for (pages::PageNumber page = first; page < first + count; ++page) {
    table_.set(page, round_ == 1 ? source_table_.get(page) : config_.epoch_base + round_);
  }
}

void Destination::Impl::hash_later(pages::PageNumber first, std::uint64_t count) {
  if (!hashes()) {
    return;
  }
  unhashed_pages_ += count;
  if (!unhashed_.empty() && unhashed_.back().first + unhashed_.back().count == first) {
    unhashed_.back().count += count;
  } else {
    unhashed_.push_back({first, count});
  }
}

void Destination::Impl::place() {
  if (arrivals_.empty()) {
    return;
  }
  if (phase_ == Phase::kRounds) {
    if (const auto placed = memory_.place_pages(arrivals_); !placed) {
      fail(Failure::kGuestMemory, placed.error().text);
    } else {
      for (const pages::PageNumber page : completed_) {
        set_generation(page, 1);
        hash_later(page, 1);
      }
      placed_pages_ += completed_.size();
      totals_.pages_sent += completed_.size();
    }
  }
  arrivals_.clear();
  completed_.clear();
}

void Destination::Impl::start_round(std::uint32_t round) {
  // Clearing what was set costs less than clearing a bitmap of the whole guest, and late rounds are small.
  for (const PageRun& run : placed_runs_) {
    placed_.clear_range(run.first, run.count);
  }
  placed_runs_.clear();
  placed_pages_ = 0;
  round_ = round;
  acknowledged_ = false;
}

// Round 1 is over: what it did not carry is as at the source. With a retained image these are the reusable pages, of
// the same generation on both sides already; without one the memory was zero, and so are these pages at the source.
void Destination::Impl::complete_first_round() {
  if (verify_ == Verify::kFull) {
    rest_ = pages::Bitmap(page_count_);
    rest_.set_all();
    rest_.and_not(placed_);
    rest_left_ = rest_.count();
  }
  if (has_retained_) {
    first_round_complete_ = true;
    source_table_ = {};
    return;
  }
  pages::Bitmap rest(page_count_);
  rest.set_all();
  rest.and_not(placed_);
  completing_ = true;
  executor_.submit(
      [self = shared_from_this(), rest = std::move(rest)] {
        self->table_.set_from(rest, self->source_table_);
        self->source_table_ = {};
      },
      [weak = weak_from_this()] {
        if (const auto self = weak.lock()) {
          self->completing_ = false;
          self->first_round_complete_ = true;
          self->wake_ = true;
        }
      });
}

std::vector<PageRun> Destination::Impl::take_unhashed() {
  std::vector<PageRun> runs;
  runs.swap(unhashed_);
  unhashed_pages_ = 0;
  for (std::uint64_t taken = 0; rest_left_ != 0 && taken < kHashRestPagesMax;) {
    const pages::PageNumber first = rest_.next_set(rest_from_);
    const std::uint64_t count = std::min(rest_.next_clear(first) - first, kHashRestPagesMax - taken);
    runs.push_back({first, count});
    rest_from_ = first + count;
    rest_left_ -= count;
    taken += count;
  }
  return runs;
}

}  // namespace godwit::transfer
