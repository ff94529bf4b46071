#include "dataplane/memory/coldest_first.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "base/check.h"

namespace godwit::memory {
namespace {

/// Of what is here, how much is ranked at once: so that ranking costs little a page.
constexpr std::uint64_t kRankedShare = 16;
/// Of a new interval in the mean: of about the last four.
constexpr float kNewShare = 0.25F;
/// LeCaR's: what a choice that was wrong takes from a weight, and what is left of that when as many pages left since
/// as memory holds.
constexpr double kLearningRate = 0.45;
constexpr double kLeftAfterAll = 0.005;
/// Neither ranking ever falls silent, or it could not come back.
constexpr double kWeightMin = 0.01;

/// Leaves the first `count` of them, in order.
template <class T, class Before>
void keep_first(std::vector<T>& all, std::size_t count, Before before) {
  const auto end = all.begin() + static_cast<std::ptrdiff_t>(count);
  std::ranges::nth_element(all, end, before);
  all.erase(end, all.end());
  std::ranges::sort(all, before);
}

}  // namespace

ColdestFirst::ColdestFirst(std::uint64_t page_count)
    : pages_(page_count), known_here_(page_count), weights_{1 - kWeightMin, kWeightMin} {
  chosen_.fill(pages::Bitmap(page_count));
}

void ColdestFirst::note_placed(pages::PageNumber page) {
  const std::scoped_lock lock(placed_mutex_);
  placed_.push_back(page);
}

void ColdestFirst::take_placed() {
  std::vector<pages::PageNumber> placed;
  {
    const std::scoped_lock lock(placed_mutex_);
    placed.swap(placed_);
  }
  for (const pages::PageNumber page : placed) {
    came_back(page);
  }
}

void ColdestFirst::accessed(pages::PageNumber page) {
  Page& seen = pages_[page];
  if (seen.accessed_at == now_) {
    return;
  }
  if (seen.accessed_at != 0) {
    const auto interval = static_cast<float>(now_ - seen.accessed_at);
    seen.interval = seen.interval == 0 ? interval : seen.interval + kNewShare * (interval - seen.interval);
  }
  seen.accessed_at = now_;
}

void ColdestFirst::came_back(pages::PageNumber page) {
  for (const Ranking by : {kRecency, kReuse}) {
    if (chosen_[by].test(page)) {
      chosen_[by].clear(page);
      const double away = evicted_count_ - pages_[page].moved_at;
      const double regret = std::pow(kLeftAfterAll, away / static_cast<double>(here_count_));
      weights_[by] *= std::exp(-kLearningRate * regret);
    }
  }
  const double sum = weights_[kRecency] + weights_[kReuse];
  weights_[kRecency] = std::clamp(weights_[kRecency] / sum, kWeightMin, 1 - kWeightMin);
  weights_[kReuse] = 1 - weights_[kRecency];
  accessed(page);
  pages_[page].moved_at = evicted_count_;
  known_here_.set(page);
  // With scans time is theirs. An interval of no scan would depend on how much else came back meanwhile.
  if (!scanned_ && evicted_count_ - advanced_at_ >= here_count_ / kRankedShare) {
    advance();
  }
}

void ColdestFirst::advance() {
  ++now_;
  advanced_at_ = evicted_count_;
  for (auto& victims : victims_) {
    victims.clear();
  }
}

void ColdestFirst::learn(const pages::AccessHistory& history) {
  const std::scoped_lock lock(mutex_);
  if (history.scans() == 0) {
    return;
  }
  GW_ASSERT(history.page_count() == pages_.size());
  const auto scans = std::min<std::uint64_t>(history.scans(), pages::AccessHistory::kScans);
  for (auto ago = static_cast<unsigned>(scans); ago-- > 0;) {
    for (pages::PageNumber page = 0; page < pages_.size(); ++page) {
      if (history.accessed(page, ago)) {
        accessed(page);
      }
    }
    advance();
  }
  known_here_.set_all();  // what no scan has found accessed is cold, not new
}

void ColdestFirst::end_scan(const pages::Bitmap& accessed_pages) {
  const std::scoped_lock lock(mutex_);
  take_placed();
  accessed_pages.for_each_run([this](pages::PageNumber first, std::uint64_t count) {
    for (pages::PageNumber page = first; page < first + count; ++page) {
      // What has left since it was accessed shows in no scan of a guest's tables.
      if (!chosen_[kRecency].test(page) && !chosen_[kReuse].test(page)) {
        accessed(page);
        known_here_.set(page);
      }
    }
  });
  scanned_ = true;
  advance();
}

/// What is in memory without having been fetched was touched for the first time, since the last look.
void ColdestFirst::find_new(const pages::Bitmap& here) {
  here_count_ = 0;
  here.for_each_run([&](pages::PageNumber first, std::uint64_t count) {
    here_count_ += count;
    for (pages::PageNumber page = first; page < first + count; ++page) {
      if (!known_here_.test(page)) {
        accessed(page);
        pages_[page].moved_at = evicted_count_;
        chosen_[kRecency].clear(page);  // it stayed after all, or was zero
        chosen_[kReuse].clear(page);
      }
    }
  });
  here_count_ = std::max<std::uint64_t>(here_count_, 1);
  known_here_ = here;
}

float ColdestFirst::coldness(const Page& page, Ranking by) const {
  const auto age = static_cast<float>(now_ - page.accessed_at);
  if (by == kRecency) {
    return age;
  }
  return page.interval == 0 ? 2 * age : std::max(age, page.interval);
}

void ColdestFirst::rank(const pages::Bitmap& here, Ranking by, std::uint64_t wanted) {
  struct Candidate {
    float coldness;
    std::uint32_t since;  // as long ago as it came: of equals the first goes first
    pages::PageNumber page;
  };
  std::vector<Candidate> candidates;
  candidates.reserve(here_count_);
  for (pages::PageNumber page = here.next_set(0); page < here.size(); page = here.next_set(page + 1)) {
    if (known_here_.test(page)) {
      candidates.push_back({coldness(pages_[page], by), evicted_count_ - pages_[page].moved_at, page});
    }
  }
  const auto colder = [](const Candidate& one, const Candidate& other) {
    return std::tuple(other.coldness, other.since, one.page) < std::tuple(one.coldness, one.since, other.page);
  };
  const std::size_t some = (candidates.size() + kRankedShare - 1) / kRankedShare;
  keep_first(candidates, std::min(std::max<std::size_t>(some, wanted), candidates.size()), colder);
  victims_[by].clear();
  for (std::size_t i = candidates.size(); i-- > 0;) {
    victims_[by].push_back(candidates[i].page);
  }
}

/// Each as often as its weight says.
ColdestFirst::Ranking ColdestFirst::draw() {
  for (const Ranking by : {kRecency, kReuse}) {
    credits_[by] += weights_[by];
  }
  const Ranking by = credits_[kRecency] >= credits_[kReuse] ? kRecency : kReuse;
  credits_[by] -= 1;
  return by;
}

void ColdestFirst::choose(const pages::Bitmap& here, std::uint64_t count, std::vector<pages::PageNumber>& out) {
  const std::scoped_lock lock(mutex_);
  take_placed();
  const bool fresh = std::exchange(fresh_, false);
  if (fresh) {
    find_new(here);
  }
  const std::size_t begin = out.size();
  for (; count > 0; --count) {
    const Ranking by = draw();
    auto& victims = victims_[by];
    for (int turn = 0; turn < 2; ++turn) {
      // What has left or come back meanwhile is no victim.
      while (!victims.empty() && !(here.test(victims.back()) && known_here_.test(victims.back()))) {
        victims.pop_back();
      }
      if (victims.empty() && fresh) {
        rank(here, by, count);
      }
    }
    if (victims.empty()) {
      fresh_ = out.size() == begin;  // whoever asks may have found nothing in memory, and not asked again
      return;
    }
    const pages::PageNumber page = victims.back();
    victims.pop_back();
    out.push_back(page);
    known_here_.clear(page);
    chosen_[by].set(page);
    pages_[page].moved_at = ++evicted_count_;
  }
}

}  // namespace godwit::memory
