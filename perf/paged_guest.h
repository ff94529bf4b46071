#pragma once
// A guest of one thread (fault_guest.h) whose pages are elsewhere in this process, with tracker and pager. What
// benchmarks of demand paging and of eviction share.
//
// Owned by one benchmark. Failure: one line.

#include <expected>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/memory/demand_pager.h"
#include "perf/fault_guest.h"

namespace godwit::perf {

struct PagedGuest {
  std::unique_ptr<FaultGuest> guest;
  std::unique_ptr<memory::GuestRam> ram;
  std::unique_ptr<memory::WrittenTracker> tracker;
  std::unique_ptr<memory::DemandPager> pager;
  std::vector<std::byte> source;  // a page begins with its number plus one

  [[nodiscard]] memory::PageWrite page(pages::PageNumber page) const {
    return {page, 0, std::span(source).subspan(page * pages::kPageSize, pages::kPageSize)};
  }
};

enum class Pages : bool { kMissing, kResident };

/// Armed; all of its pages are missing, or all resident.
[[nodiscard]] std::expected<PagedGuest, std::string> start_paged_guest(std::uint64_t page_count, Pages which);

}  // namespace godwit::perf
