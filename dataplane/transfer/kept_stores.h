#pragma once
// What a migration knows of a guest that is split: pages that are missing at the source, because its page stores have
// them, stay there; the destination is told which store has what, and becomes the main host. Beside GuestMemory
// (guest.h) and PagingGuest (paging_guest.h). The daemon implements it over daemon/live_split.h, the simulation over a
// model.
//
// Why no page is older there than it was here:
//   * At rest: from before list() to the end of the migration nothing leaves the source's memory, and no store is told
//     anything but to give pages. So the stored pages only become fewer, and the copies that were told are what counts
//     for them. The budget holds all the same: before there is no room left for what the guest touches, it is stopped.
//   * A guest that is still above its budget sends to its stores and to the destination at the same time. Then
//     set_apart() draws a line: what is on one side may leave, and is no part of round 1; what is on the other may not,
//     so what round 1 reads is there. Between rounds 1 and 2 all comes to rest, and list() says what became of the
//     former: those of them that a store has are told of, with those written since then marked as such; those that are
//     here go with round 2, if the destination lacks them.
//   * A page that came back is like one that was written: a scan finds it, and it goes with that scan's round or set.
//   * Any other that the last scan finds missing was not touched since it was told of, so its copy is its content.
//   * Of what the stores have the destination's image may have as good a copy. It keeps no more of those than its
//     budget is above the source's, as all that is resident here will be there too.
//   * QEMU may touch such a page at the destination before the store's word, when it loads its devices. Then the source
//     fetches it, and gives it like any other; whoever of the two has it first, its content is the same.
//
// Threads: jobs, one of a guest at a time; what says so, the home lcore. Errors as guest.h has them.

#include <expected>
#include <span>
#include <vector>

#include "dataplane/transfer/guest.h"
#include "dataplane/wire/messages.h"

namespace godwit::transfer {

/// The source's side.
class KeptStores {
 public:
  virtual ~KeptStores() = default;
  struct Stored {
    std::vector<wire::StoredPage> pages;  // ascending
    std::uint64_t version_next = 1;       // above all that any store of the guest's may know
  };
  /// The home lcore. Nothing leaves any more.
  [[nodiscard]] virtual bool at_rest() const = 0;
  /// Not at rest, after the first scan: the pages that are missing or may leave. No others do before come_to_rest().
  virtual std::expected<pages::Bitmap, GuestError> set_apart() = 0;
  /// The home lcore. Nobody reads the guest's memory before at_rest(): any page may leave.
  virtual void come_to_rest() = 0;
  /// At rest, after a scan: all that is missing here. `written`: what this scan has found, and the one before
  /// set_apart(). What comes back from then on the next ones are told.
  virtual std::expected<Stored, GuestError> list(const pages::Bitmap& written) = 0;
  /// After a scan, which has found `written`: takes out of `stored` what is here again.
  virtual std::expected<void, GuestError> keep_stored(pages::Bitmap& stored, const pages::Bitmap& written) = 0;
  /// The home lcore. The resident budget.
  [[nodiscard]] virtual std::uint64_t budget_pages() const = 0;
  /// The home lcore. The guest touches more than there is room for: it is to go on at the destination soon.
  [[nodiscard]] virtual bool short_of_room() const = 0;
  // ---- the home lcore, once the guest stands still and until the destination has it ----
  virtual void fetch(pages::PageNumber page) = 0;
  /// It has come, and may be read.
  [[nodiscard]] virtual bool is_here(pages::PageNumber page) = 0;
};

/// The destination's side; it survives the process once settle() has returned.
class TakenStores {
 public:
  virtual ~TakenStores() = default;
  /// The home lcore. The resident budget here.
  [[nodiscard]] virtual std::uint64_t budget_there_pages() const = 0;
  /// In any number of calls, ascending.
  virtual void note(std::span<const wire::StoredPage> pages) = 0;
  /// Before PagingGuest::arm() of both, which are disjoint: `stored` are those of them that stay where they are; the
  /// missing ones come from the source.
  virtual std::expected<void, GuestError> settle(const pages::Bitmap& missing, const pages::Bitmap& stored,
                                                 std::uint64_t version_next) = 0;
  /// Any thread. From here on faults on stored pages are answered by the stores; before, they are told to the
  /// migration.
  [[nodiscard]] virtual bool serve() const = 0;
};

}  // namespace godwit::transfer
