#include "perf/transport_demand_end.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <expected>
#include <random>
#include <vector>

#include "dataplane/daemon/flow_lanes.h"
#include "dataplane/memory/guest_ram.h"
#include "dataplane/port/neighbours.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/wire/datagram.h"
#include "dataplane/wire/packet.h"
#include "perf/end_parts.h"
#include "perf/processes.h"

namespace godwit::perf {
namespace {

constexpr std::uint32_t kRound = 1;
/// A thread that faults works in between; at random, or requests would keep step with the other end's turns.
constexpr std::int64_t kThinkMaxNs = 100'000;
/// Bulk reaches its rate, and the clocks their speed, in the first part of the round trips.
constexpr std::uint32_t kWarmUp = 1'000;

/// The loop's user and the lanes', for both roles: a data path of one flow.
class DemandEnd final : public port::PollLoopUser, public transport::LaneUser {
 public:
  DemandEnd(const DemandEndOptions& options, DemandShared& shared, port::Port& port, memory::GuestRam& ram)
      : options_(options),
        shared_(shared),
        port_(port),
        queue_(port.queue(0)),
        ram_(ram),
        mac_{port.mac()},
        neighbours_(end_neighbours(port, options.is_source)),
        peer_(end_address(!options.is_source)),
        lanes_(end_flow_config(options.is_source, options.mtu, transport::Cipher::kNone), options.is_source) {
    for (const std::uint16_t lane : {transport::kPriorityLane, kBulkLane}) lanes_.add(lane, *this, port::now());
    writes_.reserve(port::kBurst * 2);
  }

  void run(port::PollLoop& loop) {
    loop_ = &loop;
    loop.run();
  }
  [[nodiscard]] const std::string& error() const { return error_; }

  // ---- the loop ----
  bool turn(Instant now) override {
    if (shared_.stop.load(std::memory_order_relaxed)) {
      loop_->stop();
      return false;
    }
    bool found = receive(now);
    if (lanes_.deadline() <= now) {
      lanes_.tick(now);
      found = true;
    }
    if (!options_.is_source) ask();
    return transmit(now) || found;
  }
  [[nodiscard]] Instant deadline() const override {
    return std::min({lanes_.deadline(), neighbours_.deadline(), asked_at_ == kNever ? ask_at_ : kNever});
  }

  // ---- the lanes ----
  bool next_work(std::uint16_t lane, transport::Work& out) override {
    if (lane == kBulkLane) {
      out = {.page = bulk_next_, .round = kRound};
      if (!options_.is_source || !shared_.bulk.load(std::memory_order_relaxed)) return false;
      bulk_next_ = (bulk_next_ + 1) % options_.pages;
      return true;
    }
    if (demanded_.empty()) return false;
    out = {.page = demanded_.front(), .round = kRound};
    demanded_.pop_front();
    return true;
  }
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override {
    std::memcpy(out.data(), ram_.mapped(page).data() + offset, out.size());
  }
  void on_acknowledged(const transport::Work& /*work*/) override {}
  void on_page(std::uint16_t lane, std::uint32_t /*round*/, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override {
    if (page >= options_.pages) return fail("the source named a page that there is not");
    writes_.push_back({page, offset, bytes, true});
    bulk_pages_ += lane == kBulkLane ? 1 : 0;
    // A second copy, of a page whose acknowledgement was late, answers nothing.
    arrived_ = arrived_ || (lane == transport::kPriorityLane && page == wanted_ && asked_at_ != kNever);
  }
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) override {
    fail("a zero run came; none was sent");
  }
  void on_message(std::span<const std::byte> message) override {
    pages::PageNumber page = 0;
    if (!options_.is_source || message.size() != sizeof(page)) return fail("a message that is no request");
    std::memcpy(&page, message.data(), sizeof(page));
    demanded_.push_back(page);
  }

 private:
  static constexpr std::uint16_t kBulkLane = 1;

  /// The destination's next request, when its time has come.
  void ask() {
    const Instant now = port::now();
    if (asked_at_ != kNever || now < ask_at_ || !shared_.ready[1] || !port_.link_up()) return;
    wanted_ = random_() % options_.pages;
    std::array<std::byte, sizeof(wanted_)> message;
    std::memcpy(message.data(), &wanted_, sizeof(wanted_));
    asked_at_ = now;
    if (!lanes_.lane(0).send_message(message)) fail("no room for a request");
  }

  void answered(Instant now) {
    const bool loaded = shared_.bulk;
    if (done_ == kWarmUp) {
      bulk_from_ = now;
      bulk_pages_ = 0;
    }
    if (done_ >= kWarmUp) {
      shared_.round_trips_ns[loaded ? 1 : 0][done_ - kWarmUp] = static_cast<std::uint32_t>((now - asked_at_).ns);
    }
    if (++done_ == kWarmUp + options_.round_trips) {
      done_ = 0;
      if (loaded) {
        shared_.bulk_pages = bulk_pages_;
        shared_.bulk_ns = (now - bulk_from_).ns;
        shared_.stop = true;
      }
      shared_.bulk = true;
    }
    arrived_ = false;
    asked_at_ = kNever;
    ask_at_ = now + Duration{static_cast<std::int64_t>(random_() % kThinkMaxNs)};
  }

  bool receive(Instant now) {
    const auto frames = queue_.receive();
    for (std::size_t i = 0; i < frames.size(); ++i) {
      if (wire::classify_frame(frames[i]) == wire::FrameKind::kUdp) {
        on_datagram(now, frames[i], queue_.elsewhere(i));
      } else {
        neighbours_.on_frame(now, frames[i]);
      }
    }
    if (!writes_.empty()) {
      if (const auto written = ram_.write(writes_); !written) fail(written.error().text);
      writes_.clear();
    }
    if (arrived_) answered(port::now());
    return !frames.empty();
  }

  void on_datagram(Instant now, std::span<std::byte> frame, const std::byte* from) {
    const auto datagram = wire::parse_datagram(frame, wire::ChecksumCheck::kTrust);
    if (!datagram || datagram->source.address != peer_) return fail("a datagram that is not ours");
    const auto packet = wire::parse_packet(datagram->payload);
    if (!packet) return fail("a packet of no flow");
    const std::byte* const packet_from = from != nullptr ? from + (datagram->payload.data() - frame.data()) : nullptr;
    if (lanes_.on_packet(now, packet->header.lane, datagram->payload, packet_from, {}) ==
        transport::Received::kAccepted) {
      neighbours_.confirm(now, peer_);
    }
  }

  /// As DataPath::transmit() does.
  bool transmit(Instant now) {
    const bool open = queue_.flush();
    std::size_t sent = 0;
    for (std::span<std::byte> frame = queue_.next_frame(port::Priority::kUrgent); !frame.empty();
         frame = queue_.next_frame(port::Priority::kUrgent), ++sent) {
      const std::size_t bytes = neighbours_.poll_transmit(now, frame);
      if (bytes == 0) break;
      queue_.commit(port::Priority::kUrgent, bytes);
    }
    if (const auto to = neighbours_.resolve(now, peer_)) {
      sent += lanes_.transmit(now, 0, queue_, mac_, to, port::kBurst);
      if (sent > 0) queue_.flush();
      sent += open ? lanes_.transmit(now, 1, queue_, mac_, to, port::kBurst) : 0;
    }
    queue_.flush();
    return !open || sent > 0;
  }

  void fail(const std::string& text) {
    if (error_.empty()) error_ = text;
    shared_.stop = true;
  }

  const DemandEndOptions& options_;
  DemandShared& shared_;
  port::Port& port_;
  port::Queue& queue_;
  memory::GuestRam& ram_;
  port::PollLoop* loop_ = nullptr;
  const wire::MacAddress mac_;
  port::Neighbours neighbours_;
  const wire::IpAddress peer_;
  daemon::FlowLanes lanes_;
  std::string error_;
  // source
  std::deque<pages::PageNumber> demanded_;
  pages::PageNumber bulk_next_ = 0;
  // destination
  std::mt19937_64 random_{1};
  pages::PageNumber wanted_ = 0;
  bool arrived_ = false;       // in this burst
  Instant asked_at_ = kNever;  // kNever: waits for nothing
  Instant ask_at_{};
  std::uint32_t done_ = 0;  // round trips of this kind, the first ones to warm up
  Instant bulk_from_{};
  std::uint64_t bulk_pages_ = 0;
  std::vector<memory::PageWrite> writes_;
};

/// Comes back only if it fails.
std::unexpected<std::string> run_checked(const DemandEndOptions& options, DemandShared& shared) {
  if (options.is_source) wait_for_memif_server(shared.ready[0], shared.stop);
  auto ram = open_end_ram(options.ram, options.pages);
  if (!ram) return std::unexpected(ram.error());
  auto parts = open_end_port(end_memif(options.socket, options.is_source, options.mtu), options.cpus);
  if (!parts) return std::unexpected(parts.error());
  DemandEnd end(options, shared, *parts->port, *ram);
  // As a data plane with a post-copy under way: it polls.
  port::PollLoop loop(end, parts->doorbell, {.mode = port::IdleMode::kPoll});
  shared.ready[options.is_source ? 1 : 0] = true;
  return run_on_end_lcore(
      *parts, [&] { end.run(loop); }, end.error());
}

}  // namespace

int run_demand_end(const DemandEndOptions& options, DemandShared& shared) {
  const auto done = run_checked(options, shared);
  tell_error(done.error(), shared.errors[options.is_source ? 1 : 0]);
  shared.stop = true;
  return 1;
}

}  // namespace godwit::perf
