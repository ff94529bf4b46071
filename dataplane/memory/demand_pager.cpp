#include "dataplane/memory/demand_pager.h"

#include <chrono>

#include "dataplane/memory/kernel_abi.h"

namespace godwit::memory {

std::uint64_t DemandPager::now_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

std::expected<std::shared_ptr<UserfaultSet>, Error> DemandPager::check(const PagerRequest& request) {
  GW_ASSERT(request.ram != nullptr && request.tracker != nullptr && request.lcores > 0);
  GW_ASSERT(request.of.page_count == request.ram->page_count());
  const auto refused = [](const std::string& why) {
    return std::unexpected(Error{ErrorCode::kUnsupported, "no post-copy: " + why});
  };
  auto userfaults = request.tracker->userfaults();
  if (!userfaults) {
    return refused("it needs a userfaultfd of QEMU, and there is none");
  }
  if (!request.sees_kernel_accesses) {
    return refused(
        "QEMU's userfaultfd sees no accesses of the kernel, such as virtio's and KVM's (it was made with "
        "UFFD_USER_MODE_ONLY)");
  }
  const std::uint64_t offered = Userfault::kernel_features().value_or(0);
  if ((offered & abi::kFeatureMissingShmem) == 0) {
    return refused("this kernel's userfaultfd knows no missing pages of shared memory (Linux 4.11)");
  }
  if (request.ram->any_huge() && (offered & abi::kFeatureMinorHuge) == 0) {
    return refused("this kernel's userfaultfd has no minor faults on huge pages (Linux 5.13)");
  }
  return userfaults;
}

std::expected<std::unique_ptr<DemandPager>, Error> DemandPager::create(PagerRequest request) {
  auto userfaults = check(request);
  if (!userfaults) {
    return std::unexpected(userfaults.error());
  }
  auto missing = MissingPages::create(request.file, request.of);
  if (!missing) {
    return std::unexpected(missing.error());
  }
  return std::unique_ptr<DemandPager>(new DemandPager(std::move(request), std::move(*userfaults), std::move(*missing)));
}

std::expected<std::unique_ptr<DemandPager>, Error> DemandPager::take_over(PagerRequest request) {
  auto userfaults = check(request);
  if (!userfaults) {
    return std::unexpected(userfaults.error());
  }
  auto missing = MissingPages::adopt(request.file, request.of);
  if (!missing) {
    return std::unexpected(missing.error());
  }
  std::unique_ptr<DemandPager> pager(new DemandPager(std::move(request), std::move(*userfaults), std::move(*missing)));
  // Between placing a page and saying so the former process may have died.
  if (auto done = pager->forget_present(); !done) {
    return std::unexpected(done.error());
  }
  // Which of them were evicted nobody knows any more: so each is asked about.
  const pages::Bitmap missing_now = pager->missing();
  for (auto page = missing_now.next_set(0); page < missing_now.size(); page = missing_now.next_set(page + 1)) {
    pager->evicted_.set(page);
  }
  if (auto done = pager->arm(); !done) {
    return std::unexpected(done.error());
  }
  if (auto done = pager->wake_all(); !done) {
    return std::unexpected(done.error());
  }
  return pager;
}

DemandPager::DemandPager(PagerRequest request, std::shared_ptr<UserfaultSet> userfaults, MissingPages missing)
    : ram_(*request.ram),
      tracker_(*request.tracker),
      userfaults_(std::move(userfaults)),
      room_(request.room),
      protects_(tracker_.protects()),
      maps_protected_((Userfault::kernel_features().value_or(0) & abi::kFeatureWpUnpopulated) != 0),
      missing_(std::move(missing)),
      claimed_(ram_.page_count()),
      evicted_(ram_.page_count()),
      asked_(ram_.page_count()),
      awaited_(ram_.page_count()),
      lacking_(ram_.page_count() / kPagesPerHugePage + 1),
      lcores_(request.lcores + 1) {
  for (PerLcore& lcore : lcores_) {
    lcore.joined.resize(kJoinedPagesMax * pages::kPageSize);
  }
}

DemandPager::~DemandPager() {
  if (attached_) {
    userfaults_->reader().hand_paging_to(nullptr);
  }
}

std::expected<void, Error> DemandPager::catch_faults() {
  for (const Region& region : ram_.regions()) {
    const bool huge = region.page_bytes == kHugePageSize;
    if (auto done = userfaults_->register_missing({region.qemu_address, region.bytes}, huge, protects_); !done) {
      return done;
    }
  }
  return {};
}

std::expected<bool, Error> DemandPager::guard() {
  if (auto caught = catch_faults(); !caught) {
    return std::unexpected(caught.error());
  }
  guarded_ = true;
  // Looked at afterwards: now nothing can come into being any more.
  pages::Bitmap present(ram_.page_count());
  if (auto found = ram_.find_present(present); !found) {
    return std::unexpected(found.error());
  }
  return !present.any();
}

std::expected<void, Error> DemandPager::arm() {
  count_units();
  // Before the first fault: what nobody owns is dropped when read.
  userfaults_->reader().hand_paging_to(this);
  attached_ = true;
  // Whoever has waited since guard() faults again: the tracker's reader may have dropped it.
  if (auto done = guarded_ ? wake_all() : catch_faults(); !done) {
    return done;
  }
  missing_.let_take_over();
  return {};
}

std::expected<void, Error> DemandPager::wake_all() {
  for (const Region& region : ram_.regions()) {
    if (auto done = userfaults_->wake({region.qemu_address, region.bytes}); !done) {
      return done;
    }
  }
  return {};
}

std::expected<void, Error> DemandPager::end() {
  if (const std::uint64_t left = missing_.count(); left != 0) {
    return std::unexpected(
        Error{ErrorCode::kBadArgument, "post-copy cannot end: " + std::to_string(left) + " pages are missing"});
  }
  ending_ = true;
  if (auto done = tracker_.end_paging(); !done) {
    return done;
  }
  userfaults_->reader().hand_paging_to(nullptr);
  attached_ = false;
  // Who raised a fault that was read and not answered yet finds the page now, or gets zeros from the kernel.
  return wake_all();
}

DemandPager::Unit DemandPager::unit_of(pages::PageNumber page) const {
  const Region& region = ram_.region_of(page);
  const std::uint64_t count = region.page_bytes / pages::kPageSize;
  return {&region, {region.first_page + (page - region.first_page) / count * count, count}};
}

std::atomic<std::uint32_t>& DemandPager::lacking(pages::PageNumber first_of_unit) {
  return lacking_[first_of_unit / kPagesPerHugePage];
}

PagerStats DemandPager::stats() const {
  PagerStats stats{.faults = faults_, .removed_pages = removed_, .missing_pages = missing_.count()};
  for (const PerLcore& lcore : lcores_) {
    stats.demand_pages += lcore.demand;
    stats.background_pages += lcore.background;
    stats.zero_pages += lcore.zero;
    stats.local_pages += lcore.local;
    stats.dropped_pages += lcore.dropped;
    lcore.latency.add_to(stats.latency);
  }
  const std::uint64_t now = now_ns();
  const std::lock_guard lock(faults_mutex_);
  stats.waiting_faults = waiting_.size();
  for (const Waiting& waiting : waiting_) {
    stats.waiting_ns += now - waiting.since_ns;
  }
  return stats;
}

}  // namespace godwit::memory
