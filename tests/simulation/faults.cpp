#include "tests/simulation/faults.h"

namespace godwit::simulation {

std::uint32_t draw_rate(Random& random, std::uint32_t chance_ppm, std::uint32_t ppm_max) {
  return random.chance_ppm(chance_ppm) ? static_cast<std::uint32_t>(random.below(ppm_max + std::uint64_t{1})) : 0U;
}

LinkConfig draw_link(Random& random) {
  LinkConfig link;
  link.delay = microseconds(static_cast<std::int64_t>(random.between(5, random.chance_ppm(900'000) ? 500 : 20'000)));
  link.jitter = microseconds(draw_rate(random, 400'000, 3000));
  link.loss_ppm = draw_rate(random, 500'000, 300'000);
  link.loss_small_ppm = draw_rate(random, 100'000, 700'000);
  link.loss_large_ppm = draw_rate(random, 100'000, 500'000);
  link.burst_enter_ppm = draw_rate(random, 200'000, 20'000);
  link.burst_leave_ppm = static_cast<std::uint32_t>(random.between(10'000, 300'000));
  link.burst_loss_ppm = static_cast<std::uint32_t>(random.between(300'000, 1'000'000));
  link.duplicate_ppm = draw_rate(random, 400'000, 300'000);
  link.flip_ppm = draw_rate(random, 300'000, 100'000);
  link.truncate_ppm = draw_rate(random, 200'000, 50'000);
  link.extend_ppm = draw_rate(random, 200'000, 50'000);
  link.swap_ppm = draw_rate(random, 200'000, 50'000);
  link.reorder_ppm = draw_rate(random, 400'000, 300'000);
  link.reorder_delay = microseconds(static_cast<std::int64_t>(random.between(10, 20'000)));
  if (random.chance_ppm(300'000)) {
    link.rate_bps = random.between(100'000'000, 10'000'000'000);
    link.queue_bytes = random.between(30'000, 2'000'000);
  }
  return link;
}

Instant Clock::world(Instant local) const {
  if (local == kNever) {
    return kNever;
  }
  const std::int64_t shown_ns = local.ns - offset_ns_;
  Instant at{shown_ns - shown_ns / 1'000'000 * drift_ppm_};
  while (this->local(at) < local) {  // local() rounds
    at = at + Duration{100};
  }
  return at;
}

}  // namespace godwit::simulation
