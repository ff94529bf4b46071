#pragma once
// How fast the link moves pages, how fast the guest writes them, and so how long the guest would stand still if it were
// stopped now. Pure; integers only. One migration's source owns it.

#include <cstdint>
#include <string>

#include "base/time.h"

namespace godwit::transfer {

class Convergence {
 public:
  /// A round of `pages` pages with content took so long.
  void round_moved(std::uint64_t pages, Duration took);
  /// A scan found `pages` written since the one before.
  void scan_found(std::uint64_t pages, Duration since_last, Duration scan_took);

  /// Time to scan once more and move `content_pages`.
  [[nodiscard]] Duration time_for(std::uint64_t content_pages, std::uint64_t zero_pages, Duration rtt) const;
  [[nodiscard]] std::uint64_t link_bps() const { return link_bps_; }
  [[nodiscard]] std::uint64_t written_pages_per_s() const { return written_pages_per_s_; }
  [[nodiscard]] Duration scan_time() const { return scan_time_; }
  /// "the guest writes 120 MB/s, the link moves 80 MB/s, the rest of 300 MB would take 3750 ms of downtime, the limit
  /// is 300 ms"
  [[nodiscard]] std::string explain(std::uint64_t content_pages, Duration estimate, Duration limit) const;

 private:
  std::uint64_t link_bps_ = 1'000'000'000;  // until a round was large enough to measure
  std::uint64_t written_pages_per_s_ = 0;
  Duration scan_time_{};
};

}  // namespace godwit::transfer
