#include "dataplane/memory/huge_pages.h"

#include "dataplane/memory/hash_compare.h"

namespace godwit::memory {

pages::Bitmap huge_region_pages(const GuestRam& ram) {
  pages::Bitmap huge(ram.page_count());
  for (const Region& region : ram.regions()) {
    if (region.page_bytes == kHugePageSize) {
      huge.set_range(region.first_page, region.page_count);
    }
  }
  return huge;
}

std::expected<void, Error> add_refined(const GuestRam& ram, pages::Bitmap written, KnownHashes& hashes,
                                       pages::Bitmap& out) {
  if (!ram.any_huge()) {
    out |= written;
    return {};
  }
  pages::Bitmap huge = huge_region_pages(ram);
  huge &= written;
  if (auto done = find_changed(ram, huge, hashes, out); !done) {
    return done;
  }
  out |= written.and_not(huge);
  return {};
}

}  // namespace godwit::memory
