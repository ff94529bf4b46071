// LiveSplit: its main part moves, and the stores stay.

#include <utility>

#include "base/check.h"
#include "dataplane/daemon/live_split.h"

namespace godwit::daemon {
namespace {
constexpr Duration kWidenEvery = milliseconds(5);
}  // namespace

// ---- the source ----

void LiveSplit::hold(bool at_once, std::function<void()> then) {
  GW_ASSERT(begun());
  if (!at_once && is_above_budget()) {
    return then();
  }
  const std::lock_guard lock(mutex_);
  rest_wanted_ = rest_at_once_ = true;
  rest_then_ = std::move(then);
  want_room();
}

bool LiveSplit::is_above_budget() const {
  const SplitLimits limits = this->limits();
  return !limits.gather && resident_pages() > limits.budget_pages;
}

/// What is to stay leaves room for what comes back of the rest.
std::expected<pages::Bitmap, transfer::GuestError> LiveSplit::set_apart() {
  std::expected<pages::Bitmap, memory::Error> apart;
  {
    const std::lock_guard evicting(evicting_);
    const std::uint64_t low_pages = limits().low_pages;
    apart = evictor_->set_apart(low_pages - low_pages / 8);
    evictor_->go_down();
    const std::lock_guard lock(mutex_);
    lift_apart_ = false;
  }
  if (!apart) {
    return guest_error(apart.error());
  }
  // Of what may not leave this stays true.
  if (auto refreshed = guest_.refresh_present(); !refreshed) {
    return std::unexpected(refreshed.error());
  }
  return std::move(*apart);
}

void LiveSplit::come_to_rest() {
  const std::lock_guard lock(mutex_);
  rest_wanted_ = lift_apart_ = true;
  want_room();
}

bool LiveSplit::rest_due() const {
  {
    const std::lock_guard lock(mutex_);
    if (!rest_wanted_ || held_) {
      return false;
    }
    if (rest_at_once_) {
      return true;
    }
  }
  return !is_above_budget();
}

/// Unless it is not wanted any more.
void LiveSplit::bring_to_rest() {
  const std::scoped_lock lock(evicting_, mutex_);  // no batch is under way, and all of them are told
  if (!rest_wanted_) {
    return;
  }
  held_ = true;
  const std::uint64_t kept_free = limits_.budget_pages - limits_.high_pages;
  room_.set_budget(limits_.gather ? kNoBudget : limits_.budget_pages - kept_free / 2);
  lcore_->post([this, then = std::exchange(rest_then_, nullptr)] {
    held_then_ = [this, then] {
      at_rest_ = true;
      if (then) {
        then();
      }
    };
    narrow_ = true;
    static_cast<void>(room_.take_refused());  // of before
    main_->hold(true);
  });
}

/// What was kept free, while nothing leaves, in eighths of it. With the first four the guest goes on as ever; when they
/// are used up, it is to stand still as soon as can be. It goes on with one more, and gets the next two slowly, a page
/// at a time: QEMU stops only when each of its threads has the page that it waits for. The last is for what QEMU
/// touches while it loads its devices at the destination.
void LiveSplit::widen_room(Instant now) {
  if (stands_still_ || now < widen_at_ || !room_.take_refused()) {
    return;
  }
  const SplitLimits limits = this->limits();
  const std::uint64_t eighth = (limits.budget_pages - limits.high_pages) / 8;
  room_.set_budget(
      std::min(std::max(limits.budget_pages - 3 * eighth, room_.budget_pages() + 1), limits.budget_pages - eighth));
  widen_at_ = now + kWidenEvery;
  short_of_room_ = true;
}

void LiveSplit::release() {
  {
    const std::lock_guard lock(mutex_);
    held_ = rest_wanted_ = rest_at_once_ = false;
    lift_apart_ = true;
    rest_then_ = nullptr;
    room_.set_budget(room_for(limits_));
    changed_.notify_all();
  }
  lcore_->post([this] {
    held_then_ = nullptr;
    narrow_ = short_of_room_ = stands_still_ = at_rest_ = false;
    main_->hold(false);
  });
}

/// A page is missing for a moment more when it is in place, and may have been written in that moment.
std::expected<void, transfer::GuestError> LiveSplit::drop_present(pages::Bitmap& missing,
                                                                  const pages::Bitmap& written) const {
  pages::Bitmap doubtful = missing;
  doubtful &= written;
  for (auto page = doubtful.next_set(0); page < doubtful.size(); page = doubtful.next_set(page + 1)) {
    const auto away = pager_->is_away(page);
    if (!away) {
      return guest_error(away.error());
    }
    if (!*away) {
      missing.clear(page);
    }
  }
  return {};
}

std::expected<transfer::KeptStores::Stored, transfer::GuestError> LiveSplit::list(const pages::Bitmap& written) {
  pages::Bitmap missing = pager_->missing();
  if (auto dropped = drop_present(missing, written); !dropped) {
    return std::unexpected(dropped.error());
  }
  // Afterwards: whatever is not told of as missing is present by now.
  if (auto refreshed = guest_.refresh_present(); !refreshed) {
    return std::unexpected(refreshed.error());
  }
  const split::PageCopies copies(places_->body(), of_.page_count);
  Stored stored{.pages = {}, .version_next = leaving_->draw_version()};
  stored.pages.reserve(missing.count());
  for (auto page = missing.next_set(0); page < missing.size(); page = missing.next_set(page + 1)) {
    const auto copy = copies.get(page);
    if (copy) {
      stored.pages.push_back({.page = page, .version = copy->version, .sub = copy->sub, .hash = copy->hash});
    } else if (pager_->is_missing(page)) {
      return std::unexpected(
          transfer::GuestError{"page " + std::to_string(page) + " is lost: neither here nor in any store of the VM's"});
    }
  }
  return stored;
}

std::expected<void, transfer::GuestError> LiveSplit::keep_stored(pages::Bitmap& stored, const pages::Bitmap& written) {
  pages::Bitmap here = stored;
  stored &= pager_->missing();
  if (auto dropped = drop_present(stored, written); !dropped) {
    return dropped;
  }
  guest_.note_present(here.and_not(stored));
  return {};
}

void LiveSplit::fetch(pages::PageNumber page) {
  if (!std::exchange(stands_still_, true)) {
    room_.set_budget(limits().budget_pages);
  }
  main_->demand({&page, 1});
}

bool LiveSplit::is_here(pages::PageNumber page) {
  if (pager_->is_missing(page)) {
    return false;
  }
  guest_.note_present(page);
  return true;
}

// ---- the destination ----

void LiveSplit::note(std::span<const wire::StoredPage> pages) {
  split::PageCopies copies(places_->body(), of_.page_count);
  for (const wire::StoredPage& stored : pages) {
    noted_.set(stored.page);
    copies.set(stored.page, {.sub = stored.sub, .version = stored.version, .hash = stored.hash});
  }
}

std::expected<void, transfer::GuestError> LiveSplit::settle(const pages::Bitmap& missing, const pages::Bitmap& stored,
                                                            std::uint64_t version_next) {
  split::PageCopies copies(places_->body(), of_.page_count);
  pages::Bitmap replaced = std::exchange(noted_, {});  // by the guest, since they were told of
  const std::uint64_t noted = replaced.count();
  replaced.and_not(stored);
  GW_ASSERT(replaced.count() + stored.count() == noted);
  for (auto page = replaced.next_set(0); page < replaced.size(); page = replaced.next_set(page + 1)) {
    copies.clear(page);
  }
  if (auto added = pager_->add_missing(stored); !added) {
    return guest_error(added.error());
  }
  pager_->await(missing);
  // The pipe of later batches comes with SplitGuest: until then nothing is evicted.
  auto pipe = memory::PinPipe::make();
  if (!pipe) {
    return guest_error(pipe.error());
  }
  if (auto leaving = memory::LeavingPages::create(file(kLeaving), of_, kSlots, std::move(*pipe), version_next);
      !leaving) {
    return guest_error(leaving.error());
  }
  places_->let_take_over();
  return {};
}

std::expected<void, memory::Error> LiveSplit::await_rest() {
  if (copies_ == split::Copies::kLost) {
    return std::unexpected(memory::Error{memory::ErrorCode::kBadArgument,
                                         "which pages are to come from where they were pulled, and which from sub "
                                         "hosts, is not known any more"});
  }
  const split::PageCopies copies(places_->body(), of_.page_count);
  pages::Bitmap rest = pager_->missing();
  for (auto page = rest.next_set(0); page < rest.size(); page = rest.next_set(page + 1)) {
    if (copies.get(page) || copies.lost(page)) {
      rest.clear(page);
    }
  }
  for (const memory::LeavingPage& page : leaving_->all()) {
    rest.clear(page.page);
  }
  pager_->await(rest);
  return {};
}

}  // namespace godwit::daemon
