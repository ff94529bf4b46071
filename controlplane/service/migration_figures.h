#pragma once
// What has become of the migrations that ended since this control plane started. Values; the owner synchronises. No
// failure.

#include <cstdint>

#include "controlplane/store/store.h"
#include "metrics/metric.h"

namespace godwit::controlplane {

struct MigrationFigures {
  std::uint64_t committed = 0, aborted = 0, incomplete = 0, with_reuse = 0;
  /// Seconds: from the order to the outcome; of committed ones, from QEMU's STOP to its RESUME.
  metrics::Histogram committed_duration{{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000}};
  metrics::Histogram aborted_duration{committed_duration};
  metrics::Histogram downtime{{0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30}};
  metrics::Histogram rounds{{1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100}};  // of committed ones
  // as the source counted, of all
  std::uint64_t pages_raw = 0, pages_zero = 0, pages_reused = 0;
  std::uint64_t wire_bytes = 0, retransmitted_pages = 0;

  /// Once for each, when nothing of it will change any more.
  void add(const MigrationRecord& ended);
};

}  // namespace godwit::controlplane
