#pragma once
// The pages of a guest that runs here and are still elsewhere, behind transfer's interface: memory::DemandPager, and
// the reading of faults, which goes on with or without a flow. Shared by the guest, its migration and the home lcore;
// the guest's LiveGuest outlives it.
// Of a guest that is split the pager is its LiveSplit's, which reads the faults; what is missing here are its awaited
// pages alone.
//
// Threads as transfer/paging_guest.h says; poll() and read_events() on the home lcore. Failure: GuestError, as long as
// what is wrong lasts: another migration part may go on later. Memory that is not free just now is none (the pages stay
// missing and come again).

#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/uuid.h"
#include "dataplane/daemon/fault_watch.h"
#include "dataplane/daemon/live_guest.h"
#include "dataplane/daemon/live_split.h"
#include "dataplane/memory/demand_pager.h"
#include "dataplane/transfer/paging_guest.h"

namespace godwit::daemon {

class LivePaging final : public transfer::PagingGuest, public FaultWatch {
 public:
  /// Of what is missing of this VM; it outlives the daemon.
  static std::string file_of(const std::string& directory, const Id128& vm_uuid);
  static void remove_file(const std::string& directory, const Id128& vm_uuid);
  /// Those of migrations that were being prepared when a former daemon died. Before any guest is attached.
  static void remove_unfinished_files(const std::string& directory);

  // ---- jobs ----
  /// Nothing is missing yet. The userfaultfds see accesses of the kernel, too (AttachGuest.demand_paging).
  static std::expected<std::shared_ptr<LivePaging>, memory::Error> create(LiveGuest& guest, const std::string& file,
                                                                          const memory::MissingOf& of,
                                                                          std::uint32_t lcores);
  /// Goes on where a former daemon stopped; faults wait for poll() from now on.
  static std::expected<std::shared_ptr<LivePaging>, memory::Error> take_over(LiveGuest& guest, const std::string& file,
                                                                             const memory::MissingOf& of,
                                                                             std::uint32_t lcores);
  /// Of one that is split. `armed`: it goes on where a former daemon stopped.
  static std::shared_ptr<LivePaging> of_split(LiveGuest& guest, std::shared_ptr<LiveSplit> split, std::uint32_t lcores,
                                              bool armed);
  std::expected<void, transfer::GuestError> punch(const pages::Bitmap& missing, const pages::Bitmap& zero) override;
  std::expected<bool, transfer::GuestError> guard() override;
  std::expected<void, transfer::GuestError> arm(const pages::Bitmap& missing) override;
  /// Nothing when it is done already, or was never armed.
  std::expected<void, transfer::GuestError> disarm() override;

  // ---- the home lcore ----
  /// Reads what faults there are, and keeps them for read_events(). True: there were some.
  bool poll();
  bool poll_faults(Instant) override { return poll(); }
  [[nodiscard]] Instant deadline(Instant polled_at) const override {
    return armed() ? polled_at + kFaultsAgain : kNever;
  }
  std::expected<void, transfer::GuestError> read_events(transfer::PagingEvents& out) override;

  // ---- lcores ----
  std::expected<void, transfer::GuestError> place(std::uint32_t lcore, std::span<transfer::PageWrite> pages) override;
  std::expected<void, transfer::GuestError> place_zero(std::uint32_t lcore, pages::PageNumber first,
                                                       std::uint64_t count,
                                                       std::vector<transfer::PageRun>& placed) override;

  // ---- any thread ----
  [[nodiscard]] bool missing(pages::PageNumber page) const override {
    return split_ ? pager_->is_awaited(page) : pager_->is_missing(page);
  }
  [[nodiscard]] std::uint64_t missing_count() const {
    return split_ ? pager_->awaited_count() : pager_->missing_count();
  }
  /// Who reads its faults.
  static std::shared_ptr<FaultWatch> reader_of(const std::shared_ptr<LivePaging>& paging) {
    return paging->split_ ? std::shared_ptr<FaultWatch>(paging->split_) : paging;
  }
  /// When it was armed.
  [[nodiscard]] std::uint64_t missing_first() const { return missing_first_.load(std::memory_order_relaxed); }
  /// From arm() until disarm() has returned.
  [[nodiscard]] bool armed() const { return armed_.load(std::memory_order_acquire); }
  [[nodiscard]] memory::PagerStats stats() const { return pager_->stats(); }
  /// To wait on while asleep; level-triggered.
  [[nodiscard]] std::vector<int> descriptors() const override { return pager_->descriptors(); }

 private:
  /// Faults that could not be answered when they were read (no memory, a mapping being changed) raise no event again.
  static constexpr Duration kFaultsAgain = milliseconds(10);
  using Open = std::expected<std::unique_ptr<memory::DemandPager>, memory::Error> (*)(memory::PagerRequest);
  static std::expected<std::shared_ptr<LivePaging>, memory::Error> open(Open how, LiveGuest& guest,
                                                                        const std::string& file,
                                                                        const memory::MissingOf& of,
                                                                        std::uint32_t lcores);
  LivePaging(LiveGuest& guest, std::shared_ptr<memory::DemandPager> pager, std::shared_ptr<LiveSplit> split,
             std::uint32_t lcores)
      : guest_(guest), pager_(std::move(pager)), split_(std::move(split)), placed_(lcores) {}
  [[nodiscard]] memory::DemandPager::Only only() const {
    return split_ ? memory::DemandPager::Only::kAwaited : memory::DemandPager::Only::kMissing;
  }

  LiveGuest& guest_;
  const std::shared_ptr<memory::DemandPager> pager_;
  const std::shared_ptr<LiveSplit> split_;
  std::vector<std::vector<memory::PageRange>> placed_;  // by lcore, to be reused
  std::atomic<std::uint64_t> missing_first_{0};
  std::atomic<bool> armed_{false};

  // the home lcore's
  std::vector<pages::PageNumber> faults_;        // read, not told yet
  std::optional<transfer::GuestError> failure_;  // of the last look
};

}  // namespace godwit::daemon
