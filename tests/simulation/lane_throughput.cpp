// Goal: a bulk lane fills the path it is given: idle, shaped, lossy, and where pollers are scheduled away for
// milliseconds. Method: an endless supply of pages over one lane in virtual time; goodput against what the path or the
// poller could carry.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/transport/lane.h"
#include "tests/simulation/network.h"

namespace godwit::simulation {
namespace {

struct Path {
  const char* description;
  std::uint32_t datagram_bytes;
  std::uint64_t rate_bps;  // 0: as fast as the pollers
  std::size_t queue_bytes;
  std::uint32_t loss_ppm;
  Duration run_max, pause_max;  // scheduling: a node runs up to run_max, then is away for up to pause_max
  std::uint64_t goodput_min_bps;
  std::uint64_t drops_max_ppm;  // of the queue
};

constexpr Duration kPacketCost = microseconds(2);  // of a poller, for one packet of two pages
constexpr Duration kRunTime = milliseconds(1000);
constexpr std::size_t kBurst = 32;

class Endless final : public transport::LaneUser {
 public:
  explicit Endless(bool source) : source_(source) {}
  bool next_work(std::uint16_t, transport::Work& out) override {
    out = {.page = next_++ % 1024, .round = 1};
    return source_;
  }
  void read_page(pages::PageNumber, std::uint32_t, std::span<std::byte>) override {}
  void on_acknowledged(const transport::Work&) override { ++acknowledged; }
  void on_page(std::uint32_t, pages::PageNumber, std::uint32_t, std::span<const std::byte>) override {}
  void on_zero_run(std::uint32_t, pages::PageNumber, std::uint64_t) override {}
  void on_message(std::span<const std::byte>) override {}

  std::uint64_t acknowledged = 0;

 private:
  bool source_;
  std::uint64_t next_ = 0;
};

struct End {
  End(const Path& path, bool source, Instant now) : user(source) {
    transport::LaneConfig config;
    config.local_flow_id = source ? 1 : 2;
    config.peer_flow_id = source ? 2 : 1;
    config.lane = 1;
    config.initiator = source;
    config.datagram_bytes_max = path.datagram_bytes;
    lane = std::make_unique<transport::Lane>(config, user, now);
  }
  Endless user;
  std::unique_ptr<transport::Lane> lane;
  std::deque<std::vector<std::byte>> inbox;
  Instant free_at{};
  Instant runs_until{};
};

class Throughput {
 public:
  explicit Throughput(const Path& path) : path_(path), network_(1), random_(2) {
    LinkConfig link{.delay = microseconds(10),
                    .rate_bps = path.rate_bps,
                    .queue_bytes = path.queue_bytes,
                    .loss_ppm = path.loss_ppm};
    links_ = {network_.add_link(link), network_.add_link(link)};
    ends_ = {std::make_unique<End>(path, true, now_), std::make_unique<End>(path, false, now_)};
  }

  std::uint64_t goodput_bps() {
    const Instant end = now_ + kRunTime;
    while (now_ < end) {
      while (auto delivered = network_.receive(now_)) {
        ends_[delivered->link == links_[0] ? 1 : 0]->inbox.push_back(std::move(delivered->bytes));
      }
      Instant next = network_.next_delivery();
      for (std::size_t i = 0; i < ends_.size(); ++i) {
        next = std::min(next, turn(i));
      }
      now_ = std::max(next, now_ + Duration{100});
    }
    const std::uint64_t bits = ends_[0]->user.acknowledged * pages::kPageSize * 8;
    return bits * 1000 / static_cast<std::uint64_t>(kRunTime.us() / 1000);
  }
  [[nodiscard]] std::uint64_t drops_ppm() const {
    const LinkCounters& counters = network_.counters(links_[0]);
    return counters.queue_drops * 1'000'000 / counters.sent;
  }
  [[nodiscard]] const transport::Lane& source() const { return *ends_[0]->lane; }

 private:
  Duration draw(Duration limit) {
    return {static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(limit.ns) + 1))};
  }

  /// One turn of an end's poll loop; when it wants the next.
  Instant turn(std::size_t index) {
    End& end = *ends_[index];
    if (now_ < end.free_at) {
      return end.free_at;
    }
    if (path_.pause_max.ns > 0 && now_ >= end.runs_until) {
      end.free_at = now_ + draw(path_.pause_max);
      end.runs_until = end.free_at + draw(path_.run_max);
      return end.free_at;
    }
    std::size_t packets = 0;
    for (; packets < kBurst && !end.inbox.empty(); ++packets) {
      end.lane->on_packet(now_, end.inbox.front());
      end.inbox.pop_front();
    }
    if (end.lane->deadline() <= now_) {
      end.lane->tick(now_);
    }
    for (std::size_t sent = 0; sent < kBurst; ++sent, ++packets) {
      const std::size_t length = end.lane->poll_transmit(now_, out_);
      if (length == 0) {
        break;
      }
      network_.send(now_, links_[index], std::span<const std::byte>(out_).first(length));
    }
    const auto cost = static_cast<std::int64_t>(packets) * kPacketCost.ns * path_.datagram_bytes / 9000;
    end.free_at = now_ + Duration{cost};
    return packets > 0 ? end.free_at : std::max(end.lane->deadline(), end.free_at);
  }

  Path path_;
  Network network_;
  Random random_;
  Instant now_{1'000'000};
  std::array<std::size_t, 2> links_{};
  std::array<std::unique_ptr<End>, 2> ends_;
  std::vector<std::byte> out_ = std::vector<std::byte>(9216);
};

TEST(LaneThroughput, FillsThePath) {
  constexpr std::uint64_t kGigabit = 1'000'000'000;
  constexpr std::size_t kTbfQueue = kGigabit / 8 / 20;  // "latency 50ms"
  const Path paths[] = {
      {"idle, jumbo frames", 8972, 0, 0, 0, {}, {}, 25 * kGigabit, 0},
      {"idle, 1500", 1472, 0, 0, 0, {}, {}, 20 * kGigabit, 0},
      {"shaped to 1 Gbit/s", 8972, kGigabit, kTbfQueue, 0, {}, {}, 940'000'000, 1000},
      {"shaped to 1 Gbit/s, 1500", 1472, kGigabit, kTbfQueue, 0, {}, {}, 880'000'000, 1000},
      {"shaped to 1 Gbit/s, short queue", 8972, kGigabit, 200'000, 0, {}, {}, 850'000'000, 80'000},
      {"shaped and scheduled away", 8972, kGigabit, kTbfQueue, 0, milliseconds(4), milliseconds(4), 850'000'000, 1000},
      {"scheduled away up to 1 ms", 8972, 0, 0, 0, milliseconds(4), milliseconds(1), 8 * kGigabit, 0},
      {"scheduled away up to 4 ms", 8972, 0, 0, 0, milliseconds(4), milliseconds(4), 4 * kGigabit, 0},
      {"loss 0.1 %", 8972, 0, 0, 1000, {}, {}, 22 * kGigabit, 0},
      {"loss 1 %", 8972, 0, 0, 10'000, {}, {}, 15 * kGigabit, 0},
      {"loss 5 %", 8972, 0, 0, 50'000, {}, {}, 6 * kGigabit, 0},
      {"loss 1 %, scheduled away", 8972, 0, 0, 10'000, milliseconds(4), milliseconds(2), 3 * kGigabit, 0},
  };
  for (const Path& path : paths) {
    SCOPED_TRACE(path.description);
    Throughput run(path);
    const std::uint64_t goodput = run.goodput_bps();
    EXPECT_GE(goodput, path.goodput_min_bps);
    EXPECT_LE(run.drops_ppm(), path.drops_max_ppm);
    const transport::LaneCounters& counters = run.source().counters();
    std::cout << path.description << ": " << goodput / 1'000'000 << " Mbit/s, window "
              << run.source().congestion_window_packets() << ", rtt " << run.source().smoothed_rtt().us()
              << " us, lost " << counters.packets_lost << " (spurious " << counters.spurious_losses << ") of "
              << counters.packets_sent << ", probes " << counters.probe_timeouts << ", queue drops " << run.drops_ppm()
              << " ppm\n";
  }
}

}  // namespace
}  // namespace godwit::simulation
