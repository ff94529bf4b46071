#pragma once
// What the simulations draw from a seed in the same way: faults of a link, clocks that run apart, and the name of the
// rule that a run has broken. Swarm testing: each seed has faults of its own kinds and rates, many have few.

#include <cstdint>
#include <string>

#include "simulation/network.h"

namespace godwit::simulation {

/// 0, or with a chance of chance_ppm a rate up to ppm_max.
[[nodiscard]] std::uint32_t draw_rate(Random& random, std::uint32_t chance_ppm, std::uint32_t ppm_max);
[[nodiscard]] LinkConfig draw_link(Random& random);

/// A node's own clock: never compared with another's.
class Clock {
 public:
  Clock() = default;
  explicit Clock(Random& random)
      : offset_ns_(static_cast<std::int64_t>(random.below(1'000'000'000))),
        drift_ppm_(static_cast<std::int64_t>(random.below(401)) - 200) {}
  [[nodiscard]] Instant local(Instant world) const {
    return {world.ns + offset_ns_ + world.ns / 1'000'000 * drift_ppm_};
  }
  /// The first moment at which the clock shows at least this.
  [[nodiscard]] Instant world(Instant local) const;

 private:
  std::int64_t offset_ns_ = 0;
  std::int64_t drift_ppm_ = 0;
};

/// The first rule that was broken; empty: none. A rule's name is what docs/evaluation.md lists.
class Verdict {
 public:
  void require(bool holds, const char* rule, const std::string& what = {}) {
    if (!holds && text_.empty()) {
      text_ = std::string(rule) + ": " + what;
    }
  }
  [[nodiscard]] bool broken() const { return !text_.empty(); }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace godwit::simulation
