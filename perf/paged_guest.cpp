#include "perf/paged_guest.h"

#include <unistd.h>

#include <cstring>

namespace godwit::perf {

std::expected<PagedGuest, std::string> start_paged_guest(std::uint64_t page_count, Pages which) {
  PagedGuest paged;
  auto guest = FaultGuest::start(page_count, 1);
  if (!guest) {
    return std::unexpected(guest.error());
  }
  paged.guest = std::move(*guest);
  std::vector<memory::RegionFile> files;
  files.push_back(paged.guest->region_file());
  auto ram = memory::GuestRam::open(std::move(files));
  if (!ram) {
    return std::unexpected(ram.error().text);
  }
  paged.ram = std::make_unique<memory::GuestRam>(std::move(*ram));
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
  memory::TrackerRequest tracking;
  tracking.ram = paged.ram.get();
  tracking.userfaultfd = paged.guest->userfaultfd();
  tracking.pagemap = paged.guest->pagemap();
  auto chosen = memory::choose_tracker(std::move(tracking));
  if (!chosen) {
    return std::unexpected(chosen.error().text);
  }
  paged.tracker = std::move(chosen->tracker);
  memory::PagerRequest request;
  request.ram = paged.ram.get();
  request.tracker = paged.tracker.get();
  request.sees_kernel_accesses = true;
  request.file = "/dev/shm/godwit-perf-missing-" + std::to_string(getpid());
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
