#include "dataplane/pages/access_history.h"

#include <algorithm>

namespace godwit::pages {
void AccessHistory::note(PageNumber first, std::span<const std::uint64_t> accessed) {
  GW_ASSERT(first % 64 == 0 && first / 64 + accessed.size() <= accessed_.words().size());
  const auto words = accessed_.words().subspan(first / 64);
  for (std::size_t i = 0; i < accessed.size(); ++i) {
    words[i] |= accessed[i];
  }
}

std::uint64_t AccessHistory::end_scan() {
  for (std::uint8_t& heat : heat_) {
    heat >>= 1;
  }
  std::uint64_t count = 0;
  accessed_.for_each_run([&](PageNumber first, std::uint64_t run) {
    for (PageNumber page = first; page < first + run; ++page) {
      heat_[page] |= kLastScan;
    }
    count += run;
  });
  accessed_.clear_all();
  ++scans_;
  return count;
}

std::vector<std::uint8_t> heat_cells(const AccessHistory& history, std::uint64_t cells) {
  GW_ASSERT(cells > 0);
  const std::uint64_t pages = history.page_count();
  const std::uint64_t count = std::min(cells, pages);
  std::vector<std::uint8_t> out(count);
  const auto heat = history.heat();
  for (std::uint64_t cell = 0; cell < count; ++cell) {
    // Pages are at most 2^32 or so, cells some thousand: no overflow.
    const PageNumber first = cell * pages / count;
    const PageNumber end = (cell + 1) * pages / count;
    std::uint64_t sum = 0;
    for (PageNumber page = first; page < end; ++page) {
      sum += heat[page];
    }
    out[cell] = static_cast<std::uint8_t>((sum + (end - first) - 1) / (end - first));
  }
  return out;
}

}  // namespace godwit::pages
