#pragma once
// What transfer knows of a guest's memory. The daemon implements it over memory/, the simulation over a model.
//
// Threads: read_page, place_pages and zero_pages are called on the lcore that owns the lane ("hot"), on several lcores
// at once if the migration has several, then never for the same page but to read it; read_page from a job too, possibly
// at the same moment as hot calls (hashing what was placed). The other calls may take milliseconds to seconds and are
// made from a job (see executor.h), never on an lcore. At most one job of a guest runs at a time. Errors are sticky:
// after one, the migration fails and the guest is told to nobody. read_page cannot fail, it is too deep in a packet for
// that: where memory is not there it gives zeros and damaged() is true before it returns. Whoever draws a conclusion
// from what was read asks first.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>

#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/page.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::transfer {

struct GuestError {
  std::string text;  // operation, object, errno: one line for a person
};

/// One page's bytes that arrived, still in the packet buffer. `bytes` is a whole page unless the MTU forces fragments.
struct Arrival {
  pages::PageNumber page;
  std::uint32_t offset;  // of the fragment in the page
  std::span<const std::byte> bytes;
};

struct PageRun {
  pages::PageNumber first = 0;
  std::uint64_t count = 0;
};

class GuestMemory {
 public:
  virtual ~GuestMemory() = default;
  [[nodiscard]] virtual pages::PageNumber page_count() const = 0;

  // ---- hot ----
  /// Copies bytes [offset, offset + out.size()) of the page as they are now. Never allocates memory for a hole: it
  /// reads as zero.
  virtual void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) = 0;
  /// The page where it lies, readable as long as the memory is mapped; it may change at any moment, but is there: to
  /// read it allocates nothing. `hash_in_tag`: it will be placed as note_sent() is told or not at all. Empty: it must
  /// be read by read_page().
  virtual std::span<const std::byte> page_in_place(pages::PageNumber /*page*/, bool /*hash_in_tag*/) { return {}; }
  /// The written set is found by comparing content: note_sent() must be told of all content that leaves.
  [[nodiscard]] virtual bool compares_content() const { return false; }
  /// The page is about to leave with content of this pages::hash_page(), for the first time or again.
  virtual void note_sent(pages::PageNumber /*page*/, pages::PageHash /*hash*/) {}
  /// Puts arrived bytes into RAM; called once per receive burst, so that contiguous pages become one system call.
  virtual std::expected<void, GuestError> place_pages(std::span<const Arrival> arrivals) = 0;
  /// Makes pages [first, first + count) read as zero, giving their memory back.
  virtual std::expected<void, GuestError> zero_pages(pages::PageNumber first, std::uint64_t count) = 0;

  // ---- jobs ----
  /// Adds to `out` every page written since the last call (or since arming), and arms those again: one atomic step as
  /// seen by a writer, so a write is in this set or in the next, never in neither. Memory given back (balloon) counts
  /// as written.
  virtual std::expected<void, GuestError> collect_written(pages::Bitmap& out) = 0;
  /// Sets in `out` exactly the pages among `among` that read as zero now (holes without touching them).
  virtual std::expected<void, GuestError> find_zero(const pages::Bitmap& among, pages::Bitmap& out) = 0;

  // ---- any thread ----
  /// What was read or placed since the beginning may be wrong; for good. A few loads.
  [[nodiscard]] virtual bool damaged() const = 0;
  /// Looks whether all of the memory is there, by a few system calls; an error also when damaged().
  [[nodiscard]] virtual std::expected<void, GuestError> check_whole() const = 0;
};

}  // namespace godwit::transfer
