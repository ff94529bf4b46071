#include "dataplane/transport/swift.h"

#include <utility>

namespace godwit::transport {

namespace {

// Names of the paper, §3.
constexpr std::int64_t kBetaPermille = 800;
constexpr std::int64_t kMaxMdfPermille = 500;
constexpr std::uint32_t kAdditiveIncrease = 2;  // packets a round trip
constexpr std::int64_t kFlowScalingRange = 5;   // times the base delay
constexpr std::uint32_t kFlowScalingWindowMin = 4;
constexpr std::uint32_t kFlowScalingWindowMax = 100;
// Our own.
constexpr std::int64_t kLossGain = 2;             // a loss of 25 % halves the window
constexpr std::uint32_t kGoodRoundsToDouble = 4;  // the increase doubles with each so many good rounds
constexpr std::uint32_t kIncreaseShiftMax = 5;
constexpr std::uint32_t kLostAtOnceMin = 8;
constexpr std::uint32_t kLossSamplePackets = 32;  // fewer say nothing of a rate: small windows need several rounds

constexpr std::int64_t square_root(std::int64_t value) {
  std::int64_t root = 0;
  for (std::int64_t bit = std::int64_t{1} << 30; bit != 0; bit >>= 1) {
    if ((root + bit) * (root + bit) <= value) {
      root += bit;
    }
  }
  return root;
}

/// 1000 / sqrt(window), the paper's flow scaling term.
constexpr std::int64_t scaled_inverse_root(std::uint32_t window) {
  return 1'000'000 / square_root(std::int64_t{window} * 1'000'000);
}

}  // namespace

Swift::Swift(Duration base_delay, Duration noise, std::uint32_t window_max)
    : base_delay_(base_delay),
      noise_(noise),
      window_max_(std::max(window_max, kWindowMin)),
      window_(std::min(window_max_, kWindowInitial)) {}

Duration Swift::target_delay() const {
  if (const std::int64_t empty = empty_path_ns(); short_queue_ && empty != INT64_MAX) {
    return Duration{empty + std::max(empty / 4, kShortQueue.ns)};
  }
  const std::int64_t at_min = scaled_inverse_root(kFlowScalingWindowMin);
  const std::int64_t at_max = scaled_inverse_root(kFlowScalingWindowMax);
  const std::int64_t here = std::clamp(scaled_inverse_root(window_), at_max, at_min);
  const std::int64_t scaling = base_delay_.ns * kFlowScalingRange * (here - at_max) / (at_min - at_max);
  return base_delay_ + noise_ + Duration{scaling};
}

void Swift::on_acknowledged(Instant now, std::uint32_t acknowledged, std::optional<Duration> delay,
                            std::uint64_t reported_end, std::uint64_t next_number) {
  acknowledged_ += acknowledged;
  round_acknowledged_ += acknowledged;
  if (delay) {
    delay_min_ns_ = std::min(delay_min_ns_, delay->ns);
  }
  if (slow_start_ && limited_) {
    window_ = std::min(window_ + acknowledged, window_max_);
  }
  if (reported_end > round_end_) {
    end_round(now);
    round_end_ = next_number;
  }
}

void Swift::on_lost(std::uint32_t lost) {
  lost_ += lost;
  // Too much to wait for the round's end.
  if (!cut_ && lost_ > std::max(kLostAtOnceMin, window_ / 8)) {
    cut(kMaxMdfPermille);
  }
}

void Swift::end_round(Instant now) {
  const std::int64_t target = target_delay().ns;
  // Without a sample a round says nothing. A queue stays for more than one round, a pause of a poller does not.
  const bool above = delay_min_ns_ == INT64_MAX ? was_above_ : delay_min_ns_ > target;
  const bool queued = above && was_above_ && delay_min_ns_ != INT64_MAX;
  was_above_ = above;
  note_path_delay();
  note_rate(now);
  const std::int64_t tolerated = sees_queue() ? kLossToleratedPermille : kLossToleratedUnqueuedPermille;
  const std::uint32_t resolved = lost_ + acknowledged_;
  const std::int64_t loss_permille = resolved < kLossSamplePackets ? 0 : std::int64_t{lost_} * 1000 / resolved;
  if (!cut_) {
    if (queued) {
      cut(std::min(kBetaPermille * (delay_min_ns_ - target) / delay_min_ns_, kMaxMdfPermille));
    } else if (loss_permille > tolerated) {
      cut(std::min(kLossGain * loss_permille, kMaxMdfPermille));
    } else if (limited_ && !above && (lost_ == 0 || resolved >= kLossSamplePackets)) {
      grow();
    }
  }
  if (cut_ || resolved >= kLossSamplePackets) {
    acknowledged_ = 0;
    lost_ = 0;
  }
  delay_min_ns_ = INT64_MAX;
  limited_ = false;
  cut_ = false;
}

void Swift::note_path_delay() {
  if (path_rounds_++ == kPathRounds) {
    path_rounds_ = 0;
    path_delay_before_ns_ = std::exchange(path_delay_ns_, INT64_MAX);
  }
  path_delay_ns_ = std::min(path_delay_ns_, delay_min_ns_);
}

void Swift::note_rate(Instant now) {
  if (rate_rounds_++ == kRateRounds) {
    rate_rounds_ = 0;
    rate_before_ = std::exchange(rate_, 0);
  }
  const Duration round = now - std::exchange(round_began_, now);
  if (round.ns > 0) {
    rate_ = std::max(rate_, std::int64_t{round_acknowledged_} * kShortQueue.ns / round.ns);
  }
  round_acknowledged_ = 0;
}

std::uint32_t Swift::short_queue_window_min() const {
  const std::int64_t brought = std::max(rate_, rate_before_);
  return static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(brought, std::min(kShortQueueWindowMin, window_max_), window_max_));
}

bool Swift::sees_queue() const {
  const std::int64_t empty = empty_path_ns();
  // Without a sample nothing is known, and loss is a bad sign. A quarter more than the empty path, ends included.
  return delay_min_ns_ == INT64_MAX || delay_min_ns_ > empty + std::max(empty, base_delay_.ns) / 4;
}

void Swift::on_persistent_congestion() {
  window_ = kWindowMin;
  slow_start_ = true;
  good_rounds_ = 0;
}

void Swift::cut(std::int64_t permille) {
  const auto by = static_cast<std::uint32_t>(window_ * permille / 1000);
  // Loss may still take it down.
  const bool by_queue_alone = short_queue_ && lost_ == 0;
  window_ = std::max(window_ - by, by_queue_alone ? std::min(window_, short_queue_window_min()) : kWindowMin);
  slow_start_ = false;
  good_rounds_ = 0;
  cut_ = true;
}

void Swift::grow() {
  if (slow_start_) {
    return;  // grew with every acknowledgement
  }
  const std::uint32_t shift = std::min(good_rounds_++ / kGoodRoundsToDouble, kIncreaseShiftMax);
  window_ = std::min(window_ + (kAdditiveIncrease << shift), window_max_);
}

}  // namespace godwit::transport
