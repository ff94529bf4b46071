// Goal: bulk cannot delay the priority lane, its messages and its pages, by more than what the driver's ring holds.
// Method: a host sends pages without end and, at intervals, a message or a demand page, through the port's send queue
// and a ring of few frames onto a slow link; the longest way of it under bulk against that without.

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <vector>

#include "dataplane/port/send_queue.h"
#include "dataplane/transport/lane.h"
#include "simulation/endless_user.h"
#include "simulation/network.h"

namespace godwit::simulation {
namespace {

constexpr std::uint64_t kRateBps = 10'000'000'000;
constexpr std::size_t kRingFrames = 16;
constexpr std::size_t kBurst = 32;
constexpr std::uint32_t kDatagramBytes = 8972;
constexpr Duration kInterval = microseconds(200);
constexpr Duration kTurn = microseconds(1);
constexpr Duration kFrameTime{static_cast<std::int64_t>(kDatagramBytes * 8'000'000'000ULL / kRateBps)};

struct Host {
  Host(bool source, bool bulk, Instant now) : user(bulk) {
    for (std::uint16_t i = 0; i < 2; ++i) {
      transport::LaneConfig config;
      config.local_flow_id = source ? 1 : 2;
      config.peer_flow_id = source ? 2 : 1;
      config.lane = i;
      config.initiator = source;
      config.datagram_bytes_max = kDatagramBytes;
      lanes.push_back(std::make_unique<transport::Lane>(config, user, now));
    }
  }
  EndlessUser user;
  std::vector<std::unique_ptr<transport::Lane>> lanes;
};

enum class Urgent : std::uint8_t { kMessage, kPage };

struct Ways {
  Duration longest{};
  std::uint64_t arrived = 0, pages = 0;
};

class Path {
 public:
  Path(bool bulk, Urgent urgent) : urgent_(urgent), source_(true, bulk, now_), destination_(false, false, now_) {
    links_ = {network_.add_link({.rate_bps = kRateBps, .queue_bytes = 1U << 30}),
              network_.add_link({.rate_bps = kRateBps, .queue_bytes = 1U << 30})};
  }

  Ways measure() {
    Ways ways;
    Instant sent_at = kNever;
    Instant next = now_ + milliseconds(5);
    for (const Instant end = now_ + milliseconds(100); now_ < end; now_ = now_ + kTurn) {
      receive();
      if (now_ >= next) {
        EXPECT_EQ(sent_at, kNever) << "the last one is still under way";
        send_urgent();
        sent_at = now_;
        next = now_ + kInterval;
      }
      transmit_source();
      for (const auto& lane : destination_.lanes) {
        while (const std::size_t length = lane->poll_transmit(now_, buffer_)) {
          network_.send(now_, links_[1], std::span(buffer_).first(length));
        }
      }
      if (destination_.user.messages + destination_.user.demand_pages > ways.arrived) {
        ++ways.arrived;
        ways.longest = std::max(ways.longest, now_ - sent_at);
        sent_at = kNever;
      }
    }
    ways.pages = source_.user.acknowledged;
    return ways;
  }

 private:
  using Frame = std::vector<std::byte>;

  void send_urgent() {
    if (urgent_ == Urgent::kPage) {
      ++source_.user.demanded;
    } else {
      EXPECT_TRUE(source_.lanes[0]->send_message(std::vector<std::byte>(100)));
    }
  }
  void receive() {
    while (auto delivered = network_.receive(now_)) {
      Host& host = delivered->link == links_[0] ? destination_ : source_;
      host.lanes[static_cast<std::size_t>(delivered->bytes[2]) % 2]->on_packet(now_, delivered->bytes);
      network_.recycle(std::move(delivered->bytes));
    }
    for (Host* const host : {&source_, &destination_}) {
      for (const auto& lane : host->lanes) {
        if (lane->deadline() <= now_) {
          lane->tick(now_);
        }
      }
    }
  }

  /// As the data path does: bulk only while nothing waits, urgent ones always.
  void transmit_source() {
    flush();
    const bool open = queue_.empty();
    fill(0, port::Priority::kUrgent);
    if (open) {
      fill(1, port::Priority::kBulk);
    }
    flush();
  }
  void fill(std::size_t lane, port::Priority priority) {
    while (queue_.has_room(priority)) {
      const std::size_t length = source_.lanes[lane]->poll_transmit(now_, buffer_);
      if (length == 0) {
        return;
      }
      queue_.push(priority, {buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(length)});
    }
  }
  void flush() {
    while (!leaves_at_.empty() && leaves_at_.front() <= now_) {
      leaves_at_.pop_front();
    }
    while (!queue_.empty() && leaves_at_.size() < kRingFrames) {
      const Frame frame = queue_.frames().front();
      queue_.pop(1);
      const Instant begins = leaves_at_.empty() ? now_ : leaves_at_.back();
      leaves_at_.push_back(begins + Duration{static_cast<std::int64_t>(frame.size() * 8'000'000'000 / kRateBps)});
      network_.send(now_, links_[0], frame);
    }
  }

  const Urgent urgent_;
  Instant now_{1'000'000};
  Network network_{1};
  std::array<std::size_t, 2> links_{};
  Host source_, destination_;
  port::SendQueue<Frame, kBurst> queue_;
  std::deque<Instant> leaves_at_;  // the driver's ring
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kDatagramBytes);
};

TEST(Priority, BulkDelaysAnUrgentFrameByTheRingAtMost) {
  for (const Urgent urgent : {Urgent::kMessage, Urgent::kPage}) {
    SCOPED_TRACE(urgent == Urgent::kPage ? "page" : "message");
    const Ways idle = Path(false, urgent).measure();
    const Ways loaded = Path(true, urgent).measure();
    ASSERT_GT(idle.arrived, 400U);
    EXPECT_EQ(loaded.arrived, idle.arrived);
    EXPECT_GT(loaded.pages, 20'000U) << "the link was not full";
    EXPECT_LE(loaded.longest, idle.longest + kFrameTime * (kRingFrames + 1));
  }
}

}  // namespace
}  // namespace godwit::simulation
