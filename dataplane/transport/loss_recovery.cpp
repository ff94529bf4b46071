#include "dataplane/transport/loss_recovery.h"

#include <algorithm>

#include "dataplane/transport/ack_ranges.h"

namespace godwit::transport {

void LossRecovery::on_sent(Instant now, const SentContent& content) {
  GW_ASSERT(has_room());
  const std::uint64_t number = next_++;
  if (number % 64 == 0) {
    lost_[number / 64 % kWords] = taken_[number / 64 % kWords] = 0;
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
  taken_[oldest_ / 64 % kWords] |= std::uint64_t{1} << (oldest_ % 64);
  resolve(oldest_);
  advance_oldest();
  return content;
}

/// RFC 9002 §5.1. Of a number that was given up too: numbers do not repeat, so the sample is true, and a path that has
/// become slower than the probe timeout gives no others.
void LossRecovery::sample_rtt(Instant now, const wire::AckBlock& ack, Duration waited, AckOutcome& outcome) {
  if (ack.largest < reported_end_ || !(is_outstanding(ack.largest) || is_given_up(ack.largest))) {
    return;
  }
  const Duration ack_delay = microseconds(ack.ack_delay_us);
  const Duration rtt = now - sent(ack.largest).at;
  rtt_.on_sample(rtt, std::min(ack_delay, kAckDelayMax));
  // What pauses explain may be more than they were: never less than the path is known to take.
  const Duration in_hosts = ack_delay + waited;
  outcome.rtt = std::max(rtt - in_hosts, in_hosts > kAckDelayMax ? rtt_.minimum() : Duration{0});
}

/// The ring remembers the last kRingPackets numbers.
void LossRecovery::note_late(const wire::AckBlock& ack, AckOutcome& outcome) {
  const std::uint64_t top = ack.largest / 64;
  for (std::size_t i = 0; i < ack.word_count && (next_ - 1) / 64 - (top - i) < kWords; ++i) {
    std::uint64_t& lost = lost_[(top - i) % kWords];
    std::uint64_t& taken = taken_[(top - i) % kWords];
    note_late_bytes(top - i, (lost | taken) & ack.words[i], outcome);
    outcome.spurious += static_cast<std::uint32_t>(std::popcount(lost & ack.words[i]));
    outcome.late += static_cast<std::uint32_t>(std::popcount(taken & ack.words[i]));
    lost &= ~ack.words[i];
    taken &= ~ack.words[i];
  }
}

void LossRecovery::note_late_bytes(std::uint64_t index, std::uint64_t bits, AckOutcome& outcome) {
  for (; bits != 0; bits &= bits - 1) {
    const std::uint64_t number = index * 64 + static_cast<std::uint64_t>(std::countr_zero(bits));
    outcome.late_packet_bytes = std::max(outcome.late_packet_bytes, sent(number).content.packet_bytes);
  }
}

void LossRecovery::on_loss(std::uint64_t number) {
  if (number < recovery_end_) {
    return;
  }
  recovery_end_ = next_;
  if (++recoveries_ > kRecoveriesToShrink) {
    recoveries_ = 1;
    packet_threshold_ = std::max(packet_threshold_ / 2, kPacketThresholdInitial);
  }
}

void LossRecovery::judge_path(AckOutcome& outcome) {
  if (outcome.acknowledged > 0) {
    advance_oldest();
  }
  if (outcome.spurious > 0) {
    packet_threshold_ = std::min(packet_threshold_ * 2, kPacketThresholdMax);
    recoveries_ = 0;
  }
  if (outcome.acknowledged + outcome.spurious + outcome.late > 0) {
    const bool arrived_late = outcome.spurious + outcome.late > 0;
    outcome.persistent_congestion = probe_count_ >= kPersistentCongestionProbes && !arrived_late;
    probe_count_ = 0;
    early_probed_ = false;
  }
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

Duration LossRecovery::probe_timeout() const {
  return std::min(rtt_.smoothed() + std::max(rtt_.variation() * 4, granularity_) + kAckDelayMax, kProbeTimeoutSlowMax);
}

Instant LossRecovery::probe_deadline() const {
  if (outstanding_count_ == 0) {
    return kNever;
  }
  const Duration base = probe_timeout();
  const Duration backed_off = base * (std::int64_t{1} << std::min(probe_count_, kProbeBackoffShiftMax));
  return last_sent_ + std::min(backed_off, std::max(kProbeTimeoutMax, base));
}

}  // namespace godwit::transport
