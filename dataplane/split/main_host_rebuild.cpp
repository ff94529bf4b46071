// MainHost: where pages are, found out again from what the stores hold.

#include <utility>

#include "dataplane/split/main_host.h"

namespace godwit::split {

void MainHost::finish_rebuild() {
  if (rebuild_->complete.size() < subs_.size()) {
    return;
  }
  Rebuild all = *std::exchange(rebuild_, std::nullopt);
  pages::Bitmap sought(copies_.page_count());
  for (pages::PageNumber page = 0; page < sought.size(); ++page) {
    // In this order: one that is just being evicted is not wanted yet, or is among those on their way out.
    if (memory_.wants(page) && !leaving_version(page) && !copies_.get(page)) {
      sought.set(page);
    }
  }
  const placement::Rebuilt found = placement::rebuild(std::move(all.listed), sought);
  version_newest_ = std::max(version_newest_, found.version_newest);
  for (const placement::Listed& listed : found.kept) {
    if (!copies_.get(listed.page)) {
      set_copy(listed.page, {.sub = listed.sub, .version = listed.version, .hash = 0});  // which no list tells
      GW_ASSERT(directory_.set_held(listed.page, 1, placement::Holders::of(listed.sub)));
    }
  }
  for (const placement::Listed& listed : found.stale) {
    const auto copy = copies_.get(listed.page);
    if ((copy && copy->sub == listed.sub && copy->version == listed.version) ||
        leaving_version(listed.page) == listed.version) {
      continue;  // it was listed while it was being put there
    }
    if (MainLink* const link = subs_.at(listed.sub).link.get(); link != nullptr && link->open()) {
      link->drop({.page = listed.page, .version = listed.version});
    }
  }
  found.lost.for_each_run([this](pages::PageNumber first, std::uint64_t count) {
    for (pages::PageNumber page = first; page < first + count; ++page) {
      lose(page, subs_.begin()->first);
    }
  });
  did_ = true;
  if (all.done) {
    all.done();
  }
}

}  // namespace godwit::split
