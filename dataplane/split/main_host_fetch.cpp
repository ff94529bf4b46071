// MainHost: pages that come back.

#include <algorithm>
#include <utility>

#include "dataplane/split/main_host.h"

namespace godwit::split {
namespace {

constexpr std::uint64_t kGatheredAtOnce = 64;
constexpr std::uint64_t kGatherScanMax = 4096;  // pages a turn
/// Faults in order that make the next pages worth asking for, and how many of them at most.
constexpr std::uint64_t kRunMin = 2;
constexpr std::uint64_t kAheadMax = 32;

}  // namespace

void MainHost::demand(std::span<const pages::PageNumber> pages) {
  wanted_.insert(pages.begin(), pages.end());
  did_ = did_ || !pages.empty();
}

/// True: nobody waits for it any more.
bool MainHost::serve(pages::PageNumber page) {
  // First of all: from here on it is not being evicted, so what is among those on their way out is the last.
  if (!memory_.wants(page)) {
    return !memory_.is_missing(page);
  }
  if (const auto version = leaving_version(page)) {
    const auto placed = memory_.place(page, std::span(page_).first<pages::kPageSize>());
    if (!placed) {
      failure_ = placed.error();
    } else if (*placed == MainMemory::Placed::kPlaced) {
      memory_.forget_leaving(page, *version);
      ++stats_.recalled_pages;
      did_ = true;
      return true;
    }
    return false;
  }
  if (const auto asked = asked_.find(page); asked != asked_.end()) {
    asked->second.demand = true;
  } else if (!parked_.contains(page)) {
    ask(page, true);
  }
  return false;
}

void MainHost::note_served(pages::PageNumber page, bool served) {
  const bool comes = served || asked_.contains(page) || parked_.contains(page) || !memory_.wants(page) ||
                     leaving_version(page).has_value();
  if (comes) {
    blocked_.erase(page);
    return;
  }
  const auto copy = copies_.get(page);
  const SubId sub = copy ? copy->sub : copies_.lost(page).value_or(0);
  blocked_.try_emplace(page, Blocked{.sub = sub, .since = now_}).first->second.sub = sub;
}

void MainHost::look_at_blocked() {
  const auto count = static_cast<std::uint64_t>(
      std::ranges::count_if(blocked_, [this](const auto& blocked) { return blocks(blocked.second); }));
  const bool told = stats_.blocked_pages != 0;
  stats_.blocked_pages = count;
  if (told != (count != 0)) {
    events_.on_blocked(count);
  }
}

/// Where the page's last content is, if no store but this one has it, and nobody is at it.
std::optional<Copy> MainHost::copy_that_counts(pages::PageNumber page) const {
  if (!memory_.wants(page) || leaving_version(page)) {
    return std::nullopt;
  }
  return copies_.get(page);
}

void MainHost::ask(pages::PageNumber page, bool demand) {
  const auto copy = copy_that_counts(page);
  if (!copy) {
    return;
  }
  const auto sub = subs_.find(copy->sub);
  if (sub == subs_.end() || !sub->second.link || !sub->second.link->open() ||
      (!demand && sub->second.link->asked >= MainLink::kAsksMax)) {
    return;
  }
  MainLink& link = *sub->second.link;
  const std::uint32_t ticket = link.get({.page = page, .version = copy->version});
  ++link.asked;
  asked_[page] = {.sub = copy->sub, .version = copy->version, .ticket = ticket, .demand = demand};
  did_ = true;
  if (demand) {
    ask_neighbours(page);
  }
}

void MainHost::ask_neighbours(pages::PageNumber page) {
  const std::uint64_t ahead = std::min(kAheadMax, std::uint64_t{1} << std::min<std::uint64_t>(run_, 6));
  const bool in_order = page > last_demand_ && page - last_demand_ <= ahead + 1;
  run_ = in_order ? run_ + 1 : 0;
  last_demand_ = page;
  for (pages::PageNumber next = page + 1; run_ >= kRunMin && next <= page + ahead && next < copies_.page_count();
       ++next) {
    if (memory_.is_missing(next) && !asked_.contains(next) && !parked_.contains(next)) {
      ask(next, false);
    }
  }
}

void MainHost::gather_more() {
  for (std::uint64_t i = 0; i < kGatherScanMax && asked_.size() < kGatheredAtOnce; ++i) {
    const pages::PageNumber page = gather_hand_;
    gather_hand_ = page + 1 < copies_.page_count() ? page + 1 : 0;
    if (memory_.is_missing(page) && !asked_.contains(page) && !parked_.contains(page)) {
      if (leaving_version(page)) {
        static_cast<void>(serve(page));
      } else {
        ask(page, false);
      }
    }
  }
  if (memory_.missing_count() == 0) {
    for (const Entry& entry : memory_.all_leaving()) {
      memory_.forget_leaving(entry.page, entry.version);  // QEMU has given it back meanwhile
    }
  }
}

void MainHost::hold(bool on) {
  held_ = on;
  did_ = true;
  for (const auto& [id, sub] : subs_) {
    forget_moves_to(id, false);
  }
}

bool MainHost::at_rest() const {
  return !rebuild_ && outgoing_.empty() && moving_.empty() && memory_.all_leaving().empty();
}

void MainHost::recall_unassigned() {
  for (const pages::PageNumber page : unassigned_) {
    const auto version = leaving_version(page);
    if (version && !memory_.is_missing(page)) {
      memory_.forget_leaving(page, *version);  // QEMU has given it back meanwhile
    } else if (version) {
      static_cast<void>(serve(page));
    }
  }
}

bool MainHost::awaits(const MainLink& link, std::uint32_t ticket, pages::PageNumber page) const {
  const auto asked = asked_.find(page);
  return asked != asked_.end() && asked->second.sub == link.sub() && asked->second.ticket == ticket;
}

/// What awaits() has let through.
void MainHost::on_answer(MainLink& link, pages::PageNumber page, pages::PageBytes bytes) {
  const Asked asked = asked_.at(page);
  asked_.erase(page);
  --link.asked;
  did_ = true;
  const auto copy = copy_that_counts(page);
  if (!copy || copy->sub != asked.sub || copy->version != asked.version) {
    ++stats_.late_pages;
    return;
  }
  if (copy->hash != 0 && pages::hash_page(bytes) != copy->hash) {
    return lose(page, asked.sub);
  }
  if (!asked.demand && !gather_ && !held_ && drains(copy->sub)) {
    return move(page, *copy, bytes);
  }
  place(page, asked.version, bytes, asked.demand);
}

void MainHost::on_lacks(MainLink& link, const Entry& entry) {
  const auto asked = asked_.find(entry.page);
  if (asked == asked_.end() || asked->second.sub != link.sub() || asked->second.version != entry.version) {
    return;
  }
  asked_.erase(asked);
  --link.asked;
  did_ = true;
  if (const auto copy = copy_that_counts(entry.page);
      copy && copy->sub == link.sub() && copy->version == entry.version) {
    lose(entry.page, link.sub());
  }
}

void MainHost::place(pages::PageNumber page, Version version, pages::PageBytes bytes, bool demand) {
  const auto placed = memory_.place(page, bytes);
  if (!placed) {
    failure_ = placed.error();
    return;
  }
  switch (*placed) {
    case MainMemory::Placed::kPlaced:
      directory_.set_resident(page, 1);
      ++stats_.refetched_pages;
      stats_.prefetched_pages += demand ? 0 : 1;
      wanted_.erase(page);
      blocked_.erase(page);
      did_ = true;
      break;
    case MainMemory::Placed::kAgain:
      if (demand || gather_) {
        parked_[page] = {.version = version, .bytes = {bytes.begin(), bytes.end()}};
      }
      break;
    case MainMemory::Placed::kNotWanted:
      ++stats_.late_pages;
      break;
  }
}

void MainHost::place_parked() {
  for (auto& [page, parked] : std::exchange(parked_, {})) {
    if (const auto copy = copy_that_counts(page); copy && copy->version == parked.version) {
      place(page, parked.version, std::span(parked.bytes).first<pages::kPageSize>(), true);
    }
  }
}

void MainHost::lose(pages::PageNumber page, SubId sub) {
  if (const auto copy = copies_.get(page)) {
    --copied_[copy->sub];
  }
  copies_.lose(page, sub);
  if (lost_[sub].insert(page).second) {
    events_.on_pages_lost(sub, lost_[sub].size());
  }
}

}  // namespace godwit::split
