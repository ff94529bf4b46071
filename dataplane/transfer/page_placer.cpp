#include "dataplane/transfer/page_placer.h"

#include <algorithm>

namespace godwit::transfer {

bool PagePlacer::takes(std::uint32_t round, pages::PageNumber first, std::uint64_t count) {
  if (error_) {
    return false;
  }
  switch (gate_.judge(round)) {
    case RoundGate::Verdict::kTake:
      break;
    case RoundGate::Verdict::kLate:
      return false;  // a late copy of what another packet has brought, or nothing is wanted any more
    case RoundGate::Verdict::kEarly:
      protocol_error("sent a page of round " + std::to_string(round) + ", which is not begun");
      return false;
  }
  if (first >= table_.size() || count > table_.size() - first) {
    protocol_error("sent page " + std::to_string(first) + " + " + std::to_string(count) + " of " +
                   std::to_string(table_.size()));
    return false;
  }
  if (round != round_) {
    begin_round(round);
  }
  return !error_;
}

void PagePlacer::begin_round(std::uint32_t round) {
  if (assembly_.size() != 0) {
    return protocol_error("left pages of round " + std::to_string(round_) + " in part");
  }
  // Clearing what was set costs less than clearing a bitmap of the whole guest, and late rounds are small.
  for (const PageRun& run : claimed_runs_) {
    claimed_.clear_range(run.first, run.count);
  }
  claimed_runs_.clear();
  round_ = round;
}

void PagePlacer::claim(pages::PageNumber first, std::uint64_t count) {
  claimed_.set_range(first, count);
  if (!claimed_runs_.empty() && claimed_runs_.back().first + claimed_runs_.back().count == first) {
    claimed_runs_.back().count += count;
  } else {
    claimed_runs_.push_back({first, count});
  }
}

void PagePlacer::note_placed(pages::PageNumber first, std::uint64_t count, bool zero) {
  if (!placed_.empty()) {
    PlacedRun& last = placed_.back();
    if (last.first + last.count == first && last.round == round_ && last.zero == zero) {
      last.count += count;
      return;
    }
  }
  placed_.push_back({.first = first, .count = count, .round = round_, .zero = zero});
}

void PagePlacer::forget_generation(pages::PageNumber page) {
  // Another lcore may look at a neighbour's word; a hostile peer may even have two lcores write this one.
  std::atomic_ref<pages::Generation>(table_.entries()[page])
      .store(pages::kUnknownGeneration, std::memory_order_relaxed);
}

void PagePlacer::on_page(std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                         std::span<const std::byte> bytes) {
  if (!takes(round, page, 1) || claimed_.test(page)) {
    return;
  }
  if (bytes.empty() || offset >= pages::kPageSize || bytes.size() > pages::kPageSize - offset) {
    return protocol_error("sent bytes outside a page");
  }
  PageAssembly::Result result = PageAssembly::Result::kComplete;
  if (bytes.size() == pages::kPageSize) {
    assembly_.forget(page);
  } else {
    result = assembly_.add(page, offset, static_cast<std::uint32_t>(bytes.size()));
  }
  partial_.set(assembly_.size());
  if (result == PageAssembly::Result::kNothingNew) {
    return;
  }
  if (result == PageAssembly::Result::kRefused) {
    return protocol_error("left too many pages in fragments");
  }
  forget_generation(page);
  arrivals_.push_back({page, offset, bytes});
  if (result == PageAssembly::Result::kComplete) {
    claim(page, 1);
    completed_.push_back(page);
  }
}

void PagePlacer::on_zero_run(std::uint32_t round, pages::PageNumber first, std::uint64_t count) {
  if (count == 0 || !takes(round, first, count)) {
    return;
  }
  const pages::PageNumber end = first + count;
  for (pages::PageNumber at = first; assembly_.size() != 0 && at < end; ++at) {
    if (assembly_.partial(at)) {
      return protocol_error("sent page " + std::to_string(at) + " in part and as zero in one round");
    }
  }
  for (pages::PageNumber at = claimed_.next_clear(first); at < end;) {
    const pages::PageNumber stop = std::min(claimed_.next_set(at), end);
    for (pages::PageNumber page = at; page < stop; ++page) {
      forget_generation(page);
    }
    if (const auto zeroed = memory_.zero_pages(at, stop - at); !zeroed) {
      error_ = TransferError{Failure::kGuestMemory, zeroed.error().text};
      return;
    }
    claim(at, stop - at);
    note_placed(at, stop - at, true);
    at = claimed_.next_clear(stop);
  }
}

void PagePlacer::place() {
  if (arrivals_.empty()) {
    return;
  }
  if (!error_ && gate_.judge(round_) == RoundGate::Verdict::kTake) {
    if (const auto placed = memory_.place_pages(arrivals_); !placed) {
      error_ = TransferError{Failure::kGuestMemory, placed.error().text};
    } else {
      for (const pages::PageNumber page : completed_) {
        note_placed(page, 1, false);
      }
    }
  }
  arrivals_.clear();
  completed_.clear();
}

void PagePlacer::protocol_error(std::string text) {
  error_ = TransferError{Failure::kPeerProtocol, "the source broke the protocol: " + std::move(text)};
}

}  // namespace godwit::transfer
