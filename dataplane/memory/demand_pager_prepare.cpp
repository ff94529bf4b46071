// DemandPager: taking memory away, before the guest runs.

#include <algorithm>

#include "dataplane/memory/demand_pager.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::memory {
namespace {

/// Somebody else who reads the page for a moment makes one try fail; a pin for longer makes all.
constexpr int kPunchTriesMax = 3;

/// Calls f(first, count) for each run of `pages` in the region, until one fails.
template <class F>
std::expected<void, Error> for_each_run_in(const Region& region, const pages::Bitmap& pages, F f) {
  const pages::PageNumber end = region.first_page + region.page_count;
  for (pages::PageNumber first = pages.next_set(region.first_page, end); first < end;) {
    const pages::PageNumber last = pages.next_clear(first, end);
    if (std::expected<void, Error> done = f(PageRange{first, last - first}); !done) {
      return done;
    }
    first = pages.next_set(last, end);
  }
  return {};
}

}  // namespace

std::expected<void, Error> DemandPager::add_missing(const pages::Bitmap& pages) {
  GW_ASSERT(pages.size() == ram_.page_count() && !attached_);
  for (const Region& region : ram_.regions()) {
    auto done = region.page_bytes == kHugePageSize
                    ? take_away_huge(region, pages)
                    : for_each_run_in(region, pages, [this](PageRange run) { return take_away(run); });
    if (!done) {
      return done;
    }
  }
  return {};
}

std::expected<void, Error> DemandPager::take_away(PageRange pages) {
  missing_.add(pages.first, pages.count);
  for (int tries = 0; tries < kPunchTriesMax; ++tries) {
    if (auto punched = ram_.punch(pages.first, pages.count); !punched) {
      return punched;
    }
    const auto hole = ram_.is_hole(pages);
    if (!hole) {
      return std::unexpected(hole.error());
    }
    if (*hole) {
      return {};
    }
  }
  return std::unexpected(Error{ErrorCode::kKernel, "region '" + ram_.region_of(pages.first).name +
                                                       "': pages stay in its file when punched: part of a huge page of "
                                                       "tmpfs that something has pinned"});
}

std::expected<void, Error> DemandPager::take_away_huge(const Region& region, const pages::Bitmap& pages) {
  static_cast<void>(for_each_run_in(region, pages, [this](PageRange run) -> std::expected<void, Error> {
    missing_.add(run.first, run.count);
    return {};
  }));
  const pages::PageNumber end = region.first_page + region.page_count;
  for (pages::PageNumber page = pages.next_set(region.first_page, end); page < end;) {
    const Unit unit = unit_of(page);
    // Whole huge pages together, the others one by one.
    const std::uint64_t run = pages.next_clear(unit.pages.first, end) - unit.pages.first;
    const std::uint64_t whole = run / kPagesPerHugePage * kPagesPerHugePage;
    if (auto done = whole > 0 ? ram_.punch(unit.pages.first, whole) : hold_back(unit); !done) {
      return done;
    }
    page = pages.next_set(unit.pages.first + std::max(whole, kPagesPerHugePage), end);
  }
  return {};
}

/// Keeps what is reusable of a huge page, takes QEMU's entry of it and leaves zeros where pages are missing.
std::expected<void, Error> DemandPager::hold_back(const Unit& unit) {
  std::vector<std::byte> kept(kHugePageSize);
  if (auto read = ram_.read_pages(unit.pages.first, kept); !read) {
    return read;
  }
  std::vector<PageWrite> writes;
  for (std::uint64_t i = 0; i < unit.pages.count; ++i) {
    const auto bytes = std::span(kept).subspan(i * pages::kPageSize).first<pages::kPageSize>();
    if (!missing_.test(unit.pages.first + i) && !pages::is_zero_page(bytes)) {
      writes.push_back({unit.pages.first + i, 0, bytes});
    }
  }
  if (auto punched = ram_.punch(unit.pages.first, unit.pages.count); !punched) {
    return punched;
  }
  return ram_.write(writes);
}

void DemandPager::await(const pages::Bitmap& pages) {
  pages.for_each_run([this](pages::PageNumber first, std::uint64_t count) {
    for (pages::PageNumber page = first; page < first + count; ++page) {
      GW_ASSERT(missing_.test(page) && unit_of(page).pages.count == 1);
      awaited_count_ += awaited_.set(page) ? 1U : 0U;
    }
  });
}

std::expected<void, Error> DemandPager::add_zero(const pages::Bitmap& pages) {
  GW_ASSERT(pages.size() == ram_.page_count() && !attached_);
  for (const Region& region : ram_.regions()) {
    auto done = for_each_run_in(region, pages, [this](PageRange run) {
      for (std::uint64_t i = 0; i < run.count; ++i) {
        missing_.clear(run.first + i);
      }
      // Zeroed in place is as good as gone here.
      return ram_.punch(run.first, run.count);
    });
    if (!done) {
      return done;
    }
  }
  return {};
}

/// On tmpfs a missing page that the file has was placed. On hugetlbfs it is written again before QEMU can see it.
std::expected<void, Error> DemandPager::forget_present() {
  pages::Bitmap present(ram_.page_count());
  if (auto found = ram_.find_present(present); !found) {
    return found;
  }
  for (const Region& region : ram_.regions()) {
    if (region.page_bytes == kHugePageSize) {
      present.clear_range(region.first_page, region.page_count);
    }
  }
  present &= missing_.all();
  present.for_each_run([this](pages::PageNumber first, std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i) {
      missing_.clear(first + i);
    }
  });
  return {};
}

void DemandPager::count_units() {
  const pages::Bitmap missing = missing_.all();
  for (const Region& region : ram_.regions()) {
    for (std::uint64_t at = 0; region.page_bytes == kHugePageSize && at < region.page_count; at += kPagesPerHugePage) {
      const pages::PageNumber first = region.first_page + at;
      const pages::PageNumber end = first + kPagesPerHugePage;
      std::uint32_t count = 0;
      for (pages::PageNumber page = missing.next_set(first, end); page < end; page = missing.next_set(page + 1, end)) {
        ++count;
      }
      lacking(first) = count;
    }
  }
}

}  // namespace godwit::memory
