#pragma once
// A simulated network: links in one direction each, a virtual clock, and faults drawn from a seed. The same seed and
// the same calls give the same deliveries. Owner: one simulation; single thread; it may allocate. No failure.
//
// Use: send() what a node transmits; the next event is min(next_delivery(), deadlines of the nodes); at that time,
// receive() until empty, and give each datagram's bytes back with recycle().

#include <cstddef>
#include <cstdint>
#include <optional>
#include <queue>
#include <span>
#include <vector>

#include "base/time.h"

namespace godwit::simulation {

/// xoshiro256**: the same everywhere, unlike the standard library's distributions.
class Random {
 public:
  explicit Random(std::uint64_t seed);
  std::uint64_t next();
  /// Uniform in [0, limit); limit > 0.
  std::uint64_t below(std::uint64_t limit) { return next() % limit; }
  /// Uniform in [low, high].
  std::uint64_t between(std::uint64_t low, std::uint64_t high) { return low + below(high - low + 1); }
  bool chance_ppm(std::uint64_t ppm) { return ppm != 0 && below(1'000'000) < ppm; }
  Duration up_to(Duration limit) {
    return {static_cast<std::int64_t>(below(static_cast<std::uint64_t>(limit.ns) + 1))};
  }

 private:
  std::uint64_t state_[4];
};

/// Datagrams up to this size are acknowledgements and probes; larger ones carry something.
inline constexpr std::size_t kSmallBytes = 256;

struct LinkConfig {
  Duration delay = microseconds(20);   // propagation
  Duration jitter{0};                  // uniform, added to delay; packets stay in order
  std::uint64_t rate_bps = 0;          // 0: infinite
  std::size_t queue_bytes = 1U << 20;  // in front of the rate: what does not fit is dropped (tail drop)
  std::size_t datagram_bytes_max = 0;  // larger ones vanish, after heal() too; 0: any size passes
  // ---- faults: chances a datagram ----
  std::uint32_t loss_ppm = 0;
  std::uint32_t loss_small_ppm = 0, loss_large_ppm = 0;  // of only small, only large ones
  // Gilbert and Elliott: a bad state that is entered and left by chance, and loses so many.
  std::uint32_t burst_enter_ppm = 0, burst_leave_ppm = 100'000, burst_loss_ppm = 0;
  std::uint32_t duplicate_ppm = 0;  // a copy up to reorder_delay later
  std::uint32_t flip_ppm = 0;       // some bytes are others
  std::uint32_t truncate_ppm = 0;
  std::uint32_t extend_ppm = 0;
  std::uint32_t swap_ppm = 0;     // two aligned words change places
  std::uint32_t reorder_ppm = 0;  // held back by up to reorder_delay, others overtake
  Duration reorder_delay = milliseconds(1);
  bool blackhole = false;

  /// Nothing that arrives is other than what was sent.
  [[nodiscard]] bool damages() const { return flip_ppm + truncate_ppm + extend_ppm + swap_ppm > 0; }
};

struct Delivered {
  std::size_t link = 0;
  std::vector<std::byte> bytes;
};

struct LinkCounters {
  std::uint64_t sent = 0, delivered = 0, lost = 0, queue_drops = 0, too_large = 0, duplicated = 0, damaged = 0,
                reordered = 0;
};

class Network {
 public:
  explicit Network(std::uint64_t seed) : random_(seed) {}

  /// The new link's number.
  std::size_t add_link(const LinkConfig& config);
  /// Faults may be changed at any time; they hold for what is sent afterwards.
  [[nodiscard]] LinkConfig& link(std::size_t link) { return links_[link].config; }
  [[nodiscard]] const LinkCounters& counters(std::size_t link) const { return links_[link].counters; }
  /// No more faults on any link; delay, rate and size stay.
  void heal();

  void send(Instant now, std::size_t link, std::span<const std::byte> bytes);
  /// kNever when nothing is under way.
  [[nodiscard]] Instant next_delivery() const { return events_.empty() ? kNever : events_.top().at; }
  /// The next datagram that has arrived by `now`.
  [[nodiscard]] std::optional<Delivered> receive(Instant now);
  /// Memory for datagrams to come.
  void recycle(std::vector<std::byte> bytes) { free_bytes_.push_back(std::move(bytes)); }
  /// Datagrams under way.
  [[nodiscard]] std::size_t under_way() const { return events_.size(); }

 private:
  struct Event {
    Instant at;
    std::uint64_t order;  // ties: first sent, first delivered
    std::size_t link;
    std::size_t buffer;
    bool operator<(const Event& other) const { return at != other.at ? at > other.at : order > other.order; }
  };
  struct Link {
    LinkConfig config;
    LinkCounters counters;
    Instant busy_until{};    // of the sending side
    Instant last_arrival{};  // of packets that stay in order
    bool in_burst = false;
  };

  [[nodiscard]] bool is_lost(Link& link, std::size_t bytes);
  /// When the last bit is out; nothing: the queue was full.
  static std::optional<Instant> depart(Instant now, Link& link, std::size_t bytes);
  [[nodiscard]] std::vector<std::byte> copy(std::span<const std::byte> bytes);
  void deliver_at(Instant at, std::size_t link, std::vector<std::byte> bytes);
  void damage(Link& link, std::vector<std::byte>& bytes);

  Random random_;
  std::vector<Link> links_;
  std::priority_queue<Event> events_;
  std::vector<std::vector<std::byte>> buffers_;
  std::vector<std::size_t> free_buffers_;
  std::vector<std::vector<std::byte>> free_bytes_;
  std::uint64_t order_ = 0;
};

}  // namespace godwit::simulation
