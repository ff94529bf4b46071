// Goal: a datagram that is not authentic and new changes nothing of a lane, whatever the lane is doing; and a lane
// whose keys, numbers or patience with forgeries are used up closes. Method: two equal pairs of lanes live through the
// same story; one of them is also shown forged, damaged, cut, foreign and repeated datagrams. What they send must stay
// equal byte for byte, and so must all that they tell.

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string>

#include "dataplane/transport/hkdf.h"
#include "tests/unit/transport/lane_pair.h"

namespace godwit::transport {
namespace {

/// Keys change every 40 packets.
Protection often(Cipher cipher) { return {.cipher = cipher, .limits = {.rekey_packets = 40, .packets_max = 100'000}}; }

class Story {
 public:
  Story(std::uint64_t seed, std::uint16_t lane, Cipher cipher)
      : random_(seed),
        lane_(lane),
        cipher_(cipher),
        calm_(lane, kBytes, often(cipher)),
        shown_(lane, kBytes, often(cipher)) {}

  void run(int steps) {
    make_strangers();
    for (int i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
      step();
      compare();
    }
  }
  [[nodiscard]] std::uint64_t refused(Received kind) const {
    return shown_.a.counters().received[static_cast<std::size_t>(kind)] +
           shown_.b.counters().received[static_cast<std::size_t>(kind)];
  }
  [[nodiscard]] std::uint64_t phases() const { return phases_; }

 private:
  static constexpr std::uint32_t kBytes = 1472;

  void step() {
    const bool from_a = random_() % 2 == 0;
    give_work();
    forge(from_a);
    const std::uint64_t fate = random_() % 10;
    for (int i = 0; i < 5; ++i) {
      transmit(from_a, fate);
    }
    // Now and then nobody sends for long: old keys go, probes are due, the peer may seem dead.
    const auto pause =
        random_() % 50 == 0 ? milliseconds(5000) : microseconds(static_cast<std::int64_t>(random_() % 4000));
    for (Pair* pair : {&calm_, &shown_}) {
      pair->now = pair->now + pause;
      for (Lane* lane : {&pair->a, &pair->b}) {
        if (lane->deadline() <= pair->now) {
          lane->tick(pair->now);
        }
      }
    }
  }

  void give_work() {
    if (random_() % 3 != 0) {
      return;
    }
    for (Pair* pair : {&calm_, &shown_}) {
      if (lane_ == 0) {
        static_cast<void>(pair->a.send_message(Bytes(3000)) && pair->b.send_message(Bytes(200)));
      } else {
        pair->user_a.work.insert(pair->user_a.work.end(), 8, {.page = 1, .round = 1});
      }
    }
  }

  /// One packet in each pair; the same becomes of both.
  void transmit(bool from_a, std::uint64_t fate) {
    Bytes sent;
    for (Pair* pair : {&calm_, &shown_}) {
      Lane& from = from_a ? pair->a : pair->b;
      const std::size_t length = from.poll_transmit(pair->now, pair->out);
      Bytes bytes(pair->out.begin(), pair->out.begin() + static_cast<std::ptrdiff_t>(length));
      if (pair == &shown_) {
        ASSERT_EQ(sent, bytes) << "the pairs have come apart";
      }
      sent = std::move(bytes);
    }
    if (sent.empty()) {
      return;
    }
    const std::uint8_t phase = static_cast<std::uint8_t>(sent[1]) & wire::kFlagKeyPhase;
    phases_ += from_a && phase != last_phase_ ? 1 : 0;
    last_phase_ = from_a ? phase : last_phase_;
    if (fate == 0) {
      return;  // lost
    }
    for (Pair* pair : {&calm_, &shown_}) {
      Bytes copy = sent;
      (from_a ? pair->b : pair->a).on_packet(pair->now, copy);
    }
    seen_[from_a ? 0 : 1].push_back(std::move(sent));
  }

  void forge(bool to_a) {
    const std::vector<Bytes>& seen = seen_[to_a ? 1 : 0];
    Lane& lane = to_a ? shown_.a : shown_.b;
    const auto show = [&](Bytes datagram) {
      const Received received = lane.on_packet(shown_.now, datagram);
      ASSERT_NE(received, Received::kAccepted);
      ASSERT_NE(received, Received::kBadBody);
    };
    for (int i = 0; i < 6; ++i) {
      show(Bytes(random_() % 2000, static_cast<std::byte>(random_())));
      if (!seen.empty()) {
        const std::size_t recent = std::min<std::size_t>(seen.size(), 60);
        const Bytes& genuine = seen[seen.size() - 1 - random_() % recent];
        show(genuine);  // again
        show(changed(genuine));
        show(restamped(genuine));
        show(seen[random_() % seen.size()]);
      }
      show(restamped(strangers_[to_a ? 1 : 0]));
    }
  }

  Bytes changed(Bytes datagram) {
    switch (random_() % 3) {
      case 0:
        datagram.resize(random_() % datagram.size());
        break;
      case 1:
        datagram.resize(datagram.size() + 1 + random_() % 100);
        break;
      default:
        datagram[random_() % datagram.size()] ^= static_cast<std::byte>(1 + random_() % 255);
    }
    return datagram;
  }
  /// A number that has not come yet, and either phase: gets as far as the tag.
  Bytes restamped(Bytes datagram) {
    datagram[8] ^= static_cast<std::byte>(1 + random_() % 63);
    datagram[9] ^= static_cast<std::byte>(random_() % 2);
    datagram[1] ^= static_cast<std::byte>(random_() % 2 == 0 ? wire::kFlagKeyPhase : 0);
    return datagram;
  }
  /// Sealed as it should be, by somebody with another secret; one to a and one to b.
  void make_strangers() {
    for (const bool to_a : {false, true}) {
      LaneConfig c = config(!to_a, lane_, kBytes, often(cipher_));
      c.secret[0] = std::byte{1};
      User user;
      user.work = {{.page = 1, .round = 1}};
      Lane stranger(c, user, shown_.now);
      if (lane_ == 0) {
        static_cast<void>(stranger.send_message(Bytes(10)));
      }
      Bytes& out = strangers_[to_a ? 1 : 0];
      out.resize(kBytes);
      out.resize(stranger.poll_transmit(shown_.now, out));
      ASSERT_FALSE(out.empty());
    }
  }

  void compare() {
    for (const auto& [calm, shown] : {std::pair{&calm_.a, &shown_.a}, {&calm_.b, &shown_.b}}) {
      ASSERT_EQ(calm->deadline(), shown->deadline());
      ASSERT_EQ(calm->quiet(), shown->quiet());
      ASSERT_EQ(calm->peer_dead(calm_.now), shown->peer_dead(shown_.now));
      ASSERT_EQ(calm->fault(), shown->fault());
      ASSERT_EQ(calm->message_room(), shown->message_room());
      ASSERT_EQ(calm->smoothed_rtt(), shown->smoothed_rtt());
      ASSERT_EQ(calm->congestion_window_packets(), shown->congestion_window_packets());
      ASSERT_EQ(calm->counters().packets_received.get(), shown->counters().packets_received.get());
      ASSERT_EQ(calm->counters().bytes_received.get(), shown->counters().bytes_received.get());
      ASSERT_EQ(calm->counters().packets_lost.get(), shown->counters().packets_lost.get());
    }
    ASSERT_EQ(calm_.user_b.page_bytes, shown_.user_b.page_bytes);
    ASSERT_EQ(calm_.user_b.message_bytes, shown_.user_b.message_bytes);
    ASSERT_EQ(calm_.user_a.acknowledged, shown_.user_a.acknowledged);
  }

  std::mt19937_64 random_;
  const std::uint16_t lane_;
  const Cipher cipher_;
  Pair calm_, shown_;
  std::array<Bytes, 2> strangers_;          // [1]: to a
  std::array<std::vector<Bytes>, 2> seen_;  // [0]: from a, delivered
  std::uint8_t last_phase_ = 0;
  std::uint64_t phases_ = 0;
};

TEST(LaneForgery, NothingUnauthenticChangesAnything) {
  for (const Cipher cipher : {Cipher::kAes128Gcm, Cipher::kAes256Gcm, Cipher::kNone}) {
    for (const std::uint16_t lane : std::initializer_list<std::uint16_t>{0, 1}) {
      SCOPED_TRACE("cipher " + std::to_string(static_cast<int>(cipher)) + ", lane " + std::to_string(lane));
      Story story(lane + 1, lane, cipher);
      story.run(8000);
      for (const Received kind : {Received::kDuplicate, Received::kMalformed, Received::kBadTag, Received::kTooOld,
                                  Received::kWrongFlow, Received::kWrongLane, Received::kWrongVersion}) {
        EXPECT_GT(story.refused(kind), 0U) << to_string(kind);
      }
      if (cipher != Cipher::kNone) {
        EXPECT_GT(story.phases(), 10U);
        EXPECT_GT(story.refused(Received::kOldKey), 0U);
      }
    }
  }
}

TEST(LaneForgery, PacketsOfAnEarlierLifeAreStrangers) {
  const FlowEnd a{.flow_id = 11}, b{.flow_id = 22};
  FlowEnd b_again = b;
  b_again.boot_id[3] = std::byte{7};
  LaneConfig before = config(true, 0), after = config(false, 0);
  before.secret = flow_secret({}, a, b);
  after.secret = flow_secret({}, a, b_again);  // the same flow ids and migration's secret
  User user;
  const Instant now{1};
  Lane sender(before, user, now), receiver(after, user, now);
  ASSERT_TRUE(sender.send_message(Bytes(10)));
  Bytes out(8972);
  out.resize(sender.poll_transmit(now, out));
  EXPECT_EQ(receiver.on_packet(now, out), Received::kBadTag);
}

void expect_closed(Pair& pair, Lane& lane, LaneFault fault) {
  EXPECT_EQ(lane.fault(), fault);
  EXPECT_FALSE(to_string(lane.fault()).empty());
  EXPECT_EQ(lane.poll_transmit(pair.now, pair.out), 0U);
  EXPECT_EQ(lane.deadline(), kNever);
  Lane& other = &lane == &pair.a ? pair.b : pair.a;
  ASSERT_TRUE(other.send_message(Bytes(10)));
  const std::size_t length = other.poll_transmit(pair.now, pair.out);
  ASSERT_GT(length, 0U);
  EXPECT_EQ(lane.on_packet(pair.now, std::span(pair.out).first(length)), Received::kClosed);
}

TEST(LaneLimits, ForgeriesCloseIt) {
  Pair pair(0, 8972, {.limits = {.forgeries_max = 10}});
  ASSERT_TRUE(pair.a.send_message(Bytes(10)));
  Bytes packet = pair.packet();
  packet.back() ^= std::byte{1};
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(pair.b.fault(), LaneFault::kNone);
    Bytes copy = packet;
    EXPECT_EQ(pair.b.on_packet(pair.now, copy), Received::kBadTag);
  }
  expect_closed(pair, pair.b, LaneFault::kForgeries);
}

TEST(LaneLimits, NumbersCloseIt) {
  Pair pair(0, 8972, {.limits = {.packet_number_max = 20}});
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(pair.a.send_message(Bytes(10)));
    pair.run();
  }
  ASSERT_TRUE(pair.a.send_message(Bytes(10)));
  EXPECT_FALSE(pair.packet().empty());
  EXPECT_TRUE(pair.packet().empty());
  expect_closed(pair, pair.a, LaneFault::kNumbersUsedUp);
}

TEST(LaneLimits, AKeyThatNobodyConfirmsClosesIt) {
  Pair pair(0, 8972, {.limits = {.rekey_packets = 4, .packets_max = 8}});
  for (int i = 0; i < 9; ++i) {
    ASSERT_TRUE(pair.a.send_message(Bytes(10)));
    static_cast<void>(pair.packet());  // lost
  }
  expect_closed(pair, pair.a, LaneFault::kKeyUsedUp);
}

TEST(LaneLimits, ManyKeysOnALossyPath) {
  for (const Cipher cipher : {Cipher::kAes128Gcm, Cipher::kAes256Gcm}) {
    Pair pair(1, 1472, often(cipher));
    for (pages::PageNumber page = 0; page < 20'000; ++page) {
      pair.user_a.work.push_back({.page = page, .round = 1});
    }
    std::mt19937_64 random(1);
    std::array<std::uint64_t, 2> toggles{};
    std::array<std::byte, 2> last{};
    for (int turn = 0; turn < 200'000 && !(pair.a.quiet() && pair.user_a.acknowledged == 20'000); ++turn) {
      pair.now = pair.now + microseconds(300);
      for (std::size_t from = 0; from < 2; ++from) {
        Lane& lane = from == 0 ? pair.a : pair.b;
        if (lane.deadline() <= pair.now) {
          lane.tick(pair.now);
        }
        for (int burst = 0; burst < 20; ++burst) {
          const std::size_t length = lane.poll_transmit(pair.now, pair.out);
          if (length == 0) {
            break;
          }
          const std::byte bit = pair.out[1] & std::byte{wire::kFlagKeyPhase};
          toggles[from] += bit != last[from] ? 1U : 0U;
          last[from] = bit;
          if (random() % 10 != 0) {
            (from == 0 ? pair.b : pair.a).on_packet(pair.now, std::span(pair.out).first(length));
          }
        }
      }
    }
    EXPECT_EQ(pair.user_a.acknowledged, 20'000U);
    EXPECT_GT(toggles[0], 5U);
    EXPECT_GT(toggles[1], 2U) << "acknowledgements have keys too";
  }
}

}  // namespace
}  // namespace godwit::transport
