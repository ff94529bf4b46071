// MainHost: what a store holds goes to others.

#include <algorithm>
#include <utility>

#include "dataplane/split/main_host.h"

namespace godwit::split {
namespace {

/// Fetched and not confirmed by the other store yet: 1 MiB of content.
constexpr std::size_t kMovingMax = 256;
constexpr std::uint64_t kDrainScanMax = 4096;  // pages a turn
/// Nothing is to be done, or nobody takes pages.
constexpr Duration kDrainAgain = milliseconds(100);

}  // namespace

void MainHost::drain(SubId sub, bool on) {
  Sub& its = subs_.at(sub);
  if (std::exchange(its.draining, on) == on) {
    return;
  }
  forget_moves_to(sub, false);
  unassigned_.insert(unassigned_.end(), its.to_put.begin(), its.to_put.end());
  its.to_put.clear();
  drain_at_ = {};
  assign_again();
}

bool MainHost::remove_sub(SubId sub) {
  if (!is_drained(sub)) {
    return false;
  }
  end_link(sub);
  subs_.erase(sub);
  return true;
}

bool MainHost::drains(SubId sub) const {
  const auto its = subs_.find(sub);
  return its != subs_.end() && its->second.draining;
}

bool MainHost::is_drained(SubId id) const {
  const Sub& sub = subs_.at(id);
  const auto copied = copied_.find(id);
  return sub.draining && !rebuild_ && !lost_.contains(id) && (copied == copied_.end() || copied->second == 0) &&
         sub.to_put.empty() && sub.to_move.empty() &&
         std::ranges::none_of(outgoing_, [id](const auto& sent) { return sent.second.sub == id; }) &&
         std::ranges::none_of(moving_, [id](const auto& moving) { return moving.second.to == id; });
}

void MainHost::drain_more() {
  if (gather_ || now_ < drain_at_ || std::ranges::none_of(subs_, [](const auto& sub) { return sub.second.draining; })) {
    return;
  }
  for (std::uint64_t i = 0; i < kDrainScanMax && moving_.size() + asked_.size() < kMovingMax; ++i) {
    const pages::PageNumber page = drain_hand_;
    drain_hand_ = page + 1 < copies_.page_count() ? page + 1 : 0;
    const auto copy = copies_.get(page);
    drain_idle_ = copy && drains(copy->sub) && drain_page(page) ? 0 : drain_idle_ + 1;
    if (drain_idle_ >= copies_.page_count()) {
      drain_idle_ = 0;
      drain_at_ = now_ + kDrainAgain;
      return;
    }
    did_ = true;
  }
}

/// Whether something was done.
bool MainHost::drain_page(pages::PageNumber page) {
  const Copy copy = copies_.get(page).value();
  const auto& link = subs_.at(copy.sub).link;
  if (memory_.is_missing(page)) {
    const bool at_it = asked_.contains(page) || parked_.contains(page) || moving_.contains(page);
    if (!at_it && choose_sub(page, false)) {
      ask(page, false);
    }
    return !at_it && asked_.contains(page);
  }
  clear_copy(page);  // nobody needs it
  if (link && link->ready()) {
    link->drop({.page = page, .version = copy.version});
  }  // else its next list has it dropped
  return true;
}

/// Whether this is the copy of the page that counts.
bool MainHost::still_at(const Copy& copy, pages::PageNumber page) const {
  const auto now = copy_that_counts(page);
  return now && now->sub == copy.sub && now->version == copy.version;
}

void MainHost::move(pages::PageNumber page, const Copy& from, pages::PageBytes bytes) {
  const auto to = choose_sub(page, false);
  if (!to || moving_.contains(page)) {
    return;
  }
  const Version version = memory_.draw_version();
  version_newest_ = std::max(version_newest_, version);
  moving_[page] = {.from = from, .to = *to, .version = version, .bytes = {bytes.begin(), bytes.end()}};
  subs_.at(*to).to_move.push_back(page);
}

bool MainHost::next_move(MainLink& link, PutPage& out) {
  auto& queue = subs_.at(link.sub()).to_move;
  for (std::size_t tries = gather_ || held_ ? 0 : queue.size(); tries > 0; --tries) {
    const pages::PageNumber page = queue.front();
    queue.pop_front();
    Moving& moving = moving_.at(page);
    if (!still_at(moving.from, page)) {
      moving_.erase(page);
    } else if (link.holds_work(page)) {
      queue.push_back(page);  // another version of it is not acknowledged yet
    } else {
      out = {.page = page, .version = moving.version, .bytes = std::exchange(moving.bytes, {})};
      return true;
    }
  }
  return false;
}

bool MainHost::on_moved(MainLink& link, const Entry& entry) {
  const auto found = moving_.find(entry.page);
  if (found == moving_.end() || found->second.to != link.sub() || found->second.version != entry.version ||
      !found->second.bytes.empty()) {
    return false;
  }
  const Copy from = found->second.from;
  moving_.erase(found);
  did_ = true;
  switch (static_cast<PutResult>(entry.note)) {
    case PutResult::kHeld:
      break;
    case PutResult::kFull:
      on_full(link);
      return true;
    case PutResult::kSuperseded:
      link.fail("the store holds a newer version of a page than the guest ever had");
      return true;
  }
  if (!still_at(from, entry.page)) {
    link.drop({.page = entry.page, .version = entry.version});  // it has come back meanwhile
    return true;
  }
  copies_.move(entry.page, link.sub(), entry.version);
  --copied_[from.sub];
  ++copied_[link.sub()];
  GW_ASSERT(directory_.set_held(entry.page, 1, placement::Holders::of(link.sub())));
  ++stats_.moved_pages;
  if (const auto its = subs_.find(from.sub); its != subs_.end() && its->second.link && its->second.link->ready()) {
    its->second.link->drop({.page = entry.page, .version = from.version});
  }
  return true;
}

/// They begin anew. Of what was `sent` only where no answer can come any more.
void MainHost::forget_moves_to(SubId sub, bool sent) {
  subs_.at(sub).to_move.clear();
  std::erase_if(moving_,
                [&](const auto& moving) { return moving.second.to == sub && (sent || !moving.second.bytes.empty()); });
}

}  // namespace godwit::split
