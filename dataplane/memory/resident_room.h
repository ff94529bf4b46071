#pragma once
// How much of a guest's RAM may be in memory: whoever puts a page in place asks for room first, so that the resident
// set never exceeds the budget, however fast faults come. The evictor makes room.
//
// Thread: any. Units: pages of 4 KiB. Failure: Error of the look at the RAM files; false: there is no room now.
//
// What is resident is what the RAM files have allocated: the one figure that no removal, write or restart makes wrong.
// It is looked at only when what was taken since the last look might not fit.

#include <mutex>
#include <utility>

#include "dataplane/memory/guest_ram.h"

namespace godwit::memory {

class ResidentRoom {
 public:
  ResidentRoom(const GuestRam& ram, std::uint64_t budget_pages) : ram_(ram), budget_pages_(budget_pages) {}

  /// Room for these pages, until done() says that they are in place, or will not be.
  std::expected<bool, Error> take(std::uint64_t pages) {
    const std::lock_guard lock(mutex_);
    if (bound_ + pages > budget_pages_ || !looked_) {
      const auto resident = ram_.resident_bytes();
      if (!resident) {
        return std::unexpected(resident.error());
      }
      looked_ = true;
      bound_ = *resident / pages::kPageSize + in_flight_;
    }
    if (bound_ + pages > budget_pages_) {
      refused_ = true;
      return false;
    }
    bound_ += pages;
    in_flight_ += pages;
    return true;
  }
  void done(std::uint64_t pages) {
    const std::lock_guard lock(mutex_);
    in_flight_ -= pages;
  }
  /// Whether somebody found no room since the last call.
  bool take_refused() {
    const std::lock_guard lock(mutex_);
    return std::exchange(refused_, false);
  }
  [[nodiscard]] std::uint64_t budget_pages() const {
    const std::lock_guard lock(mutex_);
    return budget_pages_;
  }
  /// What is resident already stays, also above it.
  void set_budget(std::uint64_t pages) {
    const std::lock_guard lock(mutex_);
    budget_pages_ = pages;
  }

 private:
  const GuestRam& ram_;
  mutable std::mutex mutex_;
  std::uint64_t budget_pages_;
  std::uint64_t bound_ = 0;  // of what is resident
  std::uint64_t in_flight_ = 0;
  bool looked_ = false;
  bool refused_ = false;
};

}  // namespace godwit::memory
