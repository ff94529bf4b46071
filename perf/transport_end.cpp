#include "perf/transport_end.h"

#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <expected>
#include <memory>
#include <optional>
#include <vector>

#include "base/check.h"
#include "dataplane/memory/guest_ram.h"
#include "dataplane/port/ingress_filter.h"
#include "dataplane/port/neighbours.h"
#include "dataplane/port/poll_loop.h"
#include "dataplane/wire/datagram.h"
#include "dataplane/wire/frames.h"
#include "dataplane/wire/packet.h"
#include "perf/end_parts.h"
#include "perf/network.h"
#include "perf/processes.h"

namespace godwit::perf {
namespace {

constexpr std::uint16_t kLane = 1;

constexpr bool gives(Role role) { return role == Role::kSender; }

std::int64_t thread_cpu_ns() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

/// The loop's user and the lane's, for both roles: a data path of one flow.
class End final : public port::PollLoopUser, public transport::LaneUser {
 public:
  End(const EndOptions& options, Shared& shared, port::Port& port, memory::GuestRam& ram)
      : options_(options),
        shared_(shared),
        report_(shared.ends[static_cast<std::size_t>(options.role)]),
        port_(port),
        queue_(port.queue(0)),
        ram_(ram),
        mac_{port.mac()},
        neighbours_(end_neighbours(port, gives(options.role))),
        peer_(end_address(!gives(options.role))) {
    transport::LaneConfig config;
    config.local_flow_id = kEndFlowId;
    config.peer_flow_id = kEndFlowId;
    config.lane = kLane;
    config.initiator = options.role == Role::kSender;
    config.cipher = options.cipher;
    config.datagram_bytes_max = wire::payload_bytes_max(peer_.family, options.mtu);
    datagram_bytes_max_ = config.datagram_bytes_max;
    lane_.emplace(config, *this, port::now());
    if (options.role == Role::kSender) {
      // The memory outlives the port, which is made after it.
      port::MemoryPieces memory;
      for (const memory::Region& region : ram_.regions()) {
        memory.emplace_back(region.mapping, region.bytes);
      }
      if (auto lent = port.lend(nullptr, std::move(memory)); lent && (*lent)->make_usable()) {
        loan_ = std::move(*lent);
      }
    }
    writes_.reserve(port::kBurst * 2);
  }

  void run(port::PollLoop& loop) {
    loop_ = &loop;
    loop.run();
    report_.queue = queue_.counters();
  }
  [[nodiscard]] const std::string& error() const { return error_; }

  // ---- the loop ----
  bool turn(Instant now) override {
    const std::uint64_t begin = __rdtsc();
    const bool found = work(now);
    busy_cycles_ += found ? __rdtsc() - begin : 0;
    return found;
  }
  [[nodiscard]] Instant deadline() const override { return std::min(lane_->deadline(), neighbours_.deadline()); }

  // ---- the lane ----
  bool next_work(std::uint16_t /*lane*/, transport::Work& out) override {
    if (pages_given_ == pages_of_pass()) {
      return false;
    }
    out = {.page = pages_given_++, .round = pass_};
    return true;
  }
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override {
    std::memcpy(out.data(), ram_.mapped(page).data() + offset, out.size());
  }
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool /*hash_in_tag*/) override {
    return ram_.mapped(page);
  }
  void on_acknowledged(const transport::Work& /*work*/) override {
    if (++pages_acknowledged_ == pages_of_pass()) {
      begin_pass_ = true;
    }
  }
  void on_page(std::uint16_t /*lane*/, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override {
    if (page >= options_.pages || round > options_.passes) {
      return fail("the sender named a page that there is not");
    }
    if (!marked_ || round > pass_) {
      pass_ = round;
      marked_ = true;
      mark();
    }
    writes_.push_back({page, offset, bytes, true});
  }
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) override {
    fail("a zero run came; none was sent");
  }
  void on_message(std::span<const std::byte>) override { fail("a message came; none was sent"); }

 private:
  [[nodiscard]] std::uint64_t pages_of_pass() const {
    return !started_ ? 0 : pass_ < options_.passes ? options_.pages : 1;
  }

  bool work(Instant now) {
    if (shared_.stop.load(std::memory_order_relaxed)) {
      loop_->stop();
      return false;
    }
    bool found = receive(now);
    if (lane_->deadline() <= now) {
      lane_->tick(now);
      found = true;
    }
    if (options_.role == Role::kSender) {
      advance();
      if (lane_->peer_dead(now)) {
        fail("the receiver is silent");
      }
    }
    return transmit(now) || found;
  }

  void advance() {
    if (!started_) {
      if (!port_.link_up() || !shared_.ends[static_cast<std::size_t>(Role::kReceiver)].ready) {
        return;
      }
      started_ = true;
      mark();
    } else if (begin_pass_) {
      begin_pass_ = false;
      if (++pass_ > options_.passes) {
        shared_.stop = true;
        return;
      }
      pages_given_ = 0;
      pages_acknowledged_ = 0;
      mark();
    }
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
      if (const auto written = ram_.write(writes_); !written) {
        fail(written.error().text);
      }
      writes_.clear();
    }
    return !frames.empty();
  }

  void on_datagram(Instant now, std::span<std::byte> frame, const std::byte* from) {
    const auto datagram = wire::parse_datagram(frame, wire::ChecksumCheck::kTrust);
    if (!datagram || datagram->destination_mac != mac_ || !neighbours_.is_local(datagram->destination.address) ||
        datagram->destination.port != kEndUdpPort || datagram->source.address != peer_) {
      return fail("a datagram that is not ours");
    }
    const auto packet = wire::parse_packet(datagram->payload);
    if (!packet || packet->header.flow_id != kEndFlowId) {
      return fail("a packet of no flow");
    }
    const std::byte* const packet_from = from != nullptr ? from + (datagram->payload.data() - frame.data()) : nullptr;
    if (lane_->on_packet(now, datagram->payload, packet_from) == transport::Received::kAccepted) {
      neighbours_.confirm(now, peer_);
    }
  }

  bool transmit(Instant now) {
    if (!queue_.flush()) {
      return true;
    }
    bool sent = false;
    for (std::span<std::byte> frame = queue_.next_frame(port::Priority::kUrgent); !frame.empty();
         frame = queue_.next_frame(port::Priority::kUrgent)) {
      const std::size_t bytes = neighbours_.poll_transmit(now, frame);
      if (bytes == 0) {
        break;
      }
      queue_.commit(port::Priority::kUrgent, bytes);
      sent = true;
    }
    if (const auto to = neighbours_.resolve(now, peer_)) {
      sent |= transmit_lane(now, *to);
    }
    queue_.flush();
    return sent;
  }

  bool transmit_lane(Instant now, const wire::MacAddress& to) {
    const wire::DatagramPath path{.source_mac = mac_,
                                  .destination_mac = to,
                                  .source = {end_address(gives(options_.role)), kEndUdpPort},
                                  .destination = {peer_, kEndUdpPort}};
    const std::size_t header = wire::datagram_header_bytes(peer_.family);
    queue_.allow_super_frames(port_.takes_super_frames());
    bool sent = false;
    for (std::span<std::byte> frame = queue_.next_frame(port::Priority::kBulk); !frame.empty();
         frame = queue_.next_frame(port::Priority::kBulk)) {
      const auto use =
          options_.cipher == transport::Cipher::kNone ? port::RoomFor::kClearText : port::RoomFor::kCipherText;
      const std::span<std::byte> room = queue_.room(port::Priority::kBulk, header + wire::kPagesAt, use);
      transport::PagesInPlace in_place;
      if (!room.empty()) {
        in_place.room = room.subspan(header, datagram_bytes_max_);
        const std::byte* const next = queue_.next_room(port::Priority::kBulk);
        in_place.next_room = next != nullptr ? next + header : nullptr;
      }
      const bool refers = loan_ != nullptr && queue_.can_refer();
      const std::size_t bytes = lane_->poll_transmit(now, frame.subspan(header, datagram_bytes_max_),
                                                     refers || !room.empty() ? &in_place : nullptr);
      if (bytes == 0) {
        break;
      }
      wire::write_datagram_headers(path, wire::UdpChecksum::kNone, frame.first(header + bytes), in_place.bytes);
      if (in_place.bytes == 0) {
        queue_.commit(port::Priority::kBulk, header + bytes);
      } else if (in_place.count == 0) {
        queue_.commit_around(port::Priority::kBulk, header + bytes, wire::kTagBytes, in_place.bytes);
      } else {
        queue_.commit_referring(port::Priority::kBulk, header + bytes, wire::kTagBytes, in_place.view(), *loan_);
      }
      sent = true;
    }
    return sent;
  }

  void mark() {
    report_.marks[pass_] = {
        .at_ns = port::now().ns, .cpu_ns = thread_cpu_ns(), .busy_cycles = busy_cycles_, .lane = lane_->counters()};
  }

  void fail(const std::string& text) {
    if (error_.empty()) {
      error_ = text;
    }
    shared_.stop = true;
  }

  const EndOptions& options_;
  Shared& shared_;
  EndReport& report_;
  port::Port& port_;
  port::Queue& queue_;
  memory::GuestRam& ram_;
  std::shared_ptr<const port::Loan> loan_;
  port::PollLoop* loop_ = nullptr;
  const wire::MacAddress mac_;
  port::Neighbours neighbours_;
  const wire::IpAddress peer_;
  std::uint32_t datagram_bytes_max_ = 0;
  std::optional<transport::Lane> lane_;
  std::string error_;
  std::uint64_t busy_cycles_ = 0;
  std::uint32_t pass_ = 0;
  // sender
  bool started_ = false;
  bool begin_pass_ = false;
  std::uint64_t pages_given_ = 0;
  std::uint64_t pages_acknowledged_ = 0;
  // receiver
  bool marked_ = false;
  std::vector<memory::PageWrite> writes_;
};

/// Comes back only if it fails.
std::unexpected<std::string> run_checked(const EndOptions& options, Shared& shared) {
  if (!join_network_namespace(options.network_namespace)) {
    return std::unexpected("joining a network namespace: " + std::string(std::strerror(errno)));
  }
  const port::PortOptions port_options = options.interface.empty()
                                             ? end_memif(options.socket, gives(options.role), options.mtu)
                                             : port::PortOptions{.driver = port::Driver::kAfPacket,
                                                                 .interface = options.interface,
                                                                 .udp_port = kEndUdpPort,
                                                                 .mtu = options.mtu};
  if (gives(options.role)) {
    wait_for_memif_server(shared.ends[static_cast<std::size_t>(Role::kReceiver)].ready, shared.stop);
  }
  auto ram = open_end_ram(options.ram, options.pages);
  if (!ram) {
    return std::unexpected(ram.error());
  }
  auto parts = open_end_port(port_options, options.cpus);
  if (!parts) {
    return std::unexpected(parts.error());
  }
  std::optional<port::IngressFilter> filter;  // as the daemon has it; without it, if the kernel is too old
  if (!options.interface.empty()) {
    const wire::IpAddress address = end_address(gives(options.role));
    if (auto attached = port::IngressFilter::attach(options.interface, {&address, 1}, kEndUdpPort)) {
      filter = std::move(*attached);
    }
  }
  End end(options, shared, *parts->port, *ram);
  port::PollLoop loop(end, parts->doorbell, {});
  shared.ends[static_cast<std::size_t>(options.role)].ready = true;
  return run_on_end_lcore(
      *parts, [&] { end.run(loop); }, end.error());
}

}  // namespace

int run_end(const EndOptions& options, Shared& shared) {
  const auto done = run_checked(options, shared);
  tell_error(done.error(), shared.ends[static_cast<std::size_t>(options.role)].error);
  shared.stop = true;
  return 1;
}

}  // namespace godwit::perf
