#include "controlplane/service/migration_figures.h"

#include <algorithm>

namespace godwit::controlplane {
namespace {

/// Clocks of two hosts may differ: never negative.
double seconds_between(std::int64_t from_unix_us, std::int64_t to_unix_us) {
  return static_cast<double>(std::max<std::int64_t>(to_unix_us - from_unix_us, 0)) / 1e6;
}

}  // namespace

void MigrationFigures::add(const MigrationRecord& ended) {
  const double took_s = seconds_between(ended.created_unix_us, ended.ended_unix_us);
  if (ended.state == api::COMMITTED) {
    ++committed;
    with_reuse += ended.reused ? 1 : 0;
    committed_duration.observe(took_s);
    rounds.observe(ended.stats.round());
    if (ended.stop_unix_us > 0 && ended.resume_unix_us > 0) {
      downtime.observe(seconds_between(ended.stop_unix_us, ended.resume_unix_us));
    }
  } else if (ended.state == api::INCOMPLETE) {
    ++incomplete;
  } else {
    ++aborted;
    aborted_duration.observe(took_s);
  }
  pages_raw += ended.stats.pages_sent();
  pages_zero += ended.stats.pages_zero();
  pages_reused += ended.stats.pages_reused();
  wire_bytes += ended.stats.wire_bytes();
  retransmitted_pages += ended.stats.retransmitted_pages();
}

}  // namespace godwit::controlplane
