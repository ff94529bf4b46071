#include "dataplane/transfer/pull_placer.h"

#include <algorithm>

namespace godwit::transfer {
namespace {
TransferError broken(std::string_view text) {
  return {Failure::kPeerProtocol, "the source broke the protocol: it " + std::string(text)};
}
}  // namespace

bool PullPlacer::takes(pages::PageNumber first, std::uint64_t count) {
  if (error_ || gate_.judge(kPullRound) == RoundGate::Verdict::kLate) {
    return false;  // nothing is wanted any more
  }
  if (guest_ == nullptr || gate_.judge(kPullRound) != RoundGate::Verdict::kTake) {
    error_ = broken("sent a page before the destination had said what is missing");
  } else if (first >= page_count_ || count > page_count_ - first) {
    error_ = broken("sent page " + std::to_string(first) + " + " + std::to_string(count) + " of " +
                    std::to_string(page_count_));
  }
  return !error_;
}

void PullPlacer::on_page(pages::PageNumber page, std::uint32_t offset, std::span<const std::byte> bytes) {
  if (!takes(page, 1)) {
    return;
  }
  if (bytes.empty() || offset >= pages::kPageSize || bytes.size() > pages::kPageSize - offset) {
    error_ = broken("sent bytes outside a page");
    return;
  }
  if (bytes.size() == pages::kPageSize) {
    writes_.push_back({page, bytes});
    return;
  }
  const PageAssembly::Result result = assembly_.add(page, offset, static_cast<std::uint32_t>(bytes.size()));
  if (result == PageAssembly::Result::kNothingNew) {
    return;
  }
  if (result == PageAssembly::Result::kRefused) {
    error_ = broken("left too many pages in fragments");
    return;
  }
  const auto found = partial_.try_emplace(page).first;
  if (!found->second) {
    found->second = std::make_unique_for_overwrite<std::byte[]>(pages::kPageSize);
  }
  std::copy(bytes.begin(), bytes.end(), found->second.get() + offset);
  if (result == PageAssembly::Result::kComplete) {
    writes_.push_back({page, {found->second.get(), pages::kPageSize}});
    whole_.push_back(std::move(found->second));
    partial_.erase(found);
  }
}

void PullPlacer::on_zero_run(pages::PageNumber first, std::uint64_t count) {
  if (count == 0 || !takes(first, count)) {
    return;
  }
  zeroed_.clear();
  if (const auto placed = guest_->place_zero(lcore_, first, count, zeroed_); !placed) {
    error_ = TransferError{Failure::kGuestMemory, placed.error().text};
    return;
  }
  for (const PageRun& run : zeroed_) {
    PlacedRun report{.first = run.first, .count = run.count, .round = kPullRound, .zero = true};
    for (pages::PageNumber page = run.first; gate_.hashes() && page < run.first + run.count; ++page) {
      report.digest += pages::digest_term(page, pages::zero_page_hash());
    }
    note_placed(report);
  }
}

void PullPlacer::note_placed(const PlacedRun& run) {
  if (!placed_.empty()) {
    PlacedRun& last = placed_.back();
    if (last.first + last.count == run.first && last.zero == run.zero) {
      last.count += run.count;
      last.digest += run.digest;
      return;
    }
  }
  placed_.push_back(run);
}

void PullPlacer::place() {
  if (writes_.empty()) {
    return;
  }
  if (!error_ && gate_.judge(kPullRound) == RoundGate::Verdict::kTake) {
    if (const auto placed = guest_->place(lcore_, writes_); !placed) {
      error_ = TransferError{Failure::kGuestMemory, placed.error().text};
    }
    // Also after an error: what was placed before it is there.
    for (const PageWrite& write : writes_) {
      if (write.placed) {
        PlacedRun run{.first = write.page, .count = 1, .round = kPullRound};
        if (gate_.hashes()) {
          run.digest = pages::digest_term(write.page, pages::hash_page(write.bytes.first<pages::kPageSize>()));
        }
        note_placed(run);
      }
    }
  }
  writes_.clear();
  whole_.clear();
}

void PullPlacer::forget_lanes() {
  assembly_ = {};
  partial_.clear();
  error_.reset();
}

}  // namespace godwit::transfer
