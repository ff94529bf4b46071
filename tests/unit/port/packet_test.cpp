// A port on either end of a veth pair in a network namespace of the test's own, and what a host next to us may send.

#include "dataplane/wire/packet.h"

#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "dataplane/port/packet_port.h"
#include "dataplane/port/packet_socket.h"
#include "dataplane/port/super_frame.h"
#include "dataplane/wire/datagram.h"

namespace godwit::port {
namespace {

constexpr std::uint32_t kMtu = 9000;
constexpr std::uint16_t kPort = 4793;
constexpr std::size_t kPageFrame = 8322;
using Bytes = std::vector<std::byte>;

Bytes datagram(std::size_t frame_bytes, std::uint16_t lane, std::uint32_t number,
               wire::IpFamily family = wire::IpFamily::kV4, std::uint16_t port = kPort) {
  Bytes frame(frame_bytes, static_cast<std::byte>(number * 37 + 1));
  wire::DatagramPath path;
  path.source = {{.family = family}, static_cast<std::uint16_t>(50'000 + lane)};
  path.destination = {{.family = family}, port};
  path.destination.address.bytes[0] = 10;
  const std::size_t headers = wire::datagram_header_bytes(family);
  wire::write_header({.lane = lane, .flow_id = 1, .packet_number = number}, std::span(frame).subspan(headers));
  wire::write_datagram_headers(path, wire::UdpChecksum::kNone, frame);
  return frame;
}

/// Those, and the identification of what cannot be fragmented, are what whoever carries a frame makes of them.
Bytes without_checksums(std::span<const std::byte> bytes) {
  Bytes frame(bytes.begin(), bytes.end());
  if (wire::classify_frame(frame) == wire::FrameKind::kUdp && frame[14] == std::byte{0x45}) {
    std::fill_n(frame.begin() + 18, 2, std::byte{0});
    std::fill_n(frame.begin() + 24, 2, std::byte{0});
    std::fill_n(frame.begin() + 40, 2, std::byte{0});
  }
  return frame;
}

bool run(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }

class PacketPorts : public testing::Test {
 protected:
  void SetUp() override {
    if (::unshare(CLONE_NEWNET) != 0) {
      GTEST_SKIP() << "needs root";
    }
    if (!run("ip link add gw0 mtu 9000 type veth peer name gw1 mtu 9000")) {
      GTEST_SKIP() << "needs the kernel's veth";
    }
    for (const std::string end : {"gw0", "gw1"}) {
      run("ip link set " + end + " addrgenmode none");  // or the kernel speaks up by itself, where it has IPv6
      ASSERT_TRUE(run("ip link set " + end + " up"));
    }
    here_ = open_end("gw0", 1);
    there_ = open_end("gw1", 1);
    ASSERT_TRUE(here_ && there_);
    wait_until_it_carries();
  }

  /// An interface that is up carries frames only somewhat later.
  void wait_until_it_carries() {
    for (auto [from, to] : {std::pair{here_.get(), there_.get()}, {there_.get(), here_.get()}}) {
      do {
        send(from->queue(0), Priority::kUrgent, {datagram(200, 0, 1)});
        pollfd file{to->receive_interrupt(0), POLLIN, 0};
        ::poll(&file, 1, 1);
      } while (receive_all(to->queue(0)).empty());
    }
    for (int i = 0; i < 2000; ++i) {  // until bulk has whole bursts again (BulkTurn)
      here_->queue(0).receive();
      there_->queue(0).receive();
    }
  }

  static std::unique_ptr<Port> open_end(const std::string& interface, std::uint16_t queues) {
    PortOptions options;
    options.interface = interface;
    options.udp_port = kPort;
    options.mtu = kMtu;
    options.queues = queues;
    auto port = Port::open(options);
    EXPECT_TRUE(port) << port.error().text;
    return port ? std::move(*port) : nullptr;
  }

  static void send(Queue& queue, Priority priority, const std::vector<Bytes>& frames) {
    for (const Bytes& frame : frames) {
      const auto to = queue.next_frame(priority);
      ASSERT_FALSE(to.empty());
      std::copy(frame.begin(), frame.end(), to.begin());
      queue.commit(priority, frame.size());
    }
    queue.flush();
  }

  static std::vector<Bytes> receive_all(Queue& queue) {
    std::vector<Bytes> all;
    for (int empty = 0; empty < 3;) {
      const auto frames = queue.receive();
      empty = frames.empty() ? empty + 1 : 0;
      for (const auto frame : frames) {
        all.push_back(without_checksums(frame));
      }
    }
    return all;
  }
  static std::vector<Bytes> as_received(std::vector<Bytes> frames) {
    for (Bytes& frame : frames) {
      frame = without_checksums(frame);
    }
    return frames;
  }

  /// That the kernel has carried to gw1, whatever they were.
  static std::uint64_t carried() {
    std::ifstream file("/proc/thread-self/net/dev");
    for (std::string line; std::getline(file, line);) {
      if (const auto at = line.find("gw1:"); at != std::string::npos) {
        std::uint64_t bytes = 0;
        std::uint64_t packets = 0;
        std::sscanf(line.c_str() + at + 4, "%lu %lu", &bytes, &packets);
        return packets;
      }
    }
    return 0;
  }

  /// Straight to the kernel, as a host that does what it likes.
  static bool inject(const OffloadHeader& told, const Bytes& frame) {
    const UniqueFd fd(::socket(AF_PACKET, SOCK_RAW, 0));
    const int one = 1;
    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    to.sll_ifindex = static_cast<int>(if_nametoindex("gw0"));
    std::array<iovec, 2> pieces{
        {{const_cast<OffloadHeader*>(&told), sizeof told}, {const_cast<std::byte*>(frame.data()), frame.size()}}};
    msghdr message{};
    message.msg_name = &to;
    message.msg_namelen = sizeof to;
    message.msg_iov = pieces.data();
    message.msg_iovlen = pieces.size();
    return ::setsockopt(fd.get(), SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) == 0 &&
           ::sendmsg(fd.get(), &message, 0) > 0;
  }

  std::unique_ptr<Port> here_;
  std::unique_ptr<Port> there_;
};

std::vector<Bytes> burst(std::size_t count, std::size_t frame_bytes) {
  std::vector<Bytes> frames;
  for (std::uint32_t i = 0; i < count; ++i) {
    frames.push_back(datagram(frame_bytes, 1, i));
  }
  return frames;
}

TEST_F(PacketPorts, ABurstArrivesAsItWasSentInFewerFramesWhereThatIsAllowed) {
  if (!kernel_knows_super_frames()) {
    GTEST_SKIP() << "needs Linux 6.2";
  }
  Queue& queue = here_->queue(0);
  for (const bool allowed : {false, true}) {
    for (const std::size_t frame_bytes : {std::size_t{100}, std::size_t{1514}, kPageFrame, std::size_t{9014}}) {
      auto frames = burst(kBurst - 1, frame_bytes);
      frames.push_back(datagram(frame_bytes - 10, 1, 99));
      queue.allow_super_frames(allowed);
      const std::uint64_t before = carried();
      send(queue, Priority::kBulk, frames);
      EXPECT_TRUE(receive_all(there_->queue(0)) == as_received(frames)) << frame_bytes << allowed;
      EXPECT_TRUE(allowed ? carried() - before <= 6 : carried() - before >= kBurst) << carried() - before;
    }
  }
  EXPECT_GE(queue.counters().frames_sent.get(), 8 * kBurst);
}

TEST_F(PacketPorts, AKernelThatTakesSuperFramesApartBringsTheSame) {
  if (!run("ethtool -K gw0 tx off")) {
    GTEST_SKIP() << "needs ethtool";
  }
  const auto frames = burst(kBurst, kPageFrame);
  here_->queue(0).allow_super_frames(true);
  const std::uint64_t before = carried();
  send(here_->queue(0), Priority::kBulk, frames);
  EXPECT_TRUE(receive_all(there_->queue(0)) == as_received(frames));
  EXPECT_GE(carried() - before, kBurst);
}

TEST_F(PacketPorts, FramesOfSeveralLanesAndSizesKeepTheirOrder) {
  std::vector<Bytes> frames;
  for (std::uint32_t i = 0; i < kBurst; ++i) {
    frames.push_back(datagram(200 + i * 7919 % 8000, static_cast<std::uint16_t>(1 + i / 5), i));
  }
  here_->queue(0).allow_super_frames(true);
  send(here_->queue(0), Priority::kBulk, frames);
  EXPECT_TRUE(receive_all(there_->queue(0)) == as_received(frames));
}

TEST_F(PacketPorts, PagesMayBePutWhereTheyLeaveFrom) {
  Queue& queue = here_->queue(0);
  queue.allow_super_frames(true);
  const auto frames = burst(7, kPageFrame);
  for (const Bytes& frame : frames) {
    constexpr std::size_t kHead = 106;
    constexpr std::size_t kTail = 16;
    const auto to = queue.next_frame(Priority::kBulk);
    const auto room = queue.room(Priority::kBulk, kHead, RoomFor::kClearText);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(room.data() + kHead) % 64, 0U);
    std::copy_n(frame.begin(), kHead, to.begin());
    std::copy_n(frame.end() - kTail, kTail, to.begin() + kHead);
    std::copy(frame.begin() + kHead, frame.end() - kTail, room.begin() + kHead);
    queue.commit_around(Priority::kBulk, kHead + kTail, kTail, frame.size() - kHead - kTail);
  }
  queue.flush();
  EXPECT_TRUE(receive_all(there_->queue(0)) == as_received(frames));
}

TEST_F(PacketPorts, UrgentFramesPassBulkAtEitherEnd) {
  const auto bulk = burst(3, 3000);
  const std::vector<Bytes> urgent{datagram(200, 0, 7)};
  for (const Bytes& frame : bulk) {
    const auto to = here_->queue(0).next_frame(Priority::kBulk);
    std::copy(frame.begin(), frame.end(), to.begin());
    here_->queue(0).commit(Priority::kBulk, frame.size());
  }
  send(here_->queue(0), Priority::kUrgent, urgent);
  send(here_->queue(0), Priority::kUrgent, urgent);  // after that bulk
  const auto got = receive_all(there_->queue(0));
  ASSERT_EQ(got.size(), 5U);
  EXPECT_EQ(got[0], without_checksums(urgent[0]));
  EXPECT_EQ(got[1], without_checksums(urgent[0]));
}

TEST_F(PacketPorts, OnlyWhatConcernsUsIsShown) {
  Bytes tagged = datagram(200, 1, 1);
  const std::array<std::byte, 4> tag{std::byte{0x81}, std::byte{0}, std::byte{0}, std::byte{5}};
  tagged.insert(tagged.begin() + 12, tag.begin(), tag.end());
  Bytes tcp = datagram(200, 1, 1);
  tcp[23] = std::byte{6};
  Bytes arp(60);
  arp[12] = std::byte{8};
  arp[13] = std::byte{6};
  const Bytes v6 = datagram(300, 2, 3, wire::IpFamily::kV6);
  for (const Bytes& frame : {tagged, tcp, datagram(200, 1, 1, wire::IpFamily::kV4, kPort + 1), Bytes(60), arp, v6}) {
    ASSERT_TRUE(inject({}, frame));
  }
  EXPECT_TRUE(receive_all(there_->queue(0)) == (std::vector<Bytes>{arp, v6}));
  EXPECT_TRUE(receive_all(here_->queue(0)).empty()) << "what this host sends itself";
}

TEST_F(PacketPorts, ASuperFrameOfManySmallOnesIsTakenApartInTurns) {
  if (!kernel_knows_super_frames()) {
    GTEST_SKIP() << "needs Linux 6.2";
  }
  constexpr std::size_t kSegments = 100;
  for (const auto& [family, segment] : {std::pair{wire::IpFamily::kV4, std::size_t{50}},
                                        {wire::IpFamily::kV6, std::size_t{50}},
                                        {wire::IpFamily::kV4, std::size_t{5}},
                                        {wire::IpFamily::kV6, std::size_t{5}}}) {
    const std::size_t headers = wire::datagram_header_bytes(family);
    Bytes frame = datagram(headers + kSegments * segment - 1, 1, 5, family);
    const auto told = make_super_frame(std::span(frame).first(headers), frame.size() - headers, segment);
    ASSERT_TRUE(inject(told, frame));
    const auto got = receive_all(there_->queue(0));
    ASSERT_EQ(got.size(), kSegments);
    for (std::size_t i = 0; i < kSegments; ++i) {
      Bytes whole = got[i];
      const auto view = wire::parse_datagram(whole, wire::ChecksumCheck::kTrust);
      ASSERT_TRUE(view);
      const auto from = std::span(frame).subspan(headers + i * segment, i + 1 < kSegments ? segment : segment - 1);
      EXPECT_TRUE(std::ranges::equal(view->payload, from)) << i;
    }
  }
}

TEST_F(PacketPorts, WhatIsLongerThanOurFramesIsDroppedAndCounted) {
  ASSERT_TRUE(run("ip link set gw0 mtu 20000 && ip link set gw1 mtu 20000"));
  ASSERT_TRUE(inject({}, datagram(kMtu + 15, 1, 1)));
  ASSERT_TRUE(inject({}, datagram(300, 1, 2)));
  EXPECT_EQ(receive_all(there_->queue(0)).size(), 1U);
  EXPECT_EQ(there_->queue(0).counters().drops_segmented.get(), 1U);
}

TEST_F(PacketPorts, AnInterfaceThatIsDownLosesFramesAndCountsThem) {
  EXPECT_TRUE(here_->link_up());
  ASSERT_TRUE(run("ip link set gw0 down"));
  EXPECT_FALSE(here_->link_up());
  here_->queue(0).allow_super_frames(true);
  const std::uint64_t before = here_->drops().transmit_errors;
  send(here_->queue(0), Priority::kBulk, burst(5, 3000));
  EXPECT_TRUE(here_->queue(0).flush()) << "nothing waits for an interface that is down";
  const std::uint64_t errors = here_->drops().transmit_errors;
  EXPECT_EQ(errors, before + 5);
  ASSERT_TRUE(run("ip link set gw0 up"));
  wait_until_it_carries();
  send(here_->queue(0), Priority::kBulk, burst(5, 3000));
  EXPECT_EQ(receive_all(there_->queue(0)).size(), 5U);
  send(there_->queue(0), Priority::kBulk, burst(5, 3000));
  EXPECT_EQ(receive_all(here_->queue(0)).size(), 5U);
  ASSERT_TRUE(run("ip link del gw0"));
  send(here_->queue(0), Priority::kBulk, burst(5, 3000));
  EXPECT_TRUE(receive_all(here_->queue(0)).empty());
  EXPECT_FALSE(here_->link_up());
  EXPECT_GE(here_->drops().transmit_errors, errors + 5);
}

TEST_F(PacketPorts, EachLaneComesToTheQueueOfItsOwner) {
  there_.reset();
  there_ = open_end("gw1", 3);
  ASSERT_TRUE(there_);
  here_->queue(0).allow_super_frames(true);
  for (const wire::IpFamily family : {wire::IpFamily::kV4, wire::IpFamily::kV6}) {
    for (std::uint16_t lane = 0; lane < 8; ++lane) {
      const std::vector<Bytes> frames(5, datagram(3000, lane, 1, family));
      send(here_->queue(0), lane == 0 ? Priority::kUrgent : Priority::kBulk, frames);
      for (std::uint16_t queue = 0; queue < 3; ++queue) {
        const bool owner = queue == (lane == 0 ? 0 : (lane - 1) % 3);
        EXPECT_EQ(receive_all(there_->queue(queue)).size(), owner ? 5U : 0U) << lane << " " << queue;
      }
    }
  }
  send(here_->queue(0), Priority::kBulk, {datagram(3000, 1, 1)});
  const auto frames = there_->queue(0).receive();
  ASSERT_EQ(frames.size(), 1U);
  const ReceivedFrame kept = there_->queue(0).keep(0);
  EXPECT_TRUE(std::ranges::equal(kept.bytes, frames[0]));
}

TEST_F(PacketPorts, AFrameWakesWhoSleeps) {
  for (const std::uint16_t lane : {std::uint16_t{0}, std::uint16_t{1}}) {
    pollfd file{there_->receive_interrupt(0), POLLIN, 0};
    receive_all(there_->queue(0));
    send(here_->queue(0), lane == 0 ? Priority::kUrgent : Priority::kBulk, {datagram(200, lane, 1)});
    EXPECT_EQ(::poll(&file, 1, 10'000), 1);
  }
}

class Eal : public testing::Environment {
  void SetUp() override {
    EnvironmentOptions options;
    options.hugepages = false;
    options.memory_mb = 64;
    options.lcores = {{0, {}}};
    auto started = port::Environment::start(options);
    ASSERT_TRUE(started) << started.error().text;
    environment_.emplace(std::move(*started));
  }
  void TearDown() override { environment_.reset(); }
  std::optional<godwit::port::Environment> environment_;
};
const auto* const eal = testing::AddGlobalTestEnvironment(new Eal);  // buffers of frames that are kept

}  // namespace
}  // namespace godwit::port
