// What a destination does with placed pages: which generation they get, what is left to hash.

#include <algorithm>

#include "dataplane/transfer/destination_impl.h"

namespace godwit::transfer {
namespace {
constexpr std::uint64_t kHashRestPagesMax = 16384;  // of one job: some 8 ms
}

std::unique_ptr<DestinationShare> Destination::Impl::make_share() {
  GW_ASSERT(phase_ == Phase::kIdle);
  auto share = std::make_unique<DestinationShare>(memory_, table_, gate_);
  shares_.push_back(share.get());
  return share;
}

bool Destination::Impl::expects_pages(std::uint16_t lane) {
  if (lane == transport::kPriorityLane) {
    protocol_error("sent a page on the priority lane, where none was asked for");
  }
  return lane != transport::kPriorityLane;
}

void Destination::Impl::on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                                std::span<const std::byte> bytes) {
  if (expects_pages(lane)) {
    placer_.on_page(round, page, offset, bytes);
    fetch_own();
  }
}

void Destination::Impl::on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first,
                                    std::uint64_t count) {
  if (expects_pages(lane)) {
    placer_.on_zero_run(round, first, count);
    fetch_own();
  }
}

void Destination::Impl::place() {
  placer_.place();
  fetch_own();
}

void Destination::Impl::fetch_own() {
  for (const PlacedRun& run : placer_.placed()) {
    on_placed(run);
  }
  placer_.placed().clear();
  if (placer_.error()) {
    fail(placer_.error()->failure, placer_.error()->text);
  }
}

bool Destination::Impl::pump() {
  bool found = false;
  PlacedRun run;
  for (DestinationShare* share : shares_) {
    while (share->fetch(run)) {
      found = true;
      on_placed(run);
    }
    if (const TransferError* error = share->error(); error != nullptr && phase_ != Phase::kFailed) {
      found = true;
      fail(error->failure, error->text);
    }
  }
  return found;
}

std::uint64_t Destination::Impl::partial_pages() const {
  std::uint64_t sum = placer_.partial_pages();
  for (const DestinationShare* share : shares_) {
    sum += share->partial_pages();
  }
  return sum;
}

void Destination::Impl::on_placed(const PlacedRun& run) {
  if (phase_ != Phase::kRounds) {
    return;  // the pages stay unknown
  }
  if (run.round != round_) {
    return protocol_error("sent pages of round " + std::to_string(run.round) + " after its end");
  }
  if (round_ == 1) {
    placed_first_.set_range(run.first, run.count);
  }
  placed_pages_ += run.count;
  (run.zero ? totals_.pages_zero : totals_.pages_sent) += run.count;
  set_generation(run.first, run.count);
  hash_later(run.first, run.count);
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

void Destination::Impl::start_round(std::uint32_t round) {
  placed_pages_ = 0;
  round_ = round;
  acknowledged_ = false;
  gate_.begin(round);
}

// Round 1 is over: what it did not carry is as at the source. With a retained image these are the reusable pages, of
// the same generation on both sides already; without one the memory was zero, and so are these pages at the source.
void Destination::Impl::complete_first_round() {
  if (verify_ == Verify::kFull) {
    rest_ = pages::Bitmap(page_count_);
    rest_.set_all();
    rest_.and_not(placed_first_);
    rest_left_ = rest_.count();
  }
  if (has_retained_) {
    first_round_complete_ = true;
    source_table_ = {};
    return;
  }
  pages::Bitmap rest(page_count_);
  rest.set_all();
  rest.and_not(placed_first_);
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
