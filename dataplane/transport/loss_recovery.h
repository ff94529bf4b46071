#pragma once
// Sent packets until they are acknowledged or given up (RFC 9002): a ring by packet number that remembers what each one
// carried, so that what is lost, not the packet, goes out again. Owner: one lane; its lcore; no allocation after
// construction. A number is outstanding until acknowledged, lost, or taken back for a probe; after that its content is
// somebody else's. A late acknowledgement of it still shows that the path works and how long it takes; of a loss it
// also shows that it was none.

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/check.h"
#include "base/time.h"
#include "dataplane/transport/rtt.h"
#include "dataplane/wire/frames.h"

namespace godwit::transport {

inline constexpr std::uint32_t kPacketThresholdInitial = 3;  // RFC 9002 §6.1.1
inline constexpr std::uint32_t kPacketThresholdMax = 64;     // grows with every spurious loss: paths that reorder
inline constexpr std::int64_t kTimeThresholdEighths = 9;     // RFC 9002 §6.1.2: 9/8
/// Ends the doubling; a slower path has its own timeout, but one delayed packet cannot make that long.
inline constexpr Duration kProbeTimeoutMax = milliseconds(200);
inline constexpr Duration kProbeTimeoutSlowMax = milliseconds(1000);
inline constexpr std::uint32_t kProbeBackoffShiftMax = 10;
/// The threshold halves after so many recoveries in a row without a spurious loss (RFC 8985 §6.2, step 4, forgets all
/// it has learnt then).
inline constexpr std::uint32_t kRecoveriesToShrink = 16;
/// RFC 9002 §7.6: all that was sent in three probe timeouts is lost. With the timeout doubling, the first packet and
/// the second probe are that far apart; an acknowledgement after the third shows that both are lost.
inline constexpr std::uint32_t kPersistentCongestionProbes = 3;

enum class ContentKind : std::uint8_t { kNone, kProbe, kMtuProbe, kPages, kZeroRuns, kMessage };

/// Something that goes out again when it is lost.
[[nodiscard]] constexpr bool carries_data(ContentKind kind) { return kind >= ContentKind::kPages; }

inline constexpr std::uint32_t kNoSlot = UINT32_MAX;

/// What a packet carried. Pages and zero runs name slots of the work table.
struct SentContent {
  ContentKind kind = ContentKind::kNone;
  std::uint8_t parts = 0;          // kPages: bits of the page's parts in this packet
  std::uint16_t length = 0;        // kMessage
  std::uint32_t slot = kNoSlot;    // kPages: first page; kZeroRuns: head of the chain
  std::uint32_t second = kNoSlot;  // kPages: second page
  std::uint32_t packet_bytes = 0;
  bool in_place = false;     // perhaps lost because the guest wrote: says nothing of the path
  std::uint64_t offset = 0;  // kMessage
};

struct AckOutcome {
  std::uint32_t acknowledged = 0;
  std::uint32_t spurious = 0;
  std::uint32_t late = 0;               // of those taken back for probes
  std::uint32_t late_packet_bytes = 0;  // the largest packet of both kinds
  std::optional<Duration> rtt;          // sample without the peer's delay, when the largest number is newly reported
  bool persistent_congestion = false;
};

class LossRecovery {
 public:
  static constexpr std::uint64_t kRingPackets = 4096;

  explicit LossRecovery(Duration granularity)
      : granularity_(granularity), sent_(std::make_unique<std::array<Sent, kRingPackets>>()) {}

  [[nodiscard]] std::uint64_t next_number() const { return next_; }
  /// Oldest outstanding number, or next_number().
  [[nodiscard]] std::uint64_t floor() const { return oldest_; }
  [[nodiscard]] std::uint32_t outstanding() const { return outstanding_count_; }
  [[nodiscard]] bool has_room() const { return next_ - oldest_ < kRingPackets - 64; }
  [[nodiscard]] const RttEstimator& rtt() const { return rtt_; }
  [[nodiscard]] std::uint32_t probe_count() const { return probe_count_; }
  [[nodiscard]] std::uint32_t packet_threshold() const { return packet_threshold_; }
  /// Largest number that the peer has ever reported, plus one.
  [[nodiscard]] std::uint64_t reported_end() const { return reported_end_; }

  /// Records the packet next_number(). Content kNone is not ack-eliciting and never outstanding. Requires has_room().
  void on_sent(Instant now, const SentContent& content);

  /// Calls on_acknowledged(content) for each newly acknowledged packet, oldest first. ack.largest < next_number() is
  /// the caller's check.
  template <class F>
  AckOutcome on_ack(Instant now, const wire::AckBlock& ack, Duration waited, F&& on_acknowledged);
  /// Calls on_lost(content) for each packet that is lost now, oldest first; returns how many.
  template <class F>
  std::uint32_t detect_lost(Instant now, F&& on_lost);
  /// Takes the oldest outstanding packet's content back, so that a probe can carry it.
  [[nodiscard]] std::optional<SentContent> take_oldest();

  /// When detect_lost() may find something, or the probe timeout; kNever when nothing is outstanding.
  [[nodiscard]] Instant loss_deadline() const { return loss_at_; }
  [[nodiscard]] Instant probe_deadline() const;
  /// RFC 9002 §6.2.1, without backoff.
  [[nodiscard]] Duration probe_timeout() const;
  void on_probe_timeout() { ++probe_count_; }
  /// Once before the probe timeout, when a bare probe may tell a lost acknowledgement from lost data; kNever if not
  /// now.
  [[nodiscard]] Instant early_probe_deadline() const;
  void on_early_probe() { early_probed_ = true; }

 private:
  struct Sent {
    SentContent content;
    Instant at;
  };
  static constexpr std::uint64_t kWords = kRingPackets / 64;

  [[nodiscard]] Sent& sent(std::uint64_t number) { return (*sent_)[number % kRingPackets]; }
  [[nodiscard]] std::uint64_t& outstanding_word(std::uint64_t index) { return outstanding_[index % kWords]; }
  [[nodiscard]] bool is_outstanding(std::uint64_t number) const {
    return number >= oldest_ && number < next_ && (outstanding_[number / 64 % kWords] >> (number % 64) & 1) != 0;
  }
  void resolve(std::uint64_t number) {
    outstanding_word(number / 64) &= ~(std::uint64_t{1} << (number % 64));
    --outstanding_count_;
  }
  /// Given up, but what was sent under the number is still known.
  [[nodiscard]] bool is_given_up(std::uint64_t number) const {
    const std::uint64_t given_up = lost_[number / 64 % kWords] | taken_[number / 64 % kWords];
    return (next_ - 1) / 64 - number / 64 < kWords && (given_up >> (number % 64) & 1) != 0;
  }
  void advance_oldest();
  void sample_rtt(Instant now, const wire::AckBlock& ack, Duration waited, AckOutcome& outcome);
  void note_late(const wire::AckBlock& ack, AckOutcome& outcome);
  void note_late_bytes(std::uint64_t index, std::uint64_t bits, AckOutcome& outcome);
  /// The newest of those lost now: with the first that was sent since a recovery began, a new one begins.
  void on_loss(std::uint64_t number);
  /// After the words were looked at: what this acknowledgement says of the path.
  void judge_path(AckOutcome& outcome);
  [[nodiscard]] Duration loss_delay() const;
  template <class F>
  std::uint32_t acknowledge_word(std::uint64_t index, std::uint64_t bits, F& on_acknowledged);

  Duration granularity_;
  RttEstimator rtt_;
  std::unique_ptr<std::array<Sent, kRingPackets>> sent_;
  std::array<std::uint64_t, kWords> outstanding_{};
  std::array<std::uint64_t, kWords> lost_{};   // given up lately: a bit reported here later was no loss
  std::array<std::uint64_t, kWords> taken_{};  // the same, for probes
  std::uint64_t next_ = 0;
  std::uint64_t oldest_ = 0;
  std::uint64_t reported_end_ = 0;
  std::uint64_t acknowledged_end_ = 0;  // largest acknowledged ack-eliciting number, plus one
  std::uint32_t outstanding_count_ = 0;
  std::uint32_t probe_count_ = 0;
  bool early_probed_ = false;
  std::uint32_t packet_threshold_ = kPacketThresholdInitial;
  std::uint64_t recovery_end_ = 0;  // a loss from here on begins a new recovery (RFC 9002 §7.3.2)
  std::uint32_t recoveries_ = 0;    // since a spurious loss, or since the threshold was halved
  Instant loss_at_ = kNever;
  Instant last_sent_{};  // of an ack-eliciting packet
};

template <class F>
std::uint32_t LossRecovery::acknowledge_word(std::uint64_t index, std::uint64_t bits, F& on_acknowledged) {
  std::uint64_t left = bits & outstanding_word(index);
  std::uint32_t count = 0;
  for (; left != 0; left &= left - 1) {
    const std::uint64_t number = index * 64 + static_cast<std::uint64_t>(std::countr_zero(left));
    resolve(number);
    if (number >= acknowledged_end_) {
      acknowledged_end_ = number + 1;
    }
    ++count;
    on_acknowledged(static_cast<const SentContent&>(sent(number).content));
  }
  return count;
}

template <class F>
AckOutcome LossRecovery::on_ack(Instant now, const wire::AckBlock& ack, Duration waited, F&& on_acknowledged) {
  GW_ASSERT(ack.largest < next_);
  AckOutcome outcome;
  sample_rtt(now, ack, waited, outcome);
  reported_end_ = reported_end_ > ack.largest ? reported_end_ : ack.largest + 1;
  const std::uint64_t top = ack.largest / 64;
  note_late(ack, outcome);
  for (std::uint64_t index = oldest_ / 64; index <= top; ++index) {
    std::uint64_t bits = top - index < ack.word_count ? ack.words[top - index] : 0;
    if (ack.floor >= index * 64 + 64) {
      bits = ~std::uint64_t{0};
    } else if (ack.floor > index * 64) {
      bits |= (std::uint64_t{1} << (ack.floor % 64)) - 1;
    }
    outcome.acknowledged += acknowledge_word(index, bits, on_acknowledged);
  }
  judge_path(outcome);
  return outcome;
}

template <class F>
std::uint32_t LossRecovery::detect_lost(Instant now, F&& on_lost) {
  loss_at_ = kNever;
  std::uint32_t count = 0;
  std::uint64_t newest_lost = 0;
  const Duration delay = loss_delay();
  for (std::uint64_t index = oldest_ / 64; index * 64 < acknowledged_end_; ++index) {
    for (std::uint64_t left = outstanding_word(index); left != 0; left &= left - 1) {
      const std::uint64_t number = index * 64 + static_cast<std::uint64_t>(std::countr_zero(left));
      if (number >= acknowledged_end_) {
        break;
      }
      const Instant late_at = sent(number).at + delay;
      if (acknowledged_end_ - 1 - number < packet_threshold_ && late_at > now) {
        loss_at_ = late_at < loss_at_ ? late_at : loss_at_;
        continue;
      }
      resolve(number);
      newest_lost = number;
      lost_[index % kWords] |= std::uint64_t{1} << (number % 64);
      ++count;
      on_lost(static_cast<const SentContent&>(sent(number).content));
    }
  }
  if (count > 0) {
    advance_oldest();
    on_loss(newest_lost);
  }
  return count;
}

}  // namespace godwit::transport
