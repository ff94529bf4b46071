#pragma once
// The victim policy by heat: of what is in memory, the pages leave first whose next access is expected to be farthest.
// It knows what can be seen of a guest from outside: which pages a scan found accessed, and which came back on a fault.
// Two rankings:
//   * by recency: the page whose last access is longest ago, as MGLRU's generations;
//   * by reuse: the page whose accesses are farthest apart, as LIRS and CLOCK-Pro rank (S. Jiang, X. Zhang, SIGMETRICS
//     2002). The distance is the mean time between accesses, or the time since the last if that is more. Of a page seen
//     accessed once it is twice that time: what is not known to come back is expected to stay away as long again.
// Neither is right for all programs: one that reads on and on through more than fits wants the second, one whose phases
// change the first. So each chooses a share of the victims, and loses weight when one that it chose comes back, the
// more the sooner: LeCaR (G. Vietri and others, HotStorage 2018), whose constants these are. It begins with recency:
// where little comes back there is little to learn from, and recency is seldom far off. docs/evaluation.md has how
// often pages have to be fetched again by this, by LRU, and by others.
//
// Time is counted in scans; where there has been none, in sixteenths of memory that were replaced. 12 bytes and 3 bits
// a page, and 16 bytes a page in memory while it ranks. Threads: choose() the evictor's; learn(), end_scan() and
// note_placed() any, the latter never waits for a ranking. Units: pages. No failure.

#include <array>
#include <cstdint>
#include <mutex>
#include <vector>

#include "dataplane/memory/victim_policy.h"
#include "dataplane/pages/access_history.h"

namespace godwit::memory {

class ColdestFirst final : public VictimPolicy {
 public:
  explicit ColdestFirst(std::uint64_t page_count);

  void choose(const pages::Bitmap& here, std::uint64_t count, std::vector<pages::PageNumber>& out) override;
  /// What is known before the first page leaves. Without scans it says nothing.
  void learn(const pages::AccessHistory& history);
  /// A scan is over, and found these accessed.
  void end_scan(const pages::Bitmap& accessed);
  /// Somebody waited for the page, and it is in memory again.
  void note_placed(pages::PageNumber page);

 private:
  enum Ranking : std::uint8_t { kRecency, kReuse, kRankings };
  struct Page {
    std::uint32_t accessed_at = 0;  // 0: never seen accessed
    float interval = 0;             // mean, between accesses; 0: not known
    std::uint32_t moved_at = 0;     // when it came or went, in pages evicted
  };

  void take_placed();
  void accessed(pages::PageNumber page);
  void came_back(pages::PageNumber page);
  void advance();
  void find_new(const pages::Bitmap& here);
  [[nodiscard]] float coldness(const Page& page, Ranking by) const;
  void rank(const pages::Bitmap& here, Ranking by, std::uint64_t wanted);
  [[nodiscard]] Ranking draw();

  std::mutex placed_mutex_;  // of what was placed and is not entered yet
  std::vector<pages::PageNumber> placed_;

  std::mutex mutex_;  // of the rest
  std::vector<Page> pages_;
  pages::Bitmap known_here_;                     // found in memory by a look-up or a scan, or placed since
  std::array<pages::Bitmap, kRankings> chosen_;  // by which ranking it left, until it comes back
  std::array<std::vector<pages::PageNumber>, kRankings> victims_;  // the coldest last
  std::array<double, kRankings> weights_, credits_{};
  bool fresh_ = false;  // the next `here` is
  bool scanned_ = false;
  std::uint32_t now_ = 1;
  std::uint32_t evicted_count_ = 0, advanced_at_ = 0;
  std::uint64_t here_count_ = 1;
};

}  // namespace godwit::memory
