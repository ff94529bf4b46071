#include "dataplane/placement/rebuild.h"

#include <algorithm>
#include <tuple>

namespace godwit::placement {
namespace {

/// `told`: of one page that is missing, newest first.
void place_newest(std::span<const Listed> told, Rebuilt& rebuilt) {
  std::array<SubId, Holders::kCountMax> subs;
  std::size_t count = 0;
  bool zero = true;
  for (const Listed& listed : told) {
    const auto taken = std::span(subs).first(count);
    const bool told_before = std::ranges::find(taken, listed.sub) != taken.end();
    if (listed.version != told[0].version || told_before || count == subs.size()) {
      rebuilt.stale.push_back(listed);
      continue;
    }
    subs[count++] = listed.sub;
    rebuilt.kept.push_back(listed);
    zero = zero && listed.zero;
  }
  if (zero) {
    rebuilt.directory.set_zero(told[0].page, 1);
  } else if (!rebuilt.directory.set_held(told[0].page, 1, *Holders::of(std::span(subs).first(count)))) {
    GW_ASSERT(rebuilt.directory.set_held(told[0].page, 1, Holders::of(subs[0])));
  }
}

}  // namespace

Rebuilt rebuild(std::vector<Listed> listings, const pages::Bitmap& missing) {
  Rebuilt rebuilt{
      .directory = PageDirectory(missing.size()), .lost = missing, .kept = {}, .stale = {}, .version_newest = 0};
  std::ranges::sort(listings, [](const Listed& a, const Listed& b) {
    return std::tie(a.page, b.version, a.sub) < std::tie(b.page, a.version, b.sub);
  });
  for (std::size_t first = 0; first < listings.size();) {
    const pages::PageNumber page = listings[first].page;
    std::size_t end = first;
    while (end < listings.size() && listings[end].page == page) ++end;
    const auto told = std::span(listings).subspan(first, end - first);
    rebuilt.version_newest = std::max(rebuilt.version_newest, told[0].version);
    if (page < missing.size() && missing.test(page)) {
      rebuilt.lost.clear(page);
      place_newest(told, rebuilt);
    } else {
      rebuilt.stale.insert(rebuilt.stale.end(), told.begin(), told.end());
    }
    first = end;
  }
  return rebuilt;
}

pages::PageNumber first_misplaced(const PageDirectory& directory, const World& world) {
  for (pages::PageNumber page = 0; page < directory.page_count(); ++page) {
    bool right = false;
    switch (directory.place(page)) {
      case Place::kResident:
        right = world.main_has_last(page);
        break;
      case Place::kZero:
        right = world.last_is_zero(page);
        break;
      case Place::kHeld:
        right = !world.main_has_last(page) && std::ranges::all_of(directory.holders(page).subs(), [&](SubId sub) {
          return world.sub_has_last(sub, page);
        });
        break;
    }
    if (!right) return page;
  }
  return directory.page_count();
}

}  // namespace godwit::placement
