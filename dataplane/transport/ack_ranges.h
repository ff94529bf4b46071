#pragma once
// The receiving half of acknowledgement: what has been received, and when to say so. Owner: one lane; its lcore; no
// failure. Policy: at the end of a burst when 8 packets wait, at once for a gap or when asked, 25 us after the first
// otherwise.

#include "base/time.h"
#include "dataplane/transport/replay_window.h"
#include "dataplane/wire/frames.h"

namespace godwit::transport {

inline constexpr Duration kAckDelayMax = microseconds(25);
inline constexpr std::uint32_t kAckPacketsMax = 8;

enum class AckPolicy : std::uint8_t { kDelayed, kImmediate };

class AckRanges {
 public:
  explicit AckRanges(AckPolicy policy) : policy_(policy) {}

  [[nodiscard]] const ReplayWindow& window() const { return window_; }
  /// An authentic packet of a new number, which came up to `waited` ago.
  void on_received(Instant now, std::uint64_t packet_number, bool ack_eliciting, bool ack_now, Duration waited = {});
  /// The peer has given up, or knows received, every number below.
  void raise_floor(std::uint64_t floor);
  [[nodiscard]] std::uint64_t floor() const { return floor_; }

  [[nodiscard]] bool due(Instant now) const { return pending_ > 0 && (immediate_ || now >= deadline_); }
  /// When due() becomes true without another packet; kNever if nothing waits. In the past when it is due now.
  [[nodiscard]] Instant deadline() const { return pending_ == 0 ? kNever : deadline_; }
  /// Wire size of the block that build() would return now.
  [[nodiscard]] std::size_t block_bytes() const { return wire::ack_block_bytes(word_count()); }
  /// The block to send now; nothing waits afterwards. Only after a packet has been received.
  [[nodiscard]] wire::AckBlock build(Instant now, std::uint64_t edge);

 private:
  void advance_floor();
  [[nodiscard]] std::size_t word_count() const;

  ReplayWindow window_;
  std::uint64_t floor_ = 0;
  Instant largest_at_{};
  Instant deadline_ = kNever;
  std::uint32_t pending_ = 0;  // ack-eliciting packets not yet acknowledged
  bool immediate_ = false;
  AckPolicy policy_;
};

}  // namespace godwit::transport
