// Goal: loss detection, round-trip estimation and the congestion window, each row by row against RFC 9002 and the
// window's own rules.

#include <gtest/gtest.h>

#include <vector>

#include "dataplane/transport/loss_recovery.h"
#include "dataplane/transport/swift.h"

namespace godwit::transport {
namespace {

constexpr Duration kGranularity = milliseconds(2);
const auto kIgnore = [](const SentContent&) {};

SentContent content(std::uint64_t offset) { return {.kind = ContentKind::kMessage, .length = 1, .offset = offset}; }

/// Acknowledges exactly these numbers (all within 1024).
wire::AckBlock ack_of(const std::vector<std::uint64_t>& numbers) {
  wire::AckBlock ack;
  ack.largest = numbers.back();
  ack.word_count = static_cast<std::uint8_t>(ack.largest / 64 + 1);
  for (const std::uint64_t number : numbers) {
    ack.words[ack.largest / 64 - number / 64] |= std::uint64_t{1} << (number % 64);
  }
  return ack;
}

struct Sender {
  LossRecovery recovery{kGranularity};
  Instant now{1'000'000'000};
  std::vector<std::uint64_t> acknowledged, lost;

  void send(std::uint64_t count) {
    for (; count > 0; --count) {
      recovery.on_sent(now, content(recovery.next_number()));
    }
  }
  AckOutcome ack(const std::vector<std::uint64_t>& numbers) { return ack_block(ack_of(numbers)); }
  AckOutcome ack_block(const wire::AckBlock& block, Duration waited = {}) {
    const AckOutcome outcome =
        recovery.on_ack(now, block, waited, [&](const SentContent& c) { acknowledged.push_back(c.offset); });
    detect();
    return outcome;
  }
  void detect() {
    recovery.detect_lost(now, [&](const SentContent& c) { lost.push_back(c.offset); });
  }
};

using Numbers = std::vector<std::uint64_t>;

TEST(LossRecovery, PacketThreshold) {
  Sender s;
  s.send(6);
  s.now = s.now + microseconds(100);
  s.ack({2});
  EXPECT_EQ(s.lost, Numbers{});
  s.ack({2, 3});
  EXPECT_EQ(s.lost, Numbers{0});
  s.ack({2, 3, 4});
  EXPECT_EQ(s.lost, (Numbers{0, 1}));
  EXPECT_EQ(s.acknowledged, (Numbers{2, 3, 4}));
  EXPECT_EQ(s.recovery.floor(), 5U);
  EXPECT_EQ(s.recovery.outstanding(), 1U);
}

TEST(LossRecovery, TimeThreshold) {
  Sender s;
  s.send(2);
  s.now = s.now + microseconds(800);
  s.ack({1});
  EXPECT_EQ(s.lost, Numbers{});
  const Instant due = s.recovery.loss_deadline();
  EXPECT_EQ(due, (Instant{1'000'000'000} + microseconds(900)));  // 9/8 of 800 us
  s.now = due + Duration{-1};
  s.detect();
  EXPECT_EQ(s.lost, Numbers{});
  s.now = due;
  s.detect();
  EXPECT_EQ(s.lost, Numbers{0});
  EXPECT_EQ(s.recovery.loss_deadline(), kNever);
}

TEST(LossRecovery, LateArrivalsWidenTheThreshold) {
  Sender s;
  s.send(10);
  s.now = s.now + microseconds(100);
  s.ack({5});
  EXPECT_EQ(s.lost, (Numbers{0, 1, 2}));
  EXPECT_EQ(s.ack({1, 2, 5}).spurious, 2U);
  EXPECT_EQ(s.ack({1, 2, 5}).spurious, 0U);  // counted once
  EXPECT_EQ(s.recovery.packet_threshold(), 2 * kPacketThresholdInitial);
  EXPECT_EQ(s.acknowledged, Numbers{5});  // the content had gone elsewhere
}

/// The first of some packets is lost by the threshold, the others arrive.
void recover(Sender& s) {
  s.send(s.recovery.packet_threshold() + 1);
  s.now = s.now + microseconds(100);
  wire::AckBlock ack{.largest = s.recovery.next_number() - 1, .word_count = 1};
  ack.words[0] = std::uint64_t{1} << (ack.largest % 64);
  s.ack_block(ack);
  ack.floor = ack.largest + 1;
  s.ack_block(ack);
}

TEST(LossRecovery, TheThresholdShrinksWhenLossesAreLossesAgain) {
  Sender s;
  s.send(100);
  s.now = s.now + microseconds(100);
  for (std::uint64_t late = 0; s.recovery.packet_threshold() < kPacketThresholdMax; ++late) {
    s.ack({late + 64});  // the first ones are given up for its sake
    EXPECT_GT(s.ack({late, late + 64}).spurious, 0U);
  }
  std::vector<std::uint32_t> thresholds;  // after each recovery
  for (std::uint32_t recovery = 0; recovery < 6 * kRecoveriesToShrink; ++recovery) {
    recover(s);
    thresholds.push_back(s.recovery.packet_threshold());
  }
  // A recovery has ended when the next one begins: what it gave up may turn out spurious until then.
  std::vector<std::uint32_t> expected;
  for (const std::uint32_t threshold : {64U, 32U, 16U, 8U, 4U, 3U}) {
    expected.insert(expected.end(), kRecoveriesToShrink, threshold);
  }
  EXPECT_EQ(thresholds, expected);
}

TEST(LossRecovery, ASpuriousLossKeepsTheThreshold) {
  Sender s;
  for (std::uint32_t i = 0; i < 5 * kRecoveriesToShrink; ++i) {
    recover(s);
    if (i % 10 != 9) {
      continue;
    }
    const std::uint64_t first = s.recovery.next_number();
    const std::uint32_t before = s.recovery.packet_threshold();
    s.send(before + 1);
    s.now = s.now + microseconds(100);
    wire::AckBlock ack{.largest = first + before, .word_count = 2};
    const auto mark = [&ack](std::uint64_t number) {
      ack.words[ack.largest / 64 - number / 64] |= std::uint64_t{1} << (number % 64);
    };
    mark(ack.largest);
    s.ack_block(ack);
    mark(first);
    EXPECT_EQ(s.ack_block(ack).spurious, 1U);
    EXPECT_EQ(s.recovery.packet_threshold(), std::min(before * 2, kPacketThresholdMax));
    ack.floor = ack.largest + 1;
    s.ack_block(ack);
  }
}

TEST(LossRecovery, FloorAcknowledgesWhatTheWordsDoNotCover) {
  Sender s;
  s.send(200);
  wire::AckBlock ack = ack_of({199});
  ack.word_count = 0;
  ack.floor = 200;
  EXPECT_EQ(s.ack_block(ack).acknowledged, 200U);
  EXPECT_EQ(s.recovery.floor(), 200U);
}

TEST(LossRecovery, EachAcknowledgedOnce) {
  Sender s;
  s.send(3);
  EXPECT_EQ(s.ack({0, 1}).acknowledged, 2U);
  EXPECT_EQ(s.ack({0, 1}).acknowledged, 0U);
  EXPECT_EQ(s.ack({0, 1, 2}).acknowledged, 1U);
  EXPECT_EQ(s.acknowledged, (Numbers{0, 1, 2}));
}

TEST(LossRecovery, ProbeTimeoutBacksOffToItsCap) {
  Sender s;
  s.send(1);
  s.now = s.now + microseconds(100);
  s.ack({0});
  s.send(1);
  // srtt 100 us, 4 * rttvar 200 us < granularity
  Duration expected = microseconds(100) + kGranularity + microseconds(25);
  EXPECT_EQ(s.recovery.probe_deadline(), s.now + expected);
  EXPECT_EQ(s.recovery.early_probe_deadline(), s.now + microseconds(100 + 500 + 25));
  for (int i = 0; i < 12; ++i) {
    s.recovery.on_probe_timeout();
    expected = std::min(expected * 2, kProbeTimeoutMax);
    EXPECT_EQ(s.recovery.probe_deadline(), s.now + expected);
  }
  s.ack({1});
  EXPECT_EQ(s.recovery.probe_count(), 0U);
  EXPECT_EQ(s.recovery.probe_deadline(), kNever);
}

TEST(LossRecovery, TakeOldestThenLateAck) {
  Sender s;
  s.send(2);
  EXPECT_EQ(s.recovery.take_oldest()->offset, 0U);
  EXPECT_EQ(s.recovery.floor(), 1U);
  EXPECT_EQ(s.ack({0, 1}).acknowledged, 1U);
  EXPECT_FALSE(s.recovery.take_oldest().has_value());
}

TEST(LossRecovery, LateAcksOfProbesShowASlowPath) {
  // The path takes longer than the longest probe timeout: nothing is acknowledged before it is taken back.
  Sender s;
  s.send(1);
  for (std::uint32_t i = 0; i < kPersistentCongestionProbes + 1; ++i) {
    s.now = s.recovery.probe_deadline();
    s.recovery.on_probe_timeout();
    ASSERT_TRUE(s.recovery.take_oldest().has_value());
    s.send(1);
  }
  const Duration took = s.now - Instant{1'000'000'000};
  const AckOutcome outcome = s.ack({0});
  EXPECT_EQ(outcome.acknowledged, 0U);
  EXPECT_EQ(outcome.late, 1U);
  EXPECT_FALSE(outcome.persistent_congestion);
  EXPECT_EQ(outcome.rtt, took);
  EXPECT_EQ(s.recovery.probe_count(), 0U);
  EXPECT_EQ(s.recovery.packet_threshold(), kPacketThresholdInitial);  // nothing was reordered
  EXPECT_GE(s.recovery.probe_deadline(), s.now + took);
}

TEST(LossRecovery, PausesOfEitherEndAreNoDelayOfThePath) {
  Sender s;
  const auto sample_after = [&s](Duration rtt, Duration peer_paused, Duration we_paused) {
    s.send(1);
    s.now = s.now + rtt;
    wire::AckBlock ack = ack_of({s.recovery.next_number() - 1});
    ack.ack_delay_us = static_cast<std::uint32_t>(peer_paused.us());
    return s.ack_block(ack, we_paused).rtt;
  };
  EXPECT_EQ(sample_after(microseconds(100), {}, {}), microseconds(100));
  EXPECT_EQ(sample_after(milliseconds(5), milliseconds(4), {}), milliseconds(1));
  EXPECT_EQ(sample_after(milliseconds(5), {}, milliseconds(4)), milliseconds(1));
  EXPECT_EQ(sample_after(milliseconds(9), milliseconds(4), milliseconds(4)), milliseconds(1));
  EXPECT_EQ(sample_after(milliseconds(5), milliseconds(4), milliseconds(4)), microseconds(100))
      << "what they explain too much is not taken off the path";
}

TEST(LossRecovery, PersistentCongestionIsThreeProbeTimeoutsOfLoss) {
  for (const std::uint32_t probes : {kPersistentCongestionProbes - 1, kPersistentCongestionProbes}) {
    Sender s;
    s.send(1);
    for (std::uint32_t i = 0; i < probes; ++i) {
      s.now = s.recovery.probe_deadline();
      s.recovery.on_probe_timeout();
      ASSERT_TRUE(s.recovery.take_oldest().has_value());
      s.send(1);
    }
    EXPECT_EQ(s.ack({probes}).persistent_congestion, probes == kPersistentCongestionProbes);
  }
}

TEST(LossRecovery, AckOnlyPacketsAreNeverOutstanding) {
  Sender s;
  for (int i = 0; i < 10'000; ++i) {  // more than the ring holds
    ASSERT_TRUE(s.recovery.has_room());
    s.recovery.on_sent(s.now, {});
  }
  EXPECT_EQ(s.recovery.outstanding(), 0U);
  EXPECT_EQ(s.recovery.floor(), 10'000U);
  s.send(1);
  EXPECT_EQ(s.recovery.floor(), 10'000U);
}

TEST(LossRecovery, RingFillsAndFrees) {
  Sender s;
  while (s.recovery.has_room()) {
    s.send(1);
  }
  const std::uint64_t sent = s.recovery.next_number();
  EXPECT_GE(sent, LossRecovery::kRingPackets - 64);
  wire::AckBlock ack{.largest = sent - 1, .floor = sent};
  EXPECT_EQ(s.recovery.on_ack(s.now, ack, {}, kIgnore).acknowledged, sent);
  EXPECT_TRUE(s.recovery.has_room());
}

TEST(Rtt, FollowsTheRfc) {
  RttEstimator rtt;
  rtt.on_sample(microseconds(800), microseconds(0));
  EXPECT_EQ(rtt.smoothed(), microseconds(800));
  EXPECT_EQ(rtt.variation(), microseconds(400));
  rtt.on_sample(microseconds(1700), microseconds(100));  // adjusted to 1600
  EXPECT_EQ(rtt.smoothed(), microseconds(900));
  EXPECT_EQ(rtt.variation(), microseconds(500));
  rtt.on_sample(microseconds(850), microseconds(100));  // not below the minimum: not adjusted
  EXPECT_EQ(rtt.smoothed().ns, (900'000 * 7 + 850'000) / 8);
  EXPECT_EQ(rtt.minimum(), microseconds(800));
}

// ---- Swift ----

struct Rounds {
  Swift swift{microseconds(500), milliseconds(2), 1024};
  std::uint64_t next = 0;
  Instant now{};
  /// One round trip in which the whole window is acknowledged at this delay.
  void run(Duration delay, std::uint32_t lost = 0, bool limited = true) {
    const std::uint32_t window = swift.window();
    if (limited) {
      swift.on_limited();
    }
    if (lost > 0) {
      swift.on_lost(lost);
    }
    const std::uint64_t reported_end = next + 1;  // the first packet sent after the last round's end
    next = reported_end + window;
    now = now + delay;
    swift.on_acknowledged(now, window - std::min(lost, window - 1), delay, reported_end, next);
  }
};

TEST(Swift, SlowStartDoublesWhileLimitedOnly) {
  Rounds r;
  r.run(microseconds(100));
  EXPECT_EQ(r.swift.window(), 2 * kWindowInitial);
  r.run(microseconds(100), 0, false);
  EXPECT_EQ(r.swift.window(), 2 * kWindowInitial);
  for (int i = 0; i < 10; ++i) {
    r.run(microseconds(100));
  }
  EXPECT_EQ(r.swift.window(), 1024U);
}

TEST(Swift, OneSlowRoundIsAPauseTwoAreAQueue) {
  Rounds r;
  r.run(microseconds(100));
  const std::uint32_t before = r.swift.window();
  r.run(milliseconds(50), 0, false);
  EXPECT_EQ(r.swift.window(), before);
  r.run(milliseconds(50), 0, false);
  EXPECT_EQ(r.swift.window(), before / 2);  // max_mdf
}

TEST(Swift, AShortQueueIsHardlyMoreThanTheEmptyPath) {
  Rounds usual, short_queue;
  short_queue.swift.keep_queue_short(true);
  EXPECT_EQ(short_queue.swift.target_delay(), usual.swift.target_delay()) << "no path is known yet";
  for (Rounds* r : {&usual, &short_queue}) {
    r->run(microseconds(200));
    r->run(microseconds(600));
    r->run(microseconds(600));
  }
  EXPECT_EQ(short_queue.swift.target_delay(), microseconds(200) + kShortQueue);
  EXPECT_LT(short_queue.swift.window(), usual.swift.window());
  for (int i = 0; i < 20; ++i) {
    short_queue.run(milliseconds(5));
  }
  EXPECT_EQ(short_queue.swift.window(), kShortQueueWindowMin);
  short_queue.swift.keep_queue_short(false);
  short_queue.run(microseconds(600));
  EXPECT_GT(short_queue.swift.window(), kShortQueueWindowMin);
}

TEST(Swift, PausesLeaveAShortQueueWhatThePathBrings) {
  Rounds r;
  r.swift.keep_queue_short(true);
  for (int i = 0; i < 3; ++i) {
    r.run(microseconds(200));
  }
  const std::uint32_t brought = r.swift.window() / 2;  // in the last of them, as slow start goes
  r.run(milliseconds(3));
  for (std::uint32_t i = 0; i < kRateRounds; ++i) {
    r.run(milliseconds(3));
    EXPECT_GE(r.swift.window(), brought);
  }
  for (std::uint32_t i = 0; i < 2 * kRateRounds; ++i) {
    r.run(milliseconds(3));
  }
  EXPECT_LT(r.swift.window(), brought) << "the path brings no more";
}

TEST(Swift, CutsByHowFarAboveTheTarget) {
  Rounds r;
  r.run(microseconds(100));
  const std::uint32_t before = r.swift.window();
  const Duration target = r.swift.target_delay();
  const Duration delay{target.ns * 10 / 9};  // (delay - target) / delay = 1/10; beta 0.8
  r.run(delay, 0, false);
  r.run(delay, 0, false);
  EXPECT_NEAR(r.swift.window(), before - before * 8 / 100, 1);
}

TEST(Swift, LossCutsInProportionAndNeverBelowTheMinimum) {
  Rounds r;
  for (int i = 0; i < 3; ++i) {
    r.run(microseconds(100));
  }
  const std::uint32_t before = r.swift.window();
  r.run(microseconds(100), before / 11, false);  // 9 % without a queue: noise
  EXPECT_EQ(r.swift.window(), before);
  r.run(microseconds(300), before / 100, false);  // 1 % with one
  EXPECT_EQ(r.swift.window(), before);
  r.run(microseconds(300), before / 10, false);
  EXPECT_NEAR(r.swift.window(), before * 8 / 10, 4);
  const std::uint32_t after = r.swift.window();
  r.run(microseconds(100), after / 9, false);  // 11 %, below what cuts at once
  EXPECT_NEAR(r.swift.window(), after * 78 / 100, 4);
  for (int i = 0; i < 20; ++i) {
    r.run(microseconds(100), r.swift.window(), false);
  }
  EXPECT_EQ(r.swift.window(), kWindowMin);
}

TEST(Swift, ASmallWindowsLossIsJudgedOverSeveralRounds) {
  Rounds r;
  while (r.swift.window() > kWindowMin) {
    r.run(microseconds(100), r.swift.window(), false);
  }
  for (int i = 0; i < 200; ++i) {  // one of 20, never 10 %
    r.run(microseconds(100), i % 5 == 0 ? 1 : 0);
  }
  EXPECT_GT(r.swift.window(), 200U);
}

TEST(Swift, PersistentCongestionBeginsAgain) {
  Rounds r;
  r.run(microseconds(100));
  r.swift.on_persistent_congestion();
  EXPECT_EQ(r.swift.window(), kWindowMin);
  r.run(microseconds(100));
  EXPECT_EQ(r.swift.window(), 2 * kWindowMin);  // slow start
}

TEST(Swift, TargetGrowsAsTheWindowShrinks) {
  const Swift small(microseconds(500), milliseconds(2), 4);
  const Swift large(microseconds(500), milliseconds(2), 1024);  // starts at 32
  EXPECT_EQ(small.target_delay(), microseconds(500 + 2000 + 2500));
  EXPECT_LT(large.target_delay(), small.target_delay());
  EXPECT_GT(large.target_delay(), microseconds(2500));
}

}  // namespace
}  // namespace godwit::transport
