#include "dataplane/transport/loss_recovery.h"

#include <algorithm>

#include "dataplane/transport/ack_ranges.h"

namespace godwit::transport {

void LossRecovery::on_sent(Instant now, const SentContent& content) {
  GW_ASSERT(has_room());
  const std::uint64_t number = next_++;
  if (number % 64 == 0) {
    lost_[number / 64 % kWords] = 0;
  }
  if (content.kind == ContentKind::kNone) {
    if (outstanding_count_ == 0) {
      oldest_ = next_;
    }
    return;
  }
  sent(number) = {.content = content, .at = now};
  outstanding_word(number / 64) |= std::uint64_t{1} << (number % 64);
  ++outstanding_count_;
  last_sent_ = now;
}

void LossRecovery::advance_oldest() {
  if (outstanding_count_ == 0) {
    oldest_ = next_;
    return;
  }
  std::uint64_t index = oldest_ / 64;
  while (outstanding_word(index) == 0) {
    ++index;
  }
  oldest_ = index * 64 + static_cast<std::uint64_t>(std::countr_zero(outstanding_word(index)));
}

std::optional<SentContent> LossRecovery::take_oldest() {
  if (outstanding_count_ == 0) {
    return std::nullopt;
  }
  const SentContent content = sent(oldest_).content;
  resolve(oldest_);
  advance_oldest();
  return content;
}

Duration LossRecovery::loss_delay() const {
  const Duration rtt = std::max(rtt_.smoothed(), rtt_.latest());
  // Scheduling delays packets but does not reorder them: the floor is small, until the path is seen to reorder.
  const Duration floor = {granularity_.ns / kPacketThresholdMax * packet_threshold_};
  return std::max(Duration{rtt.ns / 8 * kTimeThresholdEighths}, floor);
}

Instant LossRecovery::early_probe_deadline() const {
  if (outstanding_count_ == 0 || early_probed_ || probe_count_ > 0 || !rtt_.sampled()) {
    return kNever;
  }
  // Too early costs one small packet, where a probe timeout sends data again: so a quarter of the granularity will do.
  return last_sent_ + rtt_.smoothed() + std::max(rtt_.variation() * 4, Duration{granularity_.ns / 4}) + kAckDelayMax;
}

Instant LossRecovery::probe_deadline() const {
  if (outstanding_count_ == 0) {
    return kNever;
  }
  // RFC 9002 §6.2.1, with exponential backoff.
  const Duration base = rtt_.smoothed() + std::max(rtt_.variation() * 4, granularity_) + kAckDelayMax;
  const Duration backed_off = base * (std::int64_t{1} << std::min(probe_count_, kProbeBackoffShiftMax));
  return last_sent_ + std::min(backed_off, std::max(kProbeTimeoutMax, base));
}

}  // namespace godwit::transport
