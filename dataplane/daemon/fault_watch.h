#pragma once
// Whose faults a home lcore reads each turn, flow or none.

#include <vector>

#include "base/time.h"

namespace godwit::daemon {

class FaultWatch {
 public:
  virtual ~FaultWatch() = default;
  /// Reads what there is, without waiting. True: there was something.
  virtual bool poll_faults(Instant now) = 0;
  /// When that is to come again at the latest, after it was done at `polled_at`.
  [[nodiscard]] virtual Instant deadline(Instant polled_at) const = 0;
  /// To wait on while asleep; level-triggered.
  [[nodiscard]] virtual std::vector<int> descriptors() const = 0;
};

}  // namespace godwit::daemon
