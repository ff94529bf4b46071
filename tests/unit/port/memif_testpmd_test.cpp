// memif as DPDK speaks it: the peer is dpdk-testpmd with net_memif, in either role, and sends back each frame as it is.

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "dataplane/port/memif_port.h"
#include "tests/unit/base/temporary_directory.h"
#include "tests/unit/memory/target_process.h"
#include "tests/unit/port/memif_frames.h"

namespace godwit::port::memif {
namespace {

using bridge::test::TargetProcess;

constexpr const char* kTestpmd = "/usr/bin/dpdk-testpmd";
constexpr std::uint32_t kBufferBytes = 9088;      // of its rings' slots: a frame is in one
constexpr std::uint32_t kMbufBytes = 9216 + 128;  // and in one of its buffers, behind the headroom

enum class Peer : std::uint8_t { kServer, kClient };

/// The peer's role, and how many queue pairs it has. We have two, the first for urgent frames.
class MemifWithTestpmd : public testing::TestWithParam<std::tuple<Peer, int>> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kTestpmd)) {
      GTEST_SKIP() << "no " << kTestpmd << ": package dpdk";
    }
  }

  static bool peer_serves() { return std::get<Peer>(GetParam()) == Peer::kServer; }
  static int queues() { return std::get<int>(GetParam()); }

  void start_peer(std::uint32_t buffer_bytes = kBufferBytes) {
    if (peer_serves()) {
      std::filesystem::remove(socket());  // of one that was killed: it would not start
    }
    const std::string count = std::to_string(queues());
    const std::string device = std::string("net_memif0,socket-abstract=no,rsize=9,role=") +
                               (peer_serves() ? "server" : "client") + ",socket=" + socket() +
                               ",bsize=" + std::to_string(buffer_bytes);
    const std::vector<std::string> command{kTestpmd,
                                           "--lcores",
                                           "0@0,1@0",
                                           "--no-huge",
                                           "-m",
                                           "192",
                                           "--no-pci",
                                           "--no-shconf",
                                           "--no-telemetry",
                                           "--vdev",
                                           device,
                                           "--",
                                           "--no-mlockall",
                                           "--mbuf-size=" + std::to_string(kMbufBytes),
                                           "--total-num-mbufs=4095",
                                           "--rxq=" + count,
                                           "--txq=" + count,
                                           "--forward-mode=io",
                                           "--port-topology=loop",
                                           "--no-flush-rx",
                                           "--auto-start",
                                           "--stats-period=60"};
    peer_.emplace(TargetProcess::execute(command, 0));
  }
  void kill_peer() { peer_.reset(); }

  void open_port() {
    PortOptions options;
    options.driver = Driver::kMemif;
    options.socket = socket();
    options.memif_server = !peer_serves();
    options.mtu = kMtu;
    auto port = open(options);
    ASSERT_TRUE(port.has_value()) << port.error().text;
    port_ = std::move(*port);
  }
  void close_port() { port_.reset(); }

  [[nodiscard]] Queue& queue() { return port_->queue(0); }
  [[nodiscard]] bool up() {
    return wait_until([&] { return port_->link_up(); });
  }
  [[nodiscard]] bool down() {
    return wait_until([&] { return !port_->link_up(); });
  }

  /// Sends them, no more than half of a ring at once, and waits for as many.
  std::vector<Bytes> echo(Priority priority, const std::vector<Bytes>& frames) {
    std::vector<Bytes> got;
    std::size_t sent = 0;
    queue().receive();
    wait_until([&] {
      while (sent < frames.size() && sent - got.size() < 256 && send(queue(), priority, frames[sent])) {
        ++sent;
      }
      queue().flush();
      for (Bytes& frame : receive_all(queue())) {
        got.push_back(std::move(frame));
      }
      return got.size() >= frames.size() || !port_->link_up();
    });
    return got;
  }

 private:
  [[nodiscard]] std::string socket() const { return directory_ / "socket"; }

  const test::TemporaryDirectory directory_;
  std::unique_ptr<Port> port_;
  std::optional<TargetProcess> peer_;
};

std::vector<Bytes> frames_of_any_size(std::size_t count) {
  std::vector<Bytes> frames;
  for (unsigned i = 0; i < count; ++i) {
    frames.push_back(frame_of(60 + i * 577 % (kFrameBytesMax - 59), i));
  }
  frames.push_back(frame_of(kFrameBytesMax, 1));
  return frames;
}

TEST_P(MemifWithTestpmd, FramesOfAnySizeComeBackUnchangedAndInOrder) {
  start_peer();
  open_port();
  ASSERT_TRUE(up());
  for (const Priority priority : {Priority::kBulk, Priority::kUrgent}) {
    const auto frames = frames_of_any_size(2000);  // the rings go round
    EXPECT_TRUE(echo(priority, frames) == frames);
  }
  EXPECT_EQ(queue().counters().drops_segmented, 0U);
  EXPECT_EQ(queue().counters().drops_no_buffer, 0U);
}

TEST_P(MemifWithTestpmd, APeerThatDiesIsNoticedAndTakenAgain) {
  open_port();
  const auto frames = frames_of_any_size(100);
  for (int life = 0; life < 3; ++life) {
    start_peer();
    ASSERT_TRUE(up()) << "life " << life;
    EXPECT_TRUE(echo(Priority::kBulk, frames) == frames) << "life " << life;
    kill_peer();
    ASSERT_TRUE(down()) << "life " << life;
    // The queue is told right after the port.
    EXPECT_TRUE(wait_until([&] { return queue().receive().empty() && queue().next_frame(Priority::kBulk).empty(); }));
  }
}

/// A client of DPDK's connects once.
class MemifWithTestpmdServer : public MemifWithTestpmd {};
TEST_P(MemifWithTestpmdServer, ThePeerTakesUsAgain) {
  start_peer();
  const auto frames = frames_of_any_size(100);
  for (int life = 0; life < 3; ++life) {
    open_port();
    ASSERT_TRUE(up()) << "life " << life;
    EXPECT_TRUE(echo(Priority::kBulk, frames) == frames) << "life " << life;
    close_port();
  }
}

/// Its slots are its own to size. DPDK spreads a frame over as many slots as it takes. We do not put such together, but
/// lose nothing else over it.
class MemifWithTestpmdClient : public MemifWithTestpmd {};
TEST_P(MemifWithTestpmdClient, WhatDoesNotFitASlotOfThePeerIsDroppedAndCounted) {
  start_peer(2048);
  open_port();
  ASSERT_TRUE(up());
  const std::vector<Bytes> fit{frame_of(1500, 1), frame_of(60, 2)};
  queue().receive();
  ASSERT_TRUE(wait_until([&] { return send(queue(), Priority::kBulk, frame_of(3000, 3)); }));  // once it gives slots
  EXPECT_TRUE(echo(Priority::kBulk, fit) == fit);
  EXPECT_EQ(queue().counters().drops_no_buffer, 1U);
}

std::string name_of(const testing::TestParamInfo<std::tuple<Peer, int>>& info) {
  return (std::get<Peer>(info.param) == Peer::kServer ? "Server" : "Client") +
         std::to_string(std::get<int>(info.param));
}
INSTANTIATE_TEST_SUITE_P(, MemifWithTestpmd,
                         testing::Combine(testing::Values(Peer::kServer, Peer::kClient), testing::Values(1, 2)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(, MemifWithTestpmdServer,
                         testing::Combine(testing::Values(Peer::kServer), testing::Values(1, 2)), name_of);
INSTANTIATE_TEST_SUITE_P(, MemifWithTestpmdClient,
                         testing::Combine(testing::Values(Peer::kClient), testing::Values(1, 2)), name_of);

}  // namespace
}  // namespace godwit::port::memif
