#pragma once
// Which pages a guest has written: one interface, three ways (pagemap_tracker, event_tracker, hash_tracker), chosen by
// choose_tracker().
//
// Thread: arm() and collect() one at a time, from a job. note_sent() and note_zero() from any thread at any time.
// What counts as written: every store through QEMU's mapping, by vCPUs, QEMU's threads or KVM itself; memory given back
// by MADV_REMOVE when the tracker was told of a balloon. What does not: reads; what this process puts into the RAM
// files. See each tracker's header. Failure: Error; the written set is then unknown, so the caller must treat every
// page as written.

#include <cstdint>
#include <expected>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "dataplane/memory/error.h"
#include "dataplane/memory/guest_ram.h"
#include "dataplane/memory/known_hashes.h"
#include "dataplane/memory/userfault_set.h"
#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memory {

enum class TrackerKind : std::uint8_t { kPagemapScan, kWriteProtectEvents, kHashes };
std::string_view name_of(TrackerKind kind);

class WrittenTracker {
 public:
  virtual ~WrittenTracker() = default;
  [[nodiscard]] virtual TrackerKind kind() const = 0;
  [[nodiscard]] std::string_view name() const { return name_of(kind()); }

  /// From here on writes are seen. A tracker that took over from a former data plane (continuing) keeps what is armed
  /// and what was written meanwhile; call it just the same.
  virtual std::expected<void, Error> arm() = 0;
  /// Adds to `out` every page written since the last collect() (or arm()) and watches those again, in one step as seen
  /// by a writer: a write is in this set or in the next. Copy pages only after collect() has returned.
  virtual std::expected<void, Error> collect(pages::Bitmap& out) = 0;

  /// The guest is to go on untracked: nothing in QEMU waits for us any more. Without it (the data plane restarts), what
  /// is armed stays armed for the successor. A QEMU that has exited is fine.
  virtual std::expected<void, Error> disarm() { return {}; }

  // ---- for demand paging (demand_pager.h), which shares QEMU's userfaultfds ----
  /// None were given, or none that can be used: nullptr.
  [[nodiscard]] virtual std::shared_ptr<UserfaultSet> userfaults() const = 0;
  /// A page must be placed write-protected to count as unwritten.
  [[nodiscard]] virtual bool protects() const { return false; }
  /// Any thread. These pages, which the file has and QEMU has no entry of, may be mapped write-protected: no write to
  /// them would be forgotten.
  virtual std::expected<bool, Error> may_protect(PageRange /*pages*/) { return false; }
  /// Any thread. These pages of one region cannot be told from written ones.
  virtual std::expected<void, Error> count_as_written(PageRange /*pages*/) { return {}; }
  /// From a job, as collect(). Pages of QEMU's RAM that are not there raise no faults any more; written ones stay
  /// written, and the others not. Each step takes all faults off 2 MiB at once, so the caller must have nothing
  /// missing.
  virtual std::expected<void, Error> end_paging() = 0;

  /// True: the tracker compares hashes, so tell it of all that leaves by note_sent() and note_zero(); else those calls
  /// are not needed.
  [[nodiscard]] virtual bool compares_content() const { return false; }
  /// The page is being sent, for the first time or again, with content of this pages::hash_page(): if other content
  /// than this can be placed, it is not to be called. A part is to be taken from one whole read, and that noted.
  virtual void note_sent(pages::PageNumber /*page*/, pages::PageHash /*hash*/) {}
  /// The page is being sent as zero.
  virtual void note_zero(pages::PageNumber /*page*/) {}
};

struct TrackerRequest {
  const GuestRam* ram = nullptr;        // outlives the tracker
  std::shared_ptr<KnownHashes> hashes;  // needed for hashes and for huge pages; created when absent (all unknown)
  UniqueFd userfaultfd;                 // of QEMU's address space; may be absent
  std::vector<UserfaultPart> userfaultfds_by_range;  // more of them, for these ranges instead of it
  UniqueFd pagemap;                                  // /proc/PID/pagemap of QEMU; may be absent
  bool has_balloon = false;
  bool learn_hashes = false;  // arm() hashes pages of huge regions that are not known yet (100 ms a GiB), else a first
                              // write to a huge page reports all of it
  bool continuing = false;    // same QEMU and userfaultfd as before a restart of the data plane
};

struct ChosenTracker {
  std::unique_ptr<WrittenTracker> tracker;
  std::string reason;  // why this one, one line for log and status
};

/// Makes the tracker asked for, or with no wish the first that kernel and descriptors allow, in the order of
/// TrackerKind.
std::expected<ChosenTracker, Error> choose_tracker(TrackerRequest request, const TrackerKind* forced = nullptr);

/// What this kernel could do for a guest of a privileged QEMU.
std::vector<TrackerKind> trackers_offered();

}  // namespace godwit::memory
