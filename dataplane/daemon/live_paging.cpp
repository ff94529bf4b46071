#include "dataplane/daemon/live_paging.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"

namespace godwit::daemon {
namespace {

constexpr const char* kEnding = ".missing";
constexpr std::size_t kWritesMax = 128;  // more than a receive burst has

/// Later it may do.
bool passes(const memory::Error& error) { return error.code == memory::ErrorCode::kNoMemory; }

}  // namespace

std::string LivePaging::file_of(const std::string& directory, const Id128& vm_uuid) {
  return directory + "/" + vm_uuid.text() + kEnding;
}

void LivePaging::remove_unfinished_files(const std::string& directory) {
  memory::GuestStateFile::remove_unfinished(directory, kEnding);
}

void LivePaging::remove_file(const std::string& directory, const Id128& vm_uuid) {
  static_cast<void>(memory::MissingPages::remove(file_of(directory, vm_uuid)));  // nobody can believe what is left
}

std::expected<std::shared_ptr<LivePaging>, memory::Error> LivePaging::open(Open how, LiveGuest& guest,
                                                                           const std::string& file,
                                                                           const memory::MissingOf& of,
                                                                           std::uint32_t lcores) {
  memory::PagerRequest request = guest.pager_request();
  request.sees_kernel_accesses = true;
  request.file = file;
  request.of = of;
  request.lcores = lcores;
  auto pager = how(std::move(request));
  if (!pager) {
    return std::unexpected(pager.error());
  }
  return std::shared_ptr<LivePaging>(new LivePaging(guest, std::move(*pager), nullptr, lcores));
}

std::shared_ptr<LivePaging> LivePaging::of_split(LiveGuest& guest, std::shared_ptr<LiveSplit> split,
                                                 std::uint32_t lcores, bool armed) {
  auto pager = split->pager();
  std::shared_ptr<LivePaging> paging(new LivePaging(guest, std::move(pager), std::move(split), lcores));
  paging->missing_first_.store(paging->missing_count(), std::memory_order_relaxed);
  paging->armed_.store(armed, std::memory_order_release);
  return paging;
}

std::expected<std::shared_ptr<LivePaging>, memory::Error> LivePaging::create(LiveGuest& guest, const std::string& file,
                                                                             const memory::MissingOf& of,
                                                                             std::uint32_t lcores) {
  return open(&memory::DemandPager::create, guest, file, of, lcores);
}

std::expected<std::shared_ptr<LivePaging>, memory::Error> LivePaging::take_over(LiveGuest& guest,
                                                                                const std::string& file,
                                                                                const memory::MissingOf& of,
                                                                                std::uint32_t lcores) {
  auto paging = open(&memory::DemandPager::take_over, guest, file, of, lcores);
  if (paging) {
    (*paging)->missing_first_.store((*paging)->missing_count(), std::memory_order_relaxed);
    (*paging)->armed_.store(true, std::memory_order_release);
  }
  return paging;
}

std::expected<void, transfer::GuestError> LivePaging::punch(const pages::Bitmap& missing, const pages::Bitmap& zero) {
  auto done = pager_->add_missing(missing);
  if (done) {
    done = pager_->add_zero(zero);
  }
  if (!done) {
    return guest_error(done.error());
  }
  guest_.note_taken_away(missing, zero);
  return {};
}

std::expected<bool, transfer::GuestError> LivePaging::guard() {
  const auto guarded = pager_->guard();
  return guarded ? std::expected<bool, transfer::GuestError>(*guarded) : guest_error(guarded.error());
}

std::expected<void, transfer::GuestError> LivePaging::arm(const pages::Bitmap& missing) {
  // A page that only one of us takes for missing would be made up of zeros, or never come.
  pages::Bitmap differing = pager_->missing();
  if (differing.count() != missing.count()) {
    return std::unexpected(transfer::GuestError{
        "the pages that were taken away are not those that are missing: " + std::to_string(differing.count()) +
        " and " + std::to_string(missing.count())});
  }
  differing.and_not(missing);
  if (differing.any()) {
    return std::unexpected(transfer::GuestError{"pages were taken away that are not missing"});
  }
  if (auto armed = pager_->arm(); !armed) {
    return guest_error(armed.error());
  }
  missing_first_.store(missing_count(), std::memory_order_relaxed);
  armed_.store(true, std::memory_order_release);
  return {};
}

std::expected<void, transfer::GuestError> LivePaging::disarm() {
  if (!armed()) {
    return {};
  }
  // Of one that is split faults go on: what its stores have is missing still.
  if (auto ended = split_ ? std::expected<void, memory::Error>{} : pager_->end(); !ended) {
    return guest_error(ended.error());
  }
  armed_.store(false, std::memory_order_release);
  // What was placed here without being written shows in no scan.
  return guest_.refresh_present();
}

bool LivePaging::poll() {
  if (!armed() || split_) {
    return false;
  }
  const std::size_t before = faults_.size();
  // A fault that could not be answered is tried again with the next look, so what was wrong may be over then.
  const auto read = pager_->read_faults(faults_);
  failure_ = read || passes(read.error()) ? std::nullopt : std::optional(transfer::GuestError{read.error().text});
  return faults_.size() != before;
}

std::expected<void, transfer::GuestError> LivePaging::read_events(transfer::PagingEvents& out) {
  if (failure_) {
    return std::unexpected(*failure_);
  }
  if (split_) {
    split_->take_awaited(faults_, out.given_back);
  }
  out.faults.insert(out.faults.end(), faults_.begin(), faults_.end());
  faults_.clear();
  return {};
}

std::expected<void, transfer::GuestError> LivePaging::place(std::uint32_t lcore, std::span<transfer::PageWrite> pages) {
  GW_ASSERT(lcore < placed_.size());
  std::vector<memory::PageRange>& placed = placed_[lcore];
  std::array<memory::PageWrite, kWritesMax> writes;
  for (auto rest = pages; !rest.empty();) {
    const auto some = rest.first(std::min(rest.size(), writes.size()));
    std::ranges::transform(some, writes.begin(), [](const transfer::PageWrite& page) {
      return memory::PageWrite{.page = page.page, .offset = 0, .bytes = page.bytes};
    });
    placed.clear();
    const auto done = pager_->place(lcore, std::span(writes).first(some.size()), &placed, only());
    if (split_ && done && !*done) {
      split_->want_room();  // and what found none is sent again
    }
    auto at = some.begin();
    for (const memory::PageRange& range : placed) {
      for (pages::PageNumber page = range.first; page < range.first + range.count; ++page, ++at) {
        at = std::ranges::find(at, some.end(), page, &transfer::PageWrite::page);
        GW_ASSERT(at != some.end());
        at->placed = true;
        guest_.note_arrived(page, at->bytes);
      }
    }
    if (!done && !passes(done.error())) {
      return guest_error(done.error());
    }
    rest = rest.subspan(some.size());
  }
  return {};
}

std::expected<void, transfer::GuestError> LivePaging::place_zero(std::uint32_t lcore, pages::PageNumber first,
                                                                 std::uint64_t count,
                                                                 std::vector<transfer::PageRun>& placed) {
  GW_ASSERT(lcore < placed_.size());
  std::vector<memory::PageRange>& zeroed = placed_[lcore];
  zeroed.clear();
  const auto done = pager_->place_zero(lcore, {first, count}, &zeroed, only());
  for (const memory::PageRange& range : zeroed) {
    placed.push_back({range.first, range.count});
    guest_.note_zero(range.first, range.count);
  }
  if (!done && !passes(done.error())) {
    return guest_error(done.error());
  }
  return {};
}

}  // namespace godwit::daemon
