// MainHost: links, and pages on their way out.

#include "dataplane/split/main_host.h"

#include <algorithm>
#include <utility>

namespace godwit::split {
namespace {

constexpr Duration kFullAgain = milliseconds(1000);
/// Waits for room, or for a store: looked at again so often.
constexpr Duration kWaitingAgain = milliseconds(1);
constexpr std::size_t kDropsMax = 1024;            // at once, for a store that is full
constexpr std::uint64_t kScanPagesMax = 1U << 16;  // in search of them
constexpr std::size_t kRunsMax = 8;                // that are named

/// False: there is no place for it.
bool add_to_runs(std::vector<transfer::PageRun>& runs, pages::PageNumber page) {
  if (!runs.empty() && runs.back().first + runs.back().count == page) {
    ++runs.back().count;
    return true;
  }
  if (runs.size() == kRunsMax) {
    return false;
  }
  runs.push_back({.first = page, .count = 1});
  return true;
}

}  // namespace

MainHost::MainHost(MainMemory& memory, PageCopies copies, const pages::Bitmap& missing, MainEvents& events,
                   Copies state, std::function<void()> rebuilt)
    : memory_(memory), copies_(copies), events_(events), directory_(copies.page_count()), page_(pages::kPageSize) {
  GW_ASSERT(missing.size() == copies.page_count());
  if (state == Copies::kLost) {
    rebuild_ = Rebuild{.done = std::move(rebuilt), .listed = {}, .complete = {}};
  }
  for (const Entry& entry : memory.all_leaving()) {
    version_newest_ = std::max(version_newest_, entry.version);
    queued_.insert(entry.page);
    unassigned_.push_back(entry.page);
  }
  for (pages::PageNumber page = 0; page < copies_.page_count(); ++page) {
    if (const auto copy = copies_.get(page)) {
      ++copied_[copy->sub];
      version_newest_ = std::max(version_newest_, copy->version);
      if (missing.test(page) && !queued_.contains(page)) {
        GW_ASSERT(directory_.set_held(page, 1, placement::Holders::of(copy->sub)));
      }
    } else if (const auto sub = copies_.lost(page); sub && missing.test(page)) {
      lost_[*sub].insert(page);
    }
  }
}

MainHost::~MainHost() = default;

void MainHost::add_sub(SubId sub, const StoreId& store) { subs_[sub].store = store; }

// ---- links ----

transport::LaneUser& MainHost::begin_link(SubId sub) {
  GW_ASSERT(subs_.contains(sub));
  end_link(sub);
  subs_.at(sub).link = std::make_unique<MainLink>(*this, sub, copies_.page_count());
  return *subs_.at(sub).link;
}

void MainHost::start_link(Instant now, SubId sub, transport::Lane& priority, transport::Lane& bulk) {
  Version base = version_newest_;
  for (const Entry& entry : memory_.all_leaving()) {
    base = std::min(base, entry.version - 1);
  }
  subs_.at(sub).link->start(now, priority, bulk, subs_.at(sub).store, base);
}

void MainHost::end_link(SubId sub) {
  if (subs_.at(sub).link) {
    subs_.at(sub).link->fail("ended");
    lose_link(sub);
    subs_.at(sub).link.reset();
  }
}

/// What was asked of it is asked again when it is back; what was to go there goes where it can.
void MainHost::lose_link(SubId sub) {
  std::erase_if(asked_, [sub](const auto& asked) { return asked.second.sub == sub; });
  for (auto at = outgoing_.begin(); at != outgoing_.end();) {
    const pages::PageNumber page = at->first;
    const bool its = at->second.sub == sub;
    at = its ? outgoing_.erase(at) : std::next(at);
    if (its && leaving_version(page) && queued_.insert(page).second) {
      unassigned_.push_back(page);
    }
  }
  if (rebuild_) {
    rebuild_->complete.erase(sub);
    std::erase_if(rebuild_->listed, [sub](const auto& listed) { return listed.sub == sub; });
  }
  Sub& lost = subs_.at(sub);
  unassigned_.insert(unassigned_.end(), lost.to_put.begin(), lost.to_put.end());
  lost.to_put.clear();
  forget_moves_to(sub, true);
  lost.full = false;
  assign_again();
}

void MainHost::on_listed(MainLink& link, std::span<const Entry> entries) {
  for (const Entry& entry : entries) {
    const auto copy = copies_.get(entry.page);
    const bool known = copy && copy->sub == link.sub() && copy->version == entry.version;
    const bool leaves = !known && leaving_version(entry.page) == entry.version;
    if (leaves && memory_.is_missing(entry.page) && !outgoing_.contains(entry.page)) {
      // It was put, and the answer was lost with the connection.
      confirm(entry.page, entry.version,
              {.sub = link.sub(),
               .version = entry.version,
               .hash = pages::hash_page(std::span(page_).first<pages::kPageSize>())});
    } else if (!known && rebuild_) {
      rebuild_->listed.push_back({.sub = link.sub(), .page = entry.page, .version = entry.version, .zero = false});
    } else if (!known) {
      if (!leaves) {  // else it may be put here yet, and the lanes keep no order: the next list has it again
        link.drop({.page = entry.page, .version = entry.version});
      }
      continue;
    }
    link.listed().set(entry.page);
  }
  did_ = true;
}

void MainHost::on_list_end(MainLink& link) {
  if (rebuild_) {
    rebuild_->complete.insert(link.sub());
    return finish_rebuild();
  }
  for (pages::PageNumber page = 0; page < copies_.page_count(); ++page) {
    const auto copy = copies_.get(page);
    if (!copy || copy->sub != link.sub() || link.listed().test(page)) {
      continue;
    }
    if (memory_.is_missing(page) && !leaving_version(page)) {
      lose(page, link.sub());
    } else {
      clear_copy(page);
    }
  }
  did_ = true;
}

// ---- out ----

void MainHost::set_copy(pages::PageNumber page, const Copy& copy) {
  clear_copy(page);
  copies_.set(page, copy);
  ++copied_[copy.sub];
}

void MainHost::clear_copy(pages::PageNumber page) {
  if (const auto copy = copies_.get(page)) {
    copies_.clear(page);
    --copied_[copy->sub];
  }
}

std::optional<Version> MainHost::leaving_version(pages::PageNumber page) const {
  return memory_.find_leaving(page, std::span(page_).first<pages::kPageSize>());
}

void MainHost::evicted(std::span<const pages::PageNumber> pages) {
  for (const pages::PageNumber page : pages) {
    if (!leaving_version(page)) {
      continue;  // told late: it came back, or has been confirmed
    }
    directory_.set_resident(page, 1);  // on its way out, in the directory's words
    if (!queued_.contains(page) && !outgoing_.contains(page)) {
      assign(page);
    }
  }
}

/// Of those that are draining, or of the others.
std::optional<SubId> MainHost::choose_sub(pages::PageNumber page, bool draining) const {
  const auto takes = [draining](const Sub& sub) {
    return sub.link && sub.link->ready() && !sub.full && sub.draining == draining;
  };
  // Where a copy of it is, it takes no more room.
  if (const auto copy = copies_.get(page)) {
    if (const auto its = subs_.find(copy->sub); its != subs_.end() && takes(its->second)) {
      return copy->sub;
    }
  }
  std::optional<SubId> best;
  std::uint64_t least = UINT64_MAX;
  for (const auto& [id, sub] : subs_) {
    if (const std::uint64_t pages = directory_.count_held_by(id) + sub.to_put.size() + sub.to_move.size();
        takes(sub) && pages < least) {
      best = id;
      least = pages;
    }
  }
  return best;
}

void MainHost::assign(pages::PageNumber page) {
  queued_.insert(page);
  auto sub = choose_sub(page, false);
  if (!sub) {
    sub = choose_sub(page, true);
  }
  (sub ? subs_.at(*sub).to_put : unassigned_).push_back(page);
  did_ = true;
}

void MainHost::assign_again() {
  for (const pages::PageNumber page : std::exchange(unassigned_, {})) {
    assign(page);
  }
}

bool MainHost::next_put(MainLink& link, PutPage& out) {
  auto& queue = subs_.at(link.sub()).to_put;
  for (std::size_t tries = queue.size(); tries > 0 && (!gather_ || held_); --tries) {
    const pages::PageNumber page = queue.front();
    queue.pop_front();
    if (link.holds_work(page)) {
      queue.push_back(page);  // an older version of it is not acknowledged yet
      continue;
    }
    queued_.erase(page);
    if (prepare_put(link, page, out)) {
      return true;
    }
  }
  return next_move(link, out);
}

bool MainHost::prepare_put(MainLink& link, pages::PageNumber page, PutPage& out) {
  const auto version = leaving_version(page);
  if (!version || outgoing_.contains(page)) {
    return false;  // it came back, or waits for an answer, after which it is looked at again
  }
  if (!memory_.is_missing(page)) {
    memory_.forget_leaving(page, *version);  // QEMU has given it back meanwhile
    return false;
  }
  version_newest_ = std::max(version_newest_, *version);
  const pages::PageHash hash = pages::hash_page(std::span(page_).first<pages::kPageSize>());
  if (const auto copy = copies_.get(page); copy && copy->hash == hash && hash != 0 && !drains(copy->sub)) {
    if (const auto its = subs_.find(copy->sub); its != subs_.end() && its->second.link && its->second.link->ready()) {
      confirm(page, *version, *copy);
      ++stats_.unsent_pages;
      return false;
    }
  }
  if (const auto copy = copies_.get(page); copy && copy->sub == link.sub()) {
    clear_copy(page);
  }
  outgoing_[page] = {.version = *version, .sub = link.sub(), .hash = hash};
  out = {.page = page, .version = *version, .bytes = page_};
  ++stats_.sent_pages;
  return true;
}

void MainHost::confirm(pages::PageNumber page, Version leaving, const Copy& copy) {
  const auto old = copies_.get(page);
  if (!old || old->sub != copy.sub || old->version != copy.version) {
    if (old && old->sub != copy.sub) {
      if (const auto its = subs_.find(old->sub); its != subs_.end() && its->second.link && its->second.link->ready()) {
        its->second.link->drop({.page = page, .version = old->version});
      }
    }
    set_copy(page, copy);
  }
  GW_ASSERT(directory_.set_held(page, 1, placement::Holders::of(copy.sub)));
  memory_.forget_leaving(page, leaving);  // last: a kill before this puts it again
  did_ = true;
}

void MainHost::on_result(MainLink& link, const Entry& entry) {
  if (on_moved(link, entry)) {
    return;
  }
  const auto found = outgoing_.find(entry.page);
  if (found == outgoing_.end() || found->second.sub != link.sub() || found->second.version != entry.version) {
    return;
  }
  const Outgoing sent = found->second;
  outgoing_.erase(found);
  did_ = true;
  switch (static_cast<PutResult>(entry.note)) {
    case PutResult::kHeld:
      on_held(link, entry.page, {.sub = sent.sub, .version = sent.version, .hash = sent.hash});
      break;
    case PutResult::kFull:
      on_full(link);
      break;
    case PutResult::kSuperseded:
      // Versions only grow, so it is of another life of this VM; the list of the next connection has it dropped.
      link.fail("the store holds a newer version of a page than the guest ever had");
      break;
  }
  if (leaving_version(entry.page) && !queued_.contains(entry.page)) {
    assign(entry.page);
  }
}

void MainHost::on_held(MainLink& link, pages::PageNumber page, const Copy& copy) {
  subs_.at(link.sub()).told_full = false;
  const auto leaving = leaving_version(page);
  const bool missing = memory_.is_missing(page);
  if (leaving == copy.version && missing) {
    return confirm(page, copy.version, copy);
  }
  if (leaving == copy.version) {
    memory_.forget_leaving(page, copy.version);  // QEMU has given it back meanwhile
  }
  if (!copies_.get(page) && (leaving || !missing)) {
    set_copy(page, copy);  // as it left; it may leave like that again
  } else {
    link.drop({.page = page, .version = copy.version});
  }
}

void MainHost::on_full(MainLink& link) {
  Sub& sub = subs_.at(link.sub());
  if (drop_copies(sub, link) > 0) {
    return;
  }
  sub.full = true;
  sub.full_until = now_ + kFullAgain;
  unassigned_.insert(unassigned_.end(), sub.to_put.begin(), sub.to_put.end());
  sub.to_put.clear();
  forget_moves_to(link.sub(), false);
  assign_again();
  if (!std::exchange(sub.told_full, true)) {
    events_.on_sub_full(link.sub());
  }
}

/// Of pages that are resident: nobody needs them.
std::size_t MainHost::drop_copies(Sub& sub, MainLink& link) {
  std::size_t dropped = 0;
  const std::uint64_t count = copies_.page_count();
  for (std::uint64_t i = 0; i < std::min(count, kScanPagesMax) && dropped < kDropsMax; ++i) {
    const pages::PageNumber page = sub.drop_hand;
    sub.drop_hand = page + 1 < count ? page + 1 : 0;
    const auto copy = copies_.get(page);
    if (copy && copy->sub == link.sub() && !memory_.is_missing(page)) {
      clear_copy(page);
      link.drop({.page = page, .version = copy->version});
      ++dropped;
    }
  }
  return dropped;
}

// ---- all of it ----

bool MainHost::turn(Instant now) {
  now_ = now;
  if (!failure_.empty()) {
    return false;
  }
  for (auto at = wanted_.begin(); at != wanted_.end();) {
    const bool served = serve(*at);
    note_served(*at, served);
    at = served ? wanted_.erase(at) : std::next(at);
  }
  look_at_blocked();
  place_parked();
  if (held_) {
    recall_unassigned();
  } else if (gather_) {
    gather_more();
  } else {
    drain_more();
  }
  for (auto& [id, sub] : subs_) {
    if (sub.full && now >= sub.full_until) {
      sub.full = false;
      assign_again();
    }
    if (!unassigned_.empty() && sub.link && sub.link->ready() && !sub.full) {
      assign_again();
    }
    if (const auto why = sub.link ? sub.link->turn(now) : std::nullopt) {
      lose_link(id);
      events_.on_sub_lost(id, *why);
    }
  }
  return std::exchange(did_, false);
}

Instant MainHost::deadline() const {
  if (did_) {
    return now_;
  }
  Instant first = kNever;
  if (!wanted_.empty() || !parked_.empty() || gather_ || (held_ && !at_rest())) {
    first = now_ + kWaitingAgain;
  }
  for (const auto& [id, sub] : subs_) {
    first = std::min(first, sub.link ? sub.link->deadline() : kNever);
    first = std::min(first, sub.full ? sub.full_until : kNever);
    first = std::min(first, sub.draining ? std::max(drain_at_, now_ + kWaitingAgain) : kNever);
  }
  return first;
}

std::vector<SubId> MainHost::subs() const {
  std::vector<SubId> all;
  for (const auto& [id, sub] : subs_) {
    all.push_back(id);
  }
  return all;
}

SubStats MainHost::sub_stats(SubId id) const {
  const Sub& sub = subs_.at(id);
  const auto copied = copied_.find(id);
  SubStats stats;
  stats.connected = sub.link && sub.link->ready();
  stats.held_pages = directory_.count_held_by(id);
  stats.copied_pages = copied == copied_.end() ? 0 : copied->second - std::min(copied->second, stats.held_pages);
  stats.leaving_pages = sub.to_put.size() + static_cast<std::uint64_t>(std::ranges::count_if(
                                                outgoing_, [id](const auto& sent) { return sent.second.sub == id; }));
  if (const auto lost = lost_.find(id); lost != lost_.end()) {
    stats.lost_pages = lost->second.size();
    for (const pages::PageNumber page : lost->second) {
      if (!add_to_runs(stats.lost, page)) {
        break;
      }
    }
  }
  for (const auto& [page, blocked] : blocked_) {
    if (blocked.sub == id && blocks(blocked) && !add_to_runs(stats.blocking, page)) {
      break;
    }
  }
  stats.full = sub.full;
  stats.draining = sub.draining;
  stats.drained = is_drained(id);
  return stats;
}

MainStats MainHost::stats() const {
  MainStats stats = stats_;
  stats.waiting_pages = wanted_.size();
  stats.rebuilding = rebuild_.has_value();
  return stats;
}

bool MainHost::all_here() const { return memory_.missing_count() == 0 && memory_.all_leaving().empty(); }

}  // namespace godwit::split
