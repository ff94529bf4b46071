// Two Neighbours that exchange frames in memory, and the rules that strangers must not bend.

#include "dataplane/port/neighbours.h"

#include <gtest/gtest.h>

#include <array>

namespace godwit::port {
namespace {

struct Host {
  Host(std::uint8_t number, const char* v4, const char* v6)
      : neighbours({.mac = {{2, 0, 0, 0, 0, number}},
                    .addresses = {{*wire::parse_ip_address(v4), 24}, {*wire::parse_ip_address(v6), 64}},
                    .gateway_v4 = wire::parse_ip_address("10.0.0.254"),
                    .gateway_v6 = {}}) {}
  /// Frames that this host sends now, given to `to`; how many.
  int exchange(Instant now, Neighbours* to) {
    std::array<std::byte, 1514> frame{};
    int frames = 0;
    while (const std::size_t bytes = neighbours.poll_transmit(now, frame)) {
      ++frames;
      if (to != nullptr) {
        to->on_frame(now, std::span(frame).first(bytes));
      }
    }
    return frames;
  }
  Neighbours neighbours;
};

class NeighboursTest : public testing::TestWithParam<const char*> {
 protected:
  Host a_{1, "10.0.0.1", "fd00::1"};
  Host b_{2, "10.0.0.2", "fd00::2"};
  Instant now_{1'000'000'000};
};

TEST_P(NeighboursTest, ResolvesAPeerThatAnswers) {
  const auto peer = *wire::parse_ip_address(GetParam());
  EXPECT_FALSE(a_.neighbours.resolve(now_, peer));
  EXPECT_LE(a_.neighbours.deadline(), now_) << "the question is due at once";
  EXPECT_EQ(a_.exchange(now_, &b_.neighbours), 1);
  EXPECT_EQ(b_.exchange(now_, &a_.neighbours), 1);
  EXPECT_EQ(a_.neighbours.resolve(now_, peer), (wire::MacAddress{{2, 0, 0, 0, 0, 2}}));
}

TEST_P(NeighboursTest, AsksAgainSlowerAndOnlyWhileWanted) {
  const auto peer = *wire::parse_ip_address(GetParam());
  int asked = 0;
  for (int ms = 0; ms < 10'000; ++ms) {
    const Instant now = now_ + milliseconds(ms);
    if (ms < 1000) {
      a_.neighbours.resolve(now, peer);
    }
    asked += a_.exchange(now, nullptr);
  }
  EXPECT_GE(asked, 6);
  EXPECT_LE(asked, 12);
  EXPECT_GT(a_.neighbours.deadline(), now_ + milliseconds(10'000)) << "an unwanted question keeps nobody awake";
}

TEST_P(NeighboursTest, AnswersAreForgottenWhenNobodyConfirmsThem) {
  const auto peer = *wire::parse_ip_address(GetParam());
  a_.neighbours.resolve(now_, peer);
  a_.exchange(now_, &b_.neighbours);
  b_.exchange(now_, &a_.neighbours);
  for (int s = 0; s < 60; ++s) {
    a_.neighbours.resolve(now_ + milliseconds(s * 1000), peer);
    a_.exchange(now_ + milliseconds(s * 1000), nullptr);
  }
  EXPECT_FALSE(a_.neighbours.resolve(now_ + milliseconds(60'000), peer));
}

TEST_P(NeighboursTest, ConfirmedAnswersStay) {
  const auto peer = *wire::parse_ip_address(GetParam());
  a_.neighbours.resolve(now_, peer);
  a_.exchange(now_, &b_.neighbours);
  b_.exchange(now_, &a_.neighbours);
  const auto questions = a_.neighbours.counters().asked;
  for (int s = 0; s < 100; ++s) {
    a_.neighbours.confirm(now_ + milliseconds(s * 1000), peer);
    EXPECT_TRUE(a_.neighbours.resolve(now_ + milliseconds(s * 1000), peer));
    a_.exchange(now_ + milliseconds(s * 1000), nullptr);
  }
  EXPECT_EQ(a_.neighbours.counters().asked, questions);
}

INSTANTIATE_TEST_SUITE_P(Families, NeighboursTest, testing::Values("10.0.0.2", "fd00::2"));

TEST_F(NeighboursTest, AStrangersClaimIsNotKept) {
  Host stranger(9, "10.0.0.9", "fd00::9");
  stranger.neighbours.resolve(now_, *wire::parse_ip_address("10.0.0.1"));
  stranger.exchange(now_, &a_.neighbours);  // its question names its own address
  EXPECT_EQ(a_.neighbours.counters().learned, 0U);
  EXPECT_EQ(a_.exchange(now_, &stranger.neighbours), 1) << "but it is answered";
}

TEST_F(NeighboursTest, FarPeersGoByTheGateway) {
  EXPECT_FALSE(a_.neighbours.resolve(now_, *wire::parse_ip_address("192.168.7.1")));
  Host gateway(254, "10.0.0.254", "fd00::fe");
  a_.exchange(now_, &gateway.neighbours);
  gateway.exchange(now_, &a_.neighbours);
  EXPECT_EQ(a_.neighbours.resolve(now_, *wire::parse_ip_address("192.168.7.1")),
            (wire::MacAddress{{2, 0, 0, 0, 0, 254}}));
}

TEST_F(NeighboursTest, GarbageIsCountedAndChangesNothing) {
  a_.neighbours.resolve(now_, *wire::parse_ip_address("10.0.0.2"));
  std::array<std::byte, 60> frame{};
  frame[12] = std::byte{0x08};
  frame[13] = std::byte{0x06};
  a_.neighbours.on_frame(now_, frame);
  EXPECT_EQ(a_.neighbours.counters().rejected, 1U);
  EXPECT_FALSE(a_.neighbours.resolve(now_, *wire::parse_ip_address("10.0.0.2")));
}

}  // namespace
}  // namespace godwit::port
