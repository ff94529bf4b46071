#include "dataplane/memory/coldest_first.h"

#include <algorithm>
#include <array>

namespace godwit::memory {
namespace {

/// Of what is here, how much is ranked at once: a sixteenth, so that ranking costs little a page.
constexpr std::uint64_t kRankedShare = 16;

}  // namespace

void ColdestFirst::rank(const pages::Bitmap& here) {
  std::array<std::vector<pages::PageNumber>, 512>
      by_heat;  // those noted since the last scan are hotter than all others
  std::uint64_t all = 0;
  for (pages::PageNumber page = here.next_set(0); page < here.size(); page = here.next_set(page + 1)) {
    by_heat[history_.heat(page) + (history_.noted(page) ? 256U : 0U)].push_back(page);
    ++all;
  }
  const std::uint64_t wanted = (all + kRankedShare - 1) / kRankedShare;
  for (const auto& pages : by_heat) {
    for (const pages::PageNumber page : pages) {
      if (victims_.size() == wanted) {
        break;
      }
      victims_.push_back(page);
    }
  }
  std::ranges::reverse(victims_);
}

void ColdestFirst::choose(const pages::Bitmap& here, std::uint64_t count, std::vector<pages::PageNumber>& out) {
  const std::size_t begin = out.size();
  for (int turn = 0; turn < 2 && out.size() == begin; ++turn) {
    while (!victims_.empty() && out.size() - begin < count) {
      // One that has left meanwhile, or come back, is no victim; the last resort takes whatever there is.
      if (const pages::PageNumber page = victims_.back(); here.test(page) && (turn != 0 || !history_.noted(page))) {
        out.push_back(page);
      }
      victims_.pop_back();
    }
    if (out.size() == begin) {
      rank(here);
    }
  }
}

}  // namespace godwit::memory
