#pragma once
// The congestion window, in packets: Swift (Kumar et al., SIGCOMM 2020), delay-based, in integers. Owner: one lane; its
// lcore.
//
// What differs from the paper, and why: pollers share vCPUs here, so one late wake-up puts milliseconds onto every
// sample of a burst. A queue in the network
// delays every packet of a round trip, scheduling only some, and not for long: so the smallest delay of each of two
// round trips in a row is compared with the target. Loss cuts in proportion, at most by half, once a round trip; but a
// queue that overflows is a queue first, so where the smallest delay is still that of the empty path, loss is taken for
// noise of the path up to 10 %, else up to 2 % (as BBRv2 does). Growth is additive, and doubles after rounds without
// trouble. An uncongested lane that its credit limits, not its window, does no arithmetic here.

#include <algorithm>
#include <cstdint>
#include <optional>

#include "base/time.h"

namespace godwit::transport {

inline constexpr std::uint32_t kWindowInitial = 32;
inline constexpr std::uint32_t kWindowMin = 4;
inline constexpr std::int64_t kLossToleratedPermille = 20;
/// Without a queue: so that random loss of 5 %, the most that PCC (NSDI 2015) withstands, seldom reaches it in one
/// round.
inline constexpr std::int64_t kLossToleratedUnqueuedPermille = 100;
/// An empty path's delay is the smallest of so many rounds, twice: routes change, clocks drift.
inline constexpr std::uint32_t kPathRounds = 1024;

/// What may wait on a path whose queue is kept short, or a quarter of its delay if that is more.
inline constexpr Duration kShortQueue = microseconds(200);
/// Fewer would leave the path idle whenever a poller on a shared CPU comes late; and so would fewer than the path has
/// lately brought in kShortQueue, which the target allows to wait anyway.
inline constexpr std::uint32_t kShortQueueWindowMin = 8;
/// What a path brings is the most of so many rounds, twice.
inline constexpr std::uint32_t kRateRounds = 8;

class Swift {
 public:
  /// base_delay: an idle path's round trip; noise: how much of the delay scheduling explains.
  Swift(Duration base_delay, Duration noise, std::uint32_t window_max);

  [[nodiscard]] std::uint32_t window() const { return window_; }
  [[nodiscard]] Duration target_delay() const;
  /// Somebody waits for what shares this path: rather a little less of it used than a queue. From then on the target is
  /// the empty path's delay and kShortQueue, once that delay is known.
  void keep_queue_short(bool on) { short_queue_ = on; }
  /// The window, and nothing else, kept a packet from being sent.
  void on_limited() { limited_ = true; }
  /// acknowledged > 0. reported_end, next_number: of packet numbers; they delimit round trips.
  void on_acknowledged(Instant now, std::uint32_t acknowledged, std::optional<Duration> delay,
                       std::uint64_t reported_end, std::uint64_t next_number);
  void on_lost(std::uint32_t lost);
  /// RFC 9002 §7.6.2: begins again with the smallest window.
  void on_persistent_congestion();

 private:
  void end_round(Instant now);
  /// The round's smallest delay is clearly that of more than the empty path.
  [[nodiscard]] bool sees_queue() const;
  void note_path_delay();
  void note_rate(Instant now);
  [[nodiscard]] std::uint32_t short_queue_window_min() const;
  /// INT64_MAX: not known.
  [[nodiscard]] std::int64_t empty_path_ns() const { return std::min(path_delay_ns_, path_delay_before_ns_); }
  void cut(std::int64_t permille);
  void grow();

  Duration base_delay_;
  Duration noise_;
  std::uint32_t window_max_;
  std::uint32_t window_ = kWindowInitial;
  bool slow_start_ = true;
  bool short_queue_ = false;
  std::uint32_t good_rounds_ = 0;
  // Smallest delays: of the span of kPathRounds under way, and of the one before.
  std::int64_t path_delay_ns_ = INT64_MAX;
  std::int64_t path_delay_before_ns_ = INT64_MAX;
  std::uint32_t path_rounds_ = 0;
  // Most that a round trip brought, as packets in kShortQueue: of kRateRounds under way, and before.
  std::int64_t rate_ = 0;
  std::int64_t rate_before_ = 0;
  std::uint32_t rate_rounds_ = 0;
  // since loss was last judged
  std::uint32_t acknowledged_ = 0;
  std::uint32_t lost_ = 0;
  // of the round trip under way
  std::uint64_t round_end_ = 0;
  Instant round_began_{};
  std::int64_t delay_min_ns_ = INT64_MAX;
  std::uint32_t round_acknowledged_ = 0;
  bool limited_ = false;
  bool cut_ = false;
  bool was_above_ = false;  // the round before: its smallest delay was above the target
};

}  // namespace godwit::transport
