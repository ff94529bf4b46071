#pragma once
// Round-trip estimation (RFC 9002 §5). Owner: one lane; its lcore; nanoseconds inside; no failure.

#include <algorithm>

#include "base/time.h"

namespace godwit::transport {

/// Before the first sample (RFC 9002 §6.2.2 has 333 ms for the Internet; both ends are in one data centre).
inline constexpr Duration kRttInitial = milliseconds(25);

class RttEstimator {
 public:
  void on_sample(Duration rtt, Duration ack_delay) {
    latest_ = {std::max<std::int64_t>(rtt.ns, 1)};
    if (!sampled_) {
      sampled_ = true;
      minimum_ = latest_;
      smoothed_ = latest_;
      variation_ = {latest_.ns / 2};
      return;
    }
    minimum_ = std::min(minimum_, latest_);
    Duration adjusted = latest_;
    if (ack_delay.ns > 0 && latest_.ns - minimum_.ns >= ack_delay.ns) {
      adjusted = latest_ - ack_delay;
    }
    const std::int64_t error = std::max(smoothed_.ns - adjusted.ns, adjusted.ns - smoothed_.ns);
    variation_ = {(3 * variation_.ns + error) / 4};
    smoothed_ = {(7 * smoothed_.ns + adjusted.ns) / 8};
  }

  [[nodiscard]] bool sampled() const { return sampled_; }
  [[nodiscard]] Duration smoothed() const { return smoothed_; }
  [[nodiscard]] Duration variation() const { return variation_; }
  [[nodiscard]] Duration latest() const { return latest_; }
  [[nodiscard]] Duration minimum() const { return minimum_; }

 private:
  bool sampled_ = false;
  Duration latest_ = kRttInitial;
  Duration minimum_ = kRttInitial;
  Duration smoothed_ = kRttInitial;
  Duration variation_{kRttInitial.ns / 2};
};

}  // namespace godwit::transport
