#include "dataplane/daemon/live_guest.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "dataplane/pages/page_digest.h"

namespace godwit::daemon {
namespace {

constexpr std::size_t kWritesMax = 128;  // more than a receive burst has

bool test(std::vector<std::uint64_t>& bits, pages::PageNumber page) {
  return (std::atomic_ref<std::uint64_t>(bits[page / 64]).load(std::memory_order_relaxed) >> (page % 64) & 1) != 0;
}

}  // namespace

LiveGuest::LiveGuest(std::unique_ptr<memory::GuestRam> ram, std::unique_ptr<memory::WrittenTracker> tracker,
                     std::shared_ptr<memory::KnownHashes> hashes, std::optional<TrackingState> state,
                     bool memory_may_vanish)
    : ram_(std::move(ram)),
      hashes_(std::move(hashes)),
      tracker_(std::move(tracker)),
      state_(std::move(state)),
      keeps_hashes_(tracker_->kind() == memory::TrackerKind::kHashes || ram_->any_huge()),
      memory_may_vanish_(memory_may_vanish),
      present_((ram_->page_count() + 63) / 64),
      content_(ram_->any_huge() ? present_.size() : 0) {}

std::expected<void, transfer::GuestError> LiveGuest::arm() {
  if (auto armed = tracker_->arm(); !armed) {
    return guest_error(armed.error());
  }
  return {};
}

std::expected<void, transfer::GuestError> LiveGuest::disarm() {
  if (auto disarmed = tracker_->disarm(); !disarmed) {
    return guest_error(disarmed.error());
  }
  return {};
}

std::expected<void, transfer::GuestError> LiveGuest::refresh_present() {
  pages::Bitmap present(ram_->page_count());
  if (auto found = ram_->find_present(present); !found) {
    return guest_error(found.error());
  }
  for (std::size_t i = 0; i < present_.size(); ++i) {
    std::atomic_ref<std::uint64_t>(present_[i]).store(present.words()[i], std::memory_order_relaxed);
  }
  return {};
}

std::expected<void, transfer::GuestError> LiveGuest::clear_all() {
  forget_content(0, ram_->page_count());
  if (auto punched = ram_->punch(0, ram_->page_count()); !punched) {
    return guest_error(punched.error());
  }
  note_zero(0, ram_->page_count());
  return refresh_present();
}

std::expected<void, transfer::GuestError> LiveGuest::collect_written(pages::Bitmap& out) {
  if (state_) {
    state_->begin_scan();
  }
  if (auto collected = tracker_->collect(out); !collected) {
    return guest_error(collected.error());
  }
  if (auto whole = check_whole(); !whole) {
    return whole;
  }
  if (state_) {
    state_->end_scan(out);
  }
  // What holds data without having been written since arming was present then, or was placed by us. A page that was
  // given back instead is read without the mapping (see lies_open()).
  const std::span<const std::uint64_t> written = out.words();
  for (std::size_t i = 0; i < present_.size(); ++i) {
    if (written[i] != 0) {
      std::atomic_ref<std::uint64_t>(present_[i]).fetch_or(written[i], std::memory_order_relaxed);
    }
  }
  return {};
}

std::expected<void, transfer::GuestError> LiveGuest::find_zero(const pages::Bitmap& among, pages::Bitmap& out) {
  if (auto found = ram_->find_zero(among, out); !found) {
    return guest_error(found.error());
  }
  note_content(among, out);
  if (tracker_->compares_content()) {
    out.for_each_run([this](pages::PageNumber first, std::uint64_t count) {
      for (pages::PageNumber page = first; page < first + count; ++page) {
        tracker_->note_zero(page);
      }
    });
  }
  return {};
}

memory::PagerRequest LiveGuest::pager_request() const {
  memory::PagerRequest request;
  request.ram = ram_.get();
  request.tracker = tracker_.get();
  return request;
}

void LiveGuest::note_taken_away(const pages::Bitmap& missing, const pages::Bitmap& zero) {
  missing.for_each_run([this](pages::PageNumber first, std::uint64_t count) {
    set_present(first, count, false);
    for (pages::PageNumber page = first; keeps_hashes_ && page < first + count; ++page) {
      hashes_->forget(page);
    }
  });
  zero.for_each_run([this](pages::PageNumber first, std::uint64_t count) {
    set_present(first, count, false);
    note_zero(first, count);
  });
}

void LiveGuest::note_arrived(pages::PageNumber page, std::span<const std::byte> bytes) {
  if (keeps_hashes_) {
    hashes_->set(page, pages::hash_page(pages::PageBytes(bytes)));
  }
}

void LiveGuest::note_zero(pages::PageNumber first, std::uint64_t count) {
  for (pages::PageNumber page = first; keeps_hashes_ && page < first + count; ++page) {
    hashes_->set(page, pages::zero_page_hash());
  }
}

void LiveGuest::note_present(const pages::Bitmap& pages) {
  pages.for_each_run([this](pages::PageNumber first, std::uint64_t count) { set_present(first, count, true); });
}

void LiveGuest::note_content(const pages::Bitmap& among, const pages::Bitmap& zero) {
  for (std::size_t i = 0; i < content_.size(); ++i) {
    if (const std::uint64_t content = among.words()[i] & ~zero.words()[i]; content != 0) {
      std::atomic_ref<std::uint64_t>(content_[i]).fetch_or(content, std::memory_order_relaxed);
    }
  }
}

void LiveGuest::forget_content(pages::PageNumber first, std::uint64_t count) {
  for (pages::PageNumber page = first; !content_.empty() && page < first + count; ++page) {
    std::atomic_ref<std::uint64_t>(content_[page / 64])
        .fetch_and(~(std::uint64_t{1} << (page % 64)), std::memory_order_relaxed);
  }
}

bool LiveGuest::present(pages::PageNumber page) const { return test(present_, page); }

/// A page that vanishes between look-up and read would be allocated anew by the mapping, or kill us where memory is
/// full.
bool LiveGuest::lies_open(pages::PageNumber page) const {
  return !memory_may_vanish_ && test(content_.empty() ? present_ : content_, page);
}

void LiveGuest::set_present(pages::PageNumber first, std::uint64_t count, bool present) {
  if (!present) {
    forget_content(first, count);
  }
  for (pages::PageNumber page = first; page < first + count; ++page) {
    const std::uint64_t bit = std::uint64_t{1} << (page % 64);
    std::atomic_ref<std::uint64_t> word(present_[page / 64]);
    if (present) {
      word.fetch_or(bit, std::memory_order_relaxed);
    } else {
      word.fetch_and(~bit, std::memory_order_relaxed);
    }
  }
}

void LiveGuest::read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) {
  GW_ASSERT(page < ram_->page_count() && offset + out.size() <= pages::kPageSize);
  if (lies_open(page)) {
    std::memcpy(out.data(), ram_->mapped(page).data() + offset, out.size());
    return;
  }
  if (!memory_may_vanish_ && content_.empty()) {
    std::memset(out.data(), 0, out.size());  // a hole
    return;
  }
  if (!ram_->read(page, offset, out)) {
    std::memset(out.data(), 0, out.size());
    read_failed_.store(true, std::memory_order_release);
  }
}

std::span<const std::byte> LiveGuest::page_in_place(pages::PageNumber page, bool hash_in_tag) {
  GW_ASSERT(page < ram_->page_count());
  // A tracker that compares content must know what is placed. Without the hash in the tag that would be whatever was
  // read after the hash was made, perhaps something else.
  if ((tracker_->compares_content() && !hash_in_tag) || !lies_open(page)) {
    return {};
  }
  return ram_->mapped(page);
}

bool LiveGuest::damaged() const { return read_failed_.load(std::memory_order_acquire) || ram_->damaged(); }

std::expected<void, transfer::GuestError> LiveGuest::check_whole() const {
  if (auto whole = ram_->check_whole(); !whole) {
    return guest_error(whole.error());
  }
  if (damaged()) {
    return std::unexpected(transfer::GuestError{"a page of guest RAM could not be read"});
  }
  return {};
}

std::expected<void, transfer::GuestError> LiveGuest::place_pages(std::span<const transfer::Arrival> arrivals) {
  std::array<memory::PageWrite, kWritesMax> writes;
  for (auto rest = arrivals; !rest.empty();) {
    const std::size_t count = std::min(rest.size(), writes.size());
    for (std::size_t i = 0; i < count; ++i) {
      writes[i] = {rest[i].page, rest[i].offset, rest[i].bytes, present(rest[i].page)};
    }
    if (auto written = ram_->write(std::span(writes).first(count)); !written) {
      return guest_error(written.error());
    }
    rest = rest.subspan(count);
  }
  for (const transfer::Arrival& arrival : arrivals) {
    set_present(arrival.page, 1, true);
  }
  if (keeps_hashes_) {
    note_placed(arrivals);
  }
  return {};
}

void LiveGuest::note_placed(std::span<const transfer::Arrival> arrivals) {
  for (const transfer::Arrival& arrival : arrivals) {
    if (arrival.bytes.size() == pages::kPageSize) {
      hashes_->set(arrival.page, pages::hash_page(pages::PageBytes(arrival.bytes)));
      continue;
    }
    // Of a fragment's page: after the last one this is the hash of the whole.
    std::array<std::byte, pages::kPageSize> whole;
    if (ram_->read(arrival.page, 0, whole)) {
      hashes_->set(arrival.page, pages::hash_page(whole));
    } else {
      hashes_->forget(arrival.page);
    }
  }
}

std::expected<void, transfer::GuestError> LiveGuest::zero_pages(pages::PageNumber first, std::uint64_t count) {
  GW_ASSERT(first + count <= ram_->page_count());
  const pages::PageNumber end = first + count;
  forget_content(first, count);
  note_zero(first, count);
  // Only what is there: punching a hole costs as much as punching a page.
  for (pages::PageNumber page = first; page < end;) {
    if (!present(page)) {
      ++page;
      continue;
    }
    const memory::Region& region = ram_->region_of(page);
    const pages::PageNumber limit = std::min(end, region.first_page + region.page_count);
    pages::PageNumber run_end = page + 1;
    while (run_end < limit && present(run_end)) {
      ++run_end;
    }
    if (auto punched = ram_->punch(page, run_end - page); !punched) {
      return guest_error(punched.error());
    }
    if (region.page_bytes == pages::kPageSize) {
      set_present(page, run_end - page, false);
    }
    page = run_end;
  }
  return {};
}

}  // namespace godwit::daemon
