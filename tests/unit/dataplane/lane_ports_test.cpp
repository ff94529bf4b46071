// Goal: frames of each lane carry a source port that lands, by what the peer tells of its NIC, on the queue of the
// lane's owner there; and what a peer tells is checked.

#include <gtest/gtest.h>

#include <set>

#include "dataplane/daemon/flow_lanes.h"
#include "dataplane/daemon/requests.h"
#include "dataplane/daemon/service_options.h"
#include "dataplane/wire/datagram.h"
#include "tests/unit/dataplane/no_queue.h"

namespace godwit::daemon {
namespace {

/// Keeps the last frame.
class OneFrame final : public tests::NoQueue {
 public:
  std::span<std::byte> next_frame(port::Priority) override { return frame_; }
  void commit(port::Priority, std::size_t bytes) override { committed_ = bytes; }
  [[nodiscard]] std::span<std::byte> committed() { return std::span(frame_).first(committed_); }

 private:
  std::array<std::byte, 2048> frame_{};
  std::size_t committed_ = 0;
};

class OnePage final : public transport::LaneUser {
 public:
  bool next_work(std::uint16_t, transport::Work& out) override {
    out = {.page = 1, .round = 1};
    return true;
  }
  void read_page(pages::PageNumber, std::uint32_t, std::span<std::byte> out) override {
    std::fill(out.begin(), out.end(), std::byte{1});
  }
  void on_acknowledged(const transport::Work&) override {}
  void on_page(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint32_t, std::span<const std::byte>) override {}
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) override {}
  void on_message(std::span<const std::byte>) override {}
};

wire::ReceiveSpread spread_over(std::uint16_t queues) {
  wire::ReceiveSpread spread{std::vector<std::byte>(52), std::vector<std::uint8_t>(128), queues};
  for (std::size_t i = 0; i < spread.key.size(); ++i) {
    spread.key[i] = static_cast<std::byte>(i * 77 + 13);
  }
  for (std::size_t i = 0; i < spread.table.size(); ++i) {
    spread.table[i] = static_cast<std::uint8_t>(i % queues);
  }
  return spread;
}

/// The source port of the first frame of each lane.
std::vector<wire::UdpEndpoint> sources(const FlowConfig& config) {
  FlowLanes lanes(config, true);
  OnePage user;
  OneFrame queue;
  std::vector<wire::UdpEndpoint> result;
  for (std::uint16_t lane = 0; lane <= config.bulk_lanes; ++lane) {
    lanes.add(lane, user, Instant{1});
    if (lane == 0) {
      EXPECT_TRUE(lanes.lane(0).send_message(std::vector<std::byte>(10)));
    }
    EXPECT_EQ(lanes.transmit(Instant{1}, lane, queue, {}, wire::kBroadcastMac, 1), 1U);
    const auto datagram = wire::parse_datagram(queue.committed(), wire::ChecksumCheck::kTrust);
    EXPECT_TRUE(datagram);
    result.push_back(datagram ? datagram->source : wire::UdpEndpoint{});
  }
  return result;
}

FlowConfig config_of(std::uint32_t flow_id) {
  FlowConfig config;
  config.local_flow_id = flow_id;
  config.peer_flow_id = 5;
  config.local = wire::parse_ip_address("10.0.0.1").value();
  config.peer = {wire::parse_ip_address("10.0.0.2").value(), 4793};
  config.bulk_lanes = 16;
  config.figures = make_flow_figures(config.bulk_lanes);
  return config;
}

TEST(LanePorts, LandOnTheQueueOfTheLanesOwner) {
  for (const std::uint32_t flow_id : {1U, 77U, 0xfffffffeU}) {
    for (const std::uint16_t queues : {std::uint16_t{2}, std::uint16_t{7}, std::uint16_t{16}}) {
      FlowConfig config = config_of(flow_id);
      config.peer_spread = spread_over(queues);
      std::set<std::uint16_t> ports;
      std::size_t lane = 0;
      for (const wire::UdpEndpoint& source : sources(config)) {
        EXPECT_EQ(wire::queue_of(*config.peer_spread, source, config.peer), lcore_of_lane(lane, queues)) << lane;
        EXPECT_TRUE(ports.insert(source.port).second) << "two lanes have one path";
        ++lane;
      }
    }
  }
}

TEST(LanePorts, WithoutAWordOfThePeerEachLaneHasItsOwn) {
  std::set<std::uint16_t> ports;
  for (const wire::UdpEndpoint& source : sources(config_of(9))) {
    EXPECT_GE(source.port, wire::kDynamicPortFirst);
    EXPECT_TRUE(ports.insert(source.port).second);
  }
}

api::StartMigration good_start() {
  api::StartMigration good;
  good.set_secret(std::string(32, 's'));
  api::Endpoint& peer = *good.mutable_peer();
  peer.set_address("10.0.0.2");
  peer.set_udp_port(4793);
  peer.set_flow_id(5);
  peer.set_mtu_bytes(1500);
  peer.set_lanes(2);
  peer.set_boot_id(std::string(16, 'b'));
  return good;
}

TEST(LanePorts, WhatAPeerTellsIsChecked) {
  api::StartMigration good = good_start();
  api::Endpoint& peer = *good.mutable_peer();
  ASSERT_TRUE(parse_start(good, false));
  EXPECT_FALSE(parse_start(good, false)->peer.receive_spread);
  peer.mutable_receive_spread()->set_key(std::string(40, 'k'));
  peer.mutable_receive_spread()->set_table(std::string("\0\1\1\0", 4));
  peer.mutable_receive_spread()->set_queues(2);
  const auto parsed = parse_start(good, false);
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->peer.receive_spread->table, (std::vector<std::uint8_t>{0, 1, 1, 0}));
  const auto refused = [&good](auto spoil) {
    api::StartMigration bad = good;
    spoil(*bad.mutable_peer()->mutable_receive_spread());
    const auto start = parse_start(bad, false);
    return !start && start.error().code == api::Error::BAD_REQUEST &&
           start.error().text.find("receive_spread") != std::string::npos;
  };
  EXPECT_TRUE(refused([](api::ReceiveSpread& s) { s.set_key(std::string(39, 'k')); }));
  EXPECT_TRUE(refused([](api::ReceiveSpread& s) { s.set_key(std::string(100'000, 'k')); }));
  EXPECT_TRUE(refused([](api::ReceiveSpread& s) { s.set_table(std::string("\0\1\2\0", 4)); }));
  EXPECT_TRUE(refused([](api::ReceiveSpread& s) { s.set_table(std::string("\0\1\1", 3)); }));
  EXPECT_TRUE(refused([](api::ReceiveSpread& s) { s.clear_table(); }));
  EXPECT_TRUE(refused([](api::ReceiveSpread& s) { s.set_queues(0); }));
  EXPECT_TRUE(refused([](api::ReceiveSpread& s) { s.set_queues(65'536 + 2); }));
}

/// Whoever does not say that it takes them apart, a former version say, gets single frames.
TEST(Endpoint, SuperFramesGoToThoseWhoSayThatTheyTakeThem) {
  ServiceOptions options;
  options.address = "10.0.0.2";
  options.mtu_bytes = 1500;
  for (const bool takes : {true, false}) {
    options.takes_super_frames = takes;
    api::StartMigration start = good_start();
    options.describe(5, *start.mutable_peer());
    EXPECT_EQ(start.peer().super_frames(), takes);
  }
  api::StartMigration start = good_start();
  const auto sends = [&] {
    const auto parsed = parse_start(start, false);
    return parsed &&
           flow_config(options, {.flow_id = 1}, *parsed, parsed->peer.endpoint.address, 1).peer_takes_super_frames;
  };
  EXPECT_FALSE(sends());
  start.mutable_peer()->set_super_frames(true);
  EXPECT_TRUE(sends());
}

}  // namespace
}  // namespace godwit::daemon
