#include "tests/simulation/lane_scenario.h"

#include <algorithm>

#include "dataplane/transport/credit.h"

namespace godwit::simulation {

Scenario draw_scenario(Random& random, Size size) {
  constexpr std::array<std::uint32_t, 6> kDatagrams = {1232, 1452, 1472, 4180, 8972, 9188};
  const bool large = size == Size::kLarge;
  const auto up_to_us = [&random](std::uint64_t us) {
    return microseconds(static_cast<std::int64_t>(random.below(us + 1)));
  };
  Scenario s;
  s.datagram_bytes = kDatagrams[random.below(kDatagrams.size())];
  s.pages = random.between(1, large ? 2000 : 100);
  s.rounds = static_cast<std::uint32_t>(random.between(1, large ? 12 : 4));
  s.messages = static_cast<std::uint32_t>(random.below(large ? 100 : 8));
  s.lives = random.chance_ppm(750'000) ? 1 : static_cast<std::uint32_t>(random.between(2, 3));
  s.same_flow_ids = random.chance_ppm(500'000);
  s.links = {draw_link(random), draw_link(random)};
  if (random.chance_ppm(10'000)) {  // slower than the longest probe timeout
    s.links[0].delay = s.links[1].delay = milliseconds(static_cast<std::int64_t>(random.between(120, 300)));
    s.lives = 1;
  }
  s.base_rtt = std::max(microseconds(500), s.links[0].delay + s.links[1].delay);
  s.faults_end = large ? milliseconds(500) : up_to_us(100'000);
  s.pause_ppm = draw_rate(random, 300'000, 20'000);
  s.stop_reading_ppm = draw_rate(random, 200'000, 20'000);
  s.replay_ppm = draw_rate(random, 500'000, 200'000);
  s.write_ppm = draw_rate(random, 700'000, 500'000);
  for (std::size_t i = 0; i < 2; ++i) {
    const bool starved = random.chance_ppm(300'000);
    s.credit_packets[i] =
        static_cast<std::uint32_t>(starved ? transport::kCreditPacketsInitial : random.between(64, 512));
    s.inbox_datagrams_max[i] = random.chance_ppm(300'000) ? random.between(8, 64) : 4096;
    s.burst_datagrams[i] = random.chance_ppm(300'000) ? random.between(1, 4) : 32;
  }
  s.blackhole = random.chance_ppm(150'000);
  s.lane_dead = random.chance_ppm(100'000);
  s.mtu_shrinks = random.chance_ppm(150'000);
  s.shrinks_after = up_to_us(20'000);
  s.blackhole_after = up_to_us(20'000);
  s.crash_after = up_to_us(30'000);
  s.crashes = random.below(2);
  s.crash_is_told = random.chance_ppm(700'000);
  constexpr std::array<transport::Cipher, 3> kCiphers = {transport::Cipher::kNone, transport::Cipher::kAes128Gcm,
                                                         transport::Cipher::kAes256Gcm};
  s.cipher = kCiphers[random.below(kCiphers.size())];
  s.key_limits.rekey_packets = random.between(1, 500);
  s.key_limits.rekey_age = milliseconds(static_cast<std::int64_t>(random.between(1, 2000)));
  s.priority_pages = random.chance_ppm(500'000) ? random.below(s.pages + 1) : 0;
  constexpr std::array<std::uint32_t, 3> kNarrow = {1472, 1372, 1232};
  s.narrow_datagram_bytes = kNarrow[random.below(kNarrow.size())];
  s.mtu_heals = random.chance_ppm(500'000);
  s.path_mtu.probe = milliseconds(static_cast<std::int64_t>(random.between(1, 100)));
  s.path_mtu.raise = milliseconds(static_cast<std::int64_t>(random.between(1, 1000)));
  s.in_place = random.chance_ppm(700'000);
  s.compares_content = random.chance_ppm(500'000);
  s.tear_ppm = random.chance_ppm(200'000) ? 1'000'000 : draw_rate(random, 600'000, 300'000);
  return s;
}

}  // namespace godwit::simulation
