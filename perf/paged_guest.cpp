#include "perf/paged_guest.h"

#include <cstring>

#include "perf/fault_pager.h"

namespace godwit::perf {

std::expected<PagedGuest, std::string> start_paged_guest(std::uint64_t page_count, Pages which) {
  PagedGuest paged;
  auto guest = FaultGuest::start({.pages = page_count, .touches = page_count, .cpu = 1});
  if (!guest) {
    return std::unexpected(guest.error());
  }
  paged.guest = std::move(*guest);
  auto tracked = track(*paged.guest);
  if (!tracked) {
    return std::unexpected(tracked.error());
  }
  paged.ram = std::move(tracked->ram);
  paged.tracker = std::move(tracked->tracker);
  paged.source.resize(page_count * pages::kPageSize);
  for (pages::PageNumber page = 0; page < page_count; ++page) {
    const std::uint64_t number = page + 1;
    std::memcpy(&paged.source[page * pages::kPageSize], &number, sizeof number);
  }
  for (pages::PageNumber page = 0; which == Pages::kResident && page < page_count; ++page) {
    const memory::PageWrite write = paged.page(page);
    if (auto written = paged.ram->write({&write, 1}); !written) {
      return std::unexpected(written.error().text);
    }
  }
  memory::PagerRequest request;
  request.ram = paged.ram.get();
  request.tracker = paged.tracker.get();
  request.sees_kernel_accesses = true;
  request.file = missing_file();
  request.of.page_count = page_count;
  auto pager = memory::DemandPager::create(request);
  static_cast<void>(memory::MissingPages::remove(request.file));  // nobody takes this over
  if (!pager) {
    return std::unexpected(pager.error().text);
  }
  paged.pager = std::move(*pager);
  pages::Bitmap missing(page_count);
  if (which == Pages::kMissing) {
    missing.set_all();
  }
  for (const auto& done : {paged.tracker->arm(), paged.pager->add_missing(missing), paged.pager->arm()}) {
    if (!done) {
      return std::unexpected(done.error().text);
    }
  }
  return paged;
}

}  // namespace godwit::perf
