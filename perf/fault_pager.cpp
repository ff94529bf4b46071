#include "perf/fault_pager.h"

#include <fmt/core.h>
#include <unistd.h>

#include <utility>

namespace godwit::perf {
namespace {

constexpr std::uint64_t kPage = pages::kPageSize;

}  // namespace

std::expected<std::unique_ptr<memory::GuestRam>, std::string> map_ram(const FaultGuest& guest) {
  std::vector<memory::RegionFile> files;
  files.push_back(guest.region_file());
  auto ram = memory::GuestRam::open(std::move(files));
  if (!ram) {
    return std::unexpected(ram.error().text);
  }
  return std::make_unique<memory::GuestRam>(std::move(*ram));
}

std::expected<TrackedRam, std::string> track(const FaultGuest& guest) {
  auto ram = map_ram(guest);
  if (!ram) {
    return std::unexpected(ram.error());
  }
  TrackedRam tracked;
  tracked.ram = std::move(*ram);
  tracked.hashes = std::make_shared<memory::KnownHashes>(tracked.ram->page_count());
  memory::TrackerRequest request;
  request.ram = tracked.ram.get();
  request.hashes = tracked.hashes;
  request.userfaultfd = guest.userfaultfd();
  request.pagemap = guest.pagemap();
  auto chosen = memory::choose_tracker(std::move(request));
  if (!chosen) {
    return std::unexpected(chosen.error().text);
  }
  tracked.tracker = std::move(chosen->tracker);
  return tracked;
}

std::string missing_file() { return "/dev/shm/godwit-perf-missing-" + std::to_string(getpid()); }

std::expected<std::unique_ptr<memory::DemandPager>, std::string> page_guest(const TrackedRam& tracked,
                                                                            const pages::Bitmap& missing) {
  memory::PagerRequest request;
  request.ram = tracked.ram.get();
  request.tracker = tracked.tracker.get();
  request.sees_kernel_accesses = true;
  request.file = missing_file();
  request.of.page_count = tracked.ram->page_count();
  auto pager = memory::DemandPager::create(request);
  static_cast<void>(memory::MissingPages::remove(request.file));
  if (!pager) {
    return std::unexpected(pager.error().text);
  }
  for (const auto& done : {tracked.tracker->arm(), (*pager)->add_missing(missing), (*pager)->arm()}) {
    if (!done) {
      return std::unexpected(done.error().text);
    }
  }
  return std::move(*pager);
}

std::expected<LocalPager, std::string> LocalPager::make(const FaultGuest& guest) {
  auto tracked = track(guest);
  if (!tracked) {
    return std::unexpected(tracked.error());
  }
  LocalPager local;
  local.tracked_ = std::move(*tracked);
  pages::Bitmap all(local.page_count());
  all.set_all();
  auto pager = page_guest(local.tracked_, all);
  if (!pager) {
    return std::unexpected(pager.error());
  }
  local.pager_ = std::move(*pager);
  local.source_.resize(local.page_count() * kPage);
  for (pages::PageNumber page = 0; page < local.page_count(); ++page) {
    FaultGuest::number_page(page, std::span(local.source_).subspan(page * kPage, kPage));
  }
  return local;
}

memory::PageWrite LocalPager::page(pages::PageNumber page) const {
  return {page, 0, std::span(source_).subspan(page * kPage, kPage)};
}

std::expected<void, std::string> LocalPager::answer(FaultGuest& guest) {
  guest.begin();
  std::vector<pages::PageNumber> asked;
  while (!guest.done()) {
    asked.clear();
    if (auto read = pager_->read_faults(asked); !read) {
      return std::unexpected(read.error().text);
    }
    for (const pages::PageNumber number : asked) {
      const memory::PageWrite write = page(number);
      if (auto placed = pager_->place(0, {&write, 1}); !placed) {
        return std::unexpected(placed.error().text);
      }
    }
  }
  return {};
}

std::vector<std::string> times_head(const std::string& name) { return {name, "p50", "p90", "p99", "p99.9", "max"}; }

void report_times(const std::string& name, const std::string& key,
                  const std::function<std::uint64_t(double share)>& percentile_ns, Result& result) {
  std::vector<std::string> cells{name};
  for (const auto& [word, share] :
       {std::pair("p50", 0.5), {"p90", 0.9}, {"p99", 0.99}, {"p99_9", 0.999}, {"max", 1.0}}) {
    const double us = static_cast<double>(percentile_ns(share)) / 1e3;
    result.metric(fmt::format("{}_{}_us", key, word), us);
    cells.push_back(fmt::format("{:.1f}", us));
  }
  result.row(std::move(cells));
}

}  // namespace godwit::perf
