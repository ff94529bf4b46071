#pragma once
// The directory made anew from what the sub hosts say they hold, after the main host has lost its own.
//
// Pure. Failure: none; what cannot be shows in the result.
//
// A page may be told of by several sub hosts, and in several versions: one that moved, or a copy that was not dropped
// yet. Only the newest version counts, and who tells of it is a holder. The missing set of the main host
// (memory/missing_pages.h) decides what is needed: what is not missing there is there.

#include <cstdint>
#include <vector>

#include "dataplane/placement/page_directory.h"

namespace godwit::placement {

/// Raised by the main host with each eviction of a VM's pages, so a newer content has the higher one.
using Version = std::uint64_t;

struct Listed {
  SubId sub = 0;
  pages::PageNumber page = 0;
  Version version = 0;
  bool zero = false;
  bool operator==(const Listed&) const = default;
};

struct Rebuilt {
  PageDirectory directory;
  pages::Bitmap lost;          // missing at the main host, and nobody tells of them
  std::vector<Listed> kept;    // what the directory goes by: of each page that is held the newest, of each holder
  std::vector<Listed> stale;   // to be dropped where they are: older, or of a page that is not missing
  Version version_newest = 0;  // the next eviction takes a higher one
};

/// `listings` of all sub hosts, in any order; `missing` at the main host. A page that the VM does not have is stale,
/// too. Where set_held() refuses a list of holders, the first of it is taken alone.
[[nodiscard]] Rebuilt rebuild(std::vector<Listed> listings, const pages::Bitmap& missing);

/// What a simulation knows of the whole world, to be held against a directory.
class World {
 public:
  virtual ~World() = default;
  /// The main host's RAM, or what is on its way out of it, has the last content of the page.
  [[nodiscard]] virtual bool main_has_last(pages::PageNumber page) const = 0;
  [[nodiscard]] virtual bool sub_has_last(SubId sub, pages::PageNumber page) const = 0;
  /// The last content is zero.
  [[nodiscard]] virtual bool last_is_zero(pages::PageNumber page) const = 0;
};

/// The first page whose last content is not where the directory says; page_count() if none. A page that is held by
/// others must not be at the main host, too: two that change it would part.
[[nodiscard]] pages::PageNumber first_misplaced(const PageDirectory& directory, const World& world);

}  // namespace godwit::placement
