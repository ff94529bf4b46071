// DemandPager: pages that become missing again.

#include <algorithm>

#include "dataplane/memory/demand_pager.h"

namespace godwit::memory {

bool DemandPager::hold(pages::PageNumber page) {
  if (missing_.test(page) || !claimed_.set(page)) {
    return false;
  }
  const auto removal_may_be_under_way = [&] {
    const std::lock_guard lock(faults_mutex_);
    return page - removal_newest_.first < removal_newest_.count;
  };
  if (missing_.test(page) || removal_may_be_under_way()) {
    claimed_.clear(page);
    return false;
  }
  return true;
}

void DemandPager::make_missing(PageRange pages) {
  for (pages::PageNumber page = pages.first; page < pages.first + pages.count; ++page) {
    GW_ASSERT(claimed_.test(page) && unit_of(page).pages.count == 1);
    asked_.clear(page);
    evicted_.set(page);
  }
  missing_.add(pages.first, pages.count);
}

/// Who read a fault on the page while it was held has asked for nothing, as it was claimed. It has set its flag before
/// it looked at the claim, and the claim goes before we look at the flag: so one of us sees the other. Where both do,
/// the page is asked for twice.
bool DemandPager::release(pages::PageNumber page) {
  claimed_.clear(page);
  if (!asked_.test(page)) {
    return false;
  }
  asked_.clear(page);
  const std::lock_guard lock(faults_mutex_);
  const auto its =
      std::ranges::stable_partition(waiting_, [&](const Waiting& waiting) { return waiting.first != page; });
  const bool any = !its.empty();
  fresh_.insert(fresh_.end(), its.begin(), its.end());
  waiting_.erase(its.begin(), its.end());
  return any;
}

}  // namespace godwit::memory
