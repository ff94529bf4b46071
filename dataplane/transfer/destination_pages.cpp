// What a destination does with placed pages: which generation they get, what is left to hash.

#include <algorithm>
#include <array>

#include "dataplane/transfer/destination_impl.h"

namespace godwit::transfer {
namespace {
constexpr std::uint64_t kHashRestPagesMax = 16384;  // of one job: some 8 ms
}

void hash_runs(GuestMemory& memory, const std::vector<PageRun>& runs, pages::PageHashes& hashes) {
  std::array<std::byte, pages::kPageSize> bytes;
  for (const PageRun& run : runs) {
    for (pages::PageNumber page = run.first; page < run.first + run.count; ++page) {
      memory.read_page(page, 0, bytes);
      hashes.set(page, pages::hash_page(bytes));
    }
  }
}

std::unique_ptr<DestinationShare> Destination::Impl::make_share() {
  GW_ASSERT(lanes_.empty());
  auto share = std::make_unique<DestinationShare>(memory_, paging_, static_cast<std::uint32_t>(shares_.size() + 1),
                                                  table_, gate_);
  shares_.push_back(share.get());
  return share;
}

bool Destination::Impl::expects_pages(std::uint16_t lane, std::uint32_t round) {
  const bool expected = lane != transport::kPriorityLane || round == kPullRound;
  if (!expected) {
    protocol_error("sent a page of a round on the priority lane");
  }
  return expected;
}

void Destination::Impl::on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                                std::span<const std::byte> bytes) {
  if (expects_pages(lane, round)) {
    round == kPullRound ? pull_placer_.on_page(page, offset, bytes) : placer_.on_page(round, page, offset, bytes);
    fetch_own();
  }
}

void Destination::Impl::on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first,
                                    std::uint64_t count) {
  if (expects_pages(lane, round)) {
    round == kPullRound ? pull_placer_.on_zero_run(first, count) : placer_.on_zero_run(round, first, count);
    fetch_own();
  }
}

void Destination::Impl::place() {
  placer_.place();
  pull_placer_.place();
  fetch_own();
}

void Destination::Impl::fetch_own() {
  for (std::vector<PlacedRun>* placed : {&placer_.placed(), &pull_placer_.placed()}) {
    for (const PlacedRun& run : *placed) {
      on_placed(run);
    }
    placed->clear();
  }
  for (const std::optional<TransferError>* error : {&placer_.error(), &pull_placer_.error()}) {
    if (*error) {
      on_error(**error);
    }
  }
}

void Destination::Impl::on_error(const TransferError& error) {
  if (phase_ == Phase::kPaging && error.failure == Failure::kPeerProtocol) {
    return lose_connection(error.text);
  }
  fail(error.failure, error.text);
}

bool Destination::Impl::pump() {
  bool found = read_events();
  PlacedRun run;
  for (DestinationShare* share : shares_) {
    while (share->fetch(run)) {
      found = true;
      on_placed(run);
    }
    if (const TransferError* error = share->error(); error != nullptr && phase_ != Phase::kFailed && connected_) {
      found = true;
      on_error(*error);
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
  if (run.round == kPullRound) {
    return on_pulled(run);
  }
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
  if (is_split()) {
    stored_.clear_range(first, count);
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
  hash_rest(not_carried());
  if (has_retained_) {
    first_round_complete_ = true;
    drop_source_table();
    return;
  }
  completing_ = true;
  executor_.submit(
      [self = shared_from_this(), rest = not_carried()] {
        self->table_.set_from(rest, self->source_table_);
        self->drop_source_table();
      },
      [weak = weak_from_this()] {
        if (const auto self = weak.lock()) {
          self->completing_ = false;
          self->first_round_complete_ = true;
          self->wake_ = true;
        }
      });
}

pages::Bitmap Destination::Impl::not_carried() const {
  pages::Bitmap rest(page_count_);
  rest.set_all();
  rest.and_not(placed_first_);
  if (is_split()) {
    rest.and_not(stored_);
  }
  return rest;
}

/// Of what stays with stores it is needed to the end.
void Destination::Impl::drop_source_table() {
  if (!is_split()) {
    source_table_ = {};
  }
}

void Destination::Impl::hash_rest(pages::Bitmap not_carried) {
  if (verify_ == Verify::kFull) {
    rest_ = std::move(not_carried);
    rest_left_ = rest_.count();
  }
}

std::vector<PageRun> Destination::Impl::take_all_unhashed() {
  std::vector<PageRun> runs = take_unhashed();
  while (rest_left_ != 0) {
    const std::vector<PageRun> more = take_unhashed();
    runs.insert(runs.end(), more.begin(), more.end());
  }
  return runs;
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
