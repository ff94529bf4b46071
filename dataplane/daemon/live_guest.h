#pragma once
// A guest's memory behind transfer's interface: RAM files, written tracker, and the tracking file that a restarted
// daemon reads. Owns all three. Threads as transfer/guest.h says: read, place and zero on the lcore, the rest in jobs,
// one job at a time. Failure: GuestError; after a failed scan the tracking file stays in doubt, so that nobody believes
// the history again. Memory that was lost (see GuestRam) makes every later scan fail.

#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dataplane/daemon/tracking_state.h"
#include "dataplane/memory/demand_pager.h"
#include "dataplane/memory/guest_ram.h"
#include "dataplane/memory/known_hashes.h"
#include "dataplane/memory/written_tracker.h"
#include "dataplane/transfer/guest.h"

namespace godwit::daemon {

/// What memory says, in transfer's words.
inline std::unexpected<transfer::GuestError> guest_error(memory::Error error) {
  return std::unexpected(transfer::GuestError{std::move(error.text)});
}

class LiveGuest final : public transfer::GuestMemory {
 public:
  LiveGuest(std::unique_ptr<memory::GuestRam> ram, std::unique_ptr<memory::WrittenTracker> tracker,
            std::shared_ptr<memory::KnownHashes> hashes, std::optional<TrackingState> state, bool memory_may_vanish);

  [[nodiscard]] const memory::GuestRam& ram() const { return *ram_; }
  /// Keeps the mappings for what outlives the guest.
  [[nodiscard]] std::shared_ptr<const memory::GuestRam> shared_ram() const { return ram_; }
  [[nodiscard]] memory::TrackerKind tracker() const { return tracker_->kind(); }
  [[nodiscard]] TrackingState* state() { return state_ ? &*state_ : nullptr; }
  [[nodiscard]] const std::shared_ptr<memory::KnownHashes>& hashes() const { return hashes_; }
  void set_state(TrackingState state) { state_.emplace(std::move(state)); }
  /// Content is compared by hashes: keep them with a retained image.
  [[nodiscard]] bool keeps_hashes() const { return keeps_hashes_; }

  // ---- for demand paging (live_paging.h) ----
  /// With memory and tracker filled in.
  [[nodiscard]] memory::PagerRequest pager_request() const;
  /// A job. Nothing of these pages is here any more; those of `zero` read as zero.
  void note_taken_away(const pages::Bitmap& missing, const pages::Bitmap& zero);
  /// Any lcore, for the page that it has just put in.
  void note_arrived(pages::PageNumber page, std::span<const std::byte> bytes);
  void note_zero(pages::PageNumber first, std::uint64_t count);
  /// A job. These were put in while the guest ran, and stay.
  void note_present(const pages::Bitmap& pages);
  /// Any thread.
  void note_present(pages::PageNumber page) { set_present(page, 1, true); }

  // ---- jobs ----
  std::expected<void, transfer::GuestError> arm();
  /// The guest goes on without us: nothing in its QEMU waits for us any more.
  std::expected<void, transfer::GuestError> disarm();
  /// Looks again which pages are holes. Before the first read_page.
  std::expected<void, transfer::GuestError> refresh_present();
  /// Every page becomes a hole.
  std::expected<void, transfer::GuestError> clear_all();
  std::expected<void, transfer::GuestError> collect_written(pages::Bitmap& out) override;
  std::expected<void, transfer::GuestError> find_zero(const pages::Bitmap& among, pages::Bitmap& out) override;

  // ---- hot ----
  [[nodiscard]] pages::PageNumber page_count() const override { return ram_->page_count(); }
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool hash_in_tag) override;
  [[nodiscard]] bool compares_content() const override { return tracker_->compares_content(); }
  void note_sent(pages::PageNumber page, pages::PageHash hash) override { tracker_->note_sent(page, hash); }
  std::expected<void, transfer::GuestError> place_pages(std::span<const transfer::Arrival> arrivals) override;
  std::expected<void, transfer::GuestError> zero_pages(pages::PageNumber first, std::uint64_t count) override;

  // ---- any thread ----
  [[nodiscard]] bool damaged() const override;
  [[nodiscard]] std::expected<void, transfer::GuestError> check_whole() const override;

 private:
  /// It may be read through the mapping.
  [[nodiscard]] bool lies_open(pages::PageNumber page) const;
  void note_content(const pages::Bitmap& among, const pages::Bitmap& zero);
  void forget_content(pages::PageNumber first, std::uint64_t count);
  [[nodiscard]] bool present(pages::PageNumber page) const;
  void set_present(pages::PageNumber first, std::uint64_t count, bool present);
  void note_placed(std::span<const transfer::Arrival> arrivals);

  std::shared_ptr<memory::GuestRam> ram_;
  std::shared_ptr<memory::KnownHashes> hashes_;
  std::unique_ptr<memory::WrittenTracker> tracker_;
  std::optional<TrackingState> state_;
  const bool keeps_hashes_;
  const bool memory_may_vanish_;
  // A bit a page, read on lcores and renewed by jobs. A page named by a scan was looked up after that scan.
  mutable std::vector<std::uint64_t> present_;
  // The same of pages that were not zero when they were looked at, with huge pages alone: of those nobody knows the
  // holes, but what has content is none.
  mutable std::vector<std::uint64_t> content_;
  std::atomic<bool> read_failed_{false};
};

}  // namespace godwit::daemon
