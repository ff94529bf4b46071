#include "dataplane/transfer/page_requests.h"

#include <algorithm>
#include <functional>

namespace godwit::transfer {
namespace {
constexpr std::uint32_t kDoublingsMax =
    6;  // of the wait: a lost answer is the lane's to repeat, a request costs little
}

bool PageRequests::want(pages::PageNumber page) {
  if (!asked_.try_emplace(page).second) {
    return false;
  }
  new_.push_back(page);
  return true;
}

void PageRequests::want_again(pages::PageNumber page) {
  if (asked_.try_emplace(page, Asked{.again = true}).second) {
    late_.push_back(page);
  }
}

bool PageRequests::forget(pages::PageNumber page) { return asked_.erase(page) != 0; }

void PageRequests::ask_all_anew() {
  new_.clear();
  late_.clear();
  timers_ = {};
  for (auto& [page, asked] : asked_) {
    asked = {};
    new_.push_back(page);
  }
  std::sort(new_.begin(), new_.end());
}

bool PageRequests::next_due(Instant now) {
  while (!timers_.empty() && timers_.top().at <= now) {
    const Due due = timers_.top();
    timers_.pop();
    const auto found = asked_.find(due.page);
    if (found != asked_.end() && found->second.times != 0 && found->second.until == due.at) {
      late_.push_back(due.page);
    }
  }
  return !late_.empty();
}

bool PageRequests::next(Instant now, Duration wait, wire::DemandRequest& out) {
  out.pages.clear();
  // Never asked for goes first: its thread has waited for nothing yet but us.
  std::vector<pages::PageNumber>& from = new_.empty() && next_due(now) ? late_ : new_;
  out.again = &from == &late_;
  std::size_t taken = 0;
  for (; taken < from.size() && out.pages.size() < wire::kDemandPagesMax; ++taken) {
    const auto found = asked_.find(from[taken]);
    if (found == asked_.end()) {
      continue;
    }
    Asked& asked = found->second;
    asked.until = now + wait * (std::int64_t{1} << std::min(asked.times, kDoublingsMax));
    ++asked.times;
    timers_.push({asked.until, from[taken]});
    out.pages.push_back(from[taken]);
  }
  from.erase(from.begin(), from.begin() + static_cast<std::ptrdiff_t>(taken));
  return !out.pages.empty();
}

Instant PageRequests::deadline() const {
  if (!new_.empty() || !late_.empty()) {
    return Instant{INT64_MIN};
  }
  return timers_.empty() ? kNever : timers_.top().at;
}

}  // namespace godwit::transfer
