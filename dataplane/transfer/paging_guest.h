#pragma once
// What a destination knows of memory that a running guest faults in: the missing set, the faults, placing while vCPUs
// look. Beside GuestMemory (guest.h). The daemon implements it over memory/, the simulation over a model.
//
// It owns the missing set: exactly the pages that are not in RAM and that only place() or place_zero() may put there. A
// page leaves the set when it is placed or given back (balloon), and never comes back; what comes for a page that is
// not in the set is dropped without a look at its bytes, so a newer write of the guest is never overwritten. Faults on
// pages that are not missing (holes) it answers by itself. The set survives the process once arm() has been called.
//
// Threads: each method says which. At most one job of a guest runs at a time; lcores go on meanwhile. Errors are for
// good: the memory cannot be served any more. What may pass (no memory free just now, a mapping being changed) is no
// error: the page stays missing, and is sent again.

#include <expected>
#include <span>
#include <vector>

#include "dataplane/transfer/guest.h"

namespace godwit::transfer {

/// A whole page that arrived; `bytes` is kPageSize long.
struct PageWrite {
  pages::PageNumber page = 0;
  std::span<const std::byte> bytes;
  bool placed = false;  // result: by this call
};

/// What happened since the last look.
struct PagingEvents {
  std::vector<pages::PageNumber> faults;  // a thread of the guest waits for this page, which is missing
  std::vector<PageRun> given_back;        // of these, what was missing is no more; may be told late, or not at all
};

class PagingGuest {
 public:
  virtual ~PagingGuest() = default;

  // ---- jobs, before the guest runs here ----
  /// Takes pages out of RAM; `missing` and `zero` are disjoint. The pages of `zero` read as zero from now on.
  virtual std::expected<void, GuestError> punch(const pages::Bitmap& missing, const pages::Bitmap& zero) = 0;
  /// After the first punch(): from now on whoever touches memory that is not there waits for arm(). True: none is
  /// there, so nothing that may still change at the source can be read here.
  virtual std::expected<bool, GuestError> guard() = 0;
  /// From now on `missing`, all of it punched, is the missing set; faults wait for it.
  virtual std::expected<void, GuestError> arm(const pages::Bitmap& missing) = 0;

  // ---- job, when nothing is missing any more ----
  /// Faults are the kernel's again; the set's record goes. Whoever waits is woken.
  virtual std::expected<void, GuestError> disarm() = 0;

  // ---- the home lcore, from arm() until disarm() has returned; never waits ----
  virtual std::expected<void, GuestError> read_events(PagingEvents& out) = 0;

  // ---- the lcores that own lanes, several at once, for different pages or the same; `lcore`: 0 the home lcore, then
  // the shares in the order in which they were made ----
  /// Called once per receive burst, so that contiguous pages become one system call. Wakes who waits.
  virtual std::expected<void, GuestError> place(std::uint32_t lcore, std::span<PageWrite> pages) = 0;
  /// Appends to `placed` what of [first, first + count) was missing and reads as zero now.
  virtual std::expected<void, GuestError> place_zero(std::uint32_t lcore, pages::PageNumber first, std::uint64_t count,
                                                     std::vector<PageRun>& placed) = 0;

  // ---- any thread ----
  [[nodiscard]] virtual bool missing(pages::PageNumber page) const = 0;
};

}  // namespace godwit::transfer
