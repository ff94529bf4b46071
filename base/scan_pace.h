#pragma once
// How often something that costs processor time may be done, so that it takes no more than a share of one core. Pure;
// one thread. The time from one begin to the next is cost / share, and never less than the shortest period: what grew
// dearer comes less often. No failure.

#include <algorithm>

#include "base/check.h"
#include "base/time.h"

namespace godwit {

class ScanPace {
 public:
  /// `share_percent` of one core, 1 to 100.
  ScanPace(std::uint32_t share_percent, Duration shortest)
      : share_percent_(share_percent), period_(shortest), shortest_(shortest) {
    GW_ASSERT(share_percent >= 1 && share_percent <= 100 && shortest.ns > 0);
  }

  [[nodiscard]] bool due(Instant now) const { return now >= next_; }
  /// What began at `began` has cost so much.
  void note(Instant began, Duration cost) {
    const std::int64_t cost_ns = std::clamp<std::int64_t>(cost.ns, 0, INT64_MAX / 100);
    period_ = std::max(shortest_, Duration{cost_ns * 100 / share_percent_});
    next_ = Instant{began.ns > INT64_MAX - period_.ns ? INT64_MAX : began.ns + period_.ns};
  }
  /// As it stands: what the last cost asks for.
  [[nodiscard]] Duration period() const { return period_; }

 private:
  std::int64_t share_percent_;
  Duration period_, shortest_;
  Instant next_{INT64_MIN};
};

}  // namespace godwit
