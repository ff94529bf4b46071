#pragma once
// How a destination places what arrives on the lanes of one lcore: each page once a round, wholly or by fragments.
//
// One per lcore; only that lcore calls it, but for partial_pages(). Different placers never get the same page in one
// round: the source hands each page to one lane, and a lane has one lcore at either end. That is also what keeps a late
// copy of round r from overwriting round r + 1, though the other round may be placed by another lcore: the round ended
// because this placer had placed the page, so it knows the copy.
//
// The table: a page becomes unknown here, before its first byte of a round is written. Its generation is set by the
// home lcore, to which placed() is told. So what nobody hears of any more (the migration failed) stays unknown.
// Failure: error(), once; nothing is placed after it.

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "base/single_writer.h"
#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/generation_table.h"
#include "dataplane/pages/page_digest.h"
#include "dataplane/transfer/guest.h"
#include "dataplane/transfer/migration.h"
#include "dataplane/transfer/page_assembly.h"

namespace godwit::transfer {

/// The round that pages are taken of: set by the home lcore, asked by all.
class RoundGate {
 public:
  enum class Verdict : std::uint8_t { kTake, kLate, kEarly };
  /// Nothing is wanted: before the first round, and after the end.
  void close() { state_.store(kClosed, std::memory_order_release); }
  /// Older rounds are over; this one is not acknowledged yet.
  void begin(std::uint32_t round) { state_.store(std::uint64_t{round} * 2, std::memory_order_release); }
  void open(std::uint32_t round) { state_.store(std::uint64_t{round} * 2 + 1, std::memory_order_release); }
  /// Pages of kPullRound are hashed as they arrive; before it is opened.
  void want_hashes() { hashes_.store(true, std::memory_order_relaxed); }
  [[nodiscard]] bool hashes() const { return hashes_.load(std::memory_order_relaxed); }
  [[nodiscard]] Verdict judge(std::uint32_t round) const {
    const std::uint64_t state = state_.load(std::memory_order_acquire);
    if (round < state / 2) {
      return Verdict::kLate;
    }
    return round == state / 2 && state % 2 != 0 ? Verdict::kTake : Verdict::kEarly;
  }

 private:
  static constexpr std::uint64_t kClosed = UINT64_MAX;
  std::atomic<std::uint64_t> state_{kClosed};
  std::atomic<bool> hashes_{false};
};

struct PlacedRun {
  pages::PageNumber first = 0;
  std::uint64_t count = 0;
  std::uint32_t round = 0;
  bool zero = false;
  pages::PageDigest digest{};  // of kPullRound, where it is wanted
};

struct TransferError {
  Failure failure{};
  std::string text;
};

class PagePlacer {
 public:
  PagePlacer(GuestMemory& memory, pages::GenerationTable& table, const RoundGate& gate)
      : memory_(memory), table_(table), gate_(gate), claimed_(table.size()) {}

  /// As LaneUser has them; bytes must stay valid until place().
  void on_page(std::uint32_t round, pages::PageNumber page, std::uint32_t offset, std::span<const std::byte> bytes);
  void on_zero_run(std::uint32_t round, pages::PageNumber first, std::uint64_t count);
  /// End of a receive burst.
  void place();
  /// What is wholly in RAM since the caller last cleared it.
  [[nodiscard]] std::vector<PlacedRun>& placed() { return placed_; }
  [[nodiscard]] const std::optional<TransferError>& error() const { return error_; }
  /// Pages of which only fragments have come. Any thread.
  [[nodiscard]] std::uint64_t partial_pages() const { return partial_; }

 private:
  [[nodiscard]] bool takes(std::uint32_t round, pages::PageNumber first, std::uint64_t count);
  void begin_round(std::uint32_t round);
  void claim(pages::PageNumber first, std::uint64_t count);
  void note_placed(pages::PageNumber first, std::uint64_t count, bool zero);
  void forget_generation(pages::PageNumber page);
  void protocol_error(std::string text);

  GuestMemory& memory_;
  pages::GenerationTable& table_;
  const RoundGate& gate_;
  std::uint32_t round_ = 0;
  pages::Bitmap claimed_;  // of this round: placed, or arrived whole and placed by the next place()
  std::vector<PageRun> claimed_runs_;
  PageAssembly assembly_;
  SingleWriter<std::uint64_t> partial_;
  std::vector<Arrival> arrivals_;
  std::vector<pages::PageNumber> completed_;  // by arrivals_
  std::vector<PlacedRun> placed_;
  std::optional<TransferError> error_;
};

}  // namespace godwit::transfer
