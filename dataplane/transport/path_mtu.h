#pragma once
// How large the packets of one direction of a lane are. Falls where a path turns out to be an MTU black hole: it drops
// large packets in silence and carries small ones. As such paths heal, and a burst of loss may look like one, larger
// packets are tried again with padded probes that carry nothing (DPLPMTUD, RFC 8899). No ICMP is trusted. Owner: one
// lane; its lcore. Failure: is_too_narrow().
//
// The sizes are what the MTU of both ends allows, then that of MTU 1500, then of 1280, below which no path of IPv6 may
// be. Sizes in between would gain nothing: with all of them a page has four parts of 1024 bytes.
//
// One piece of evidence is: packets were given up and smaller ones acknowledged, but none as large. kEvidence of them
// in a row is a black hole, as RFC 8899 §5.1.3 (MAX_PROBES = 3) has it. Where loss is random a large packet gets
// through in between. A path that carries nothing is no black hole, it is a dead one.

#include <algorithm>
#include <array>
#include <cstdint>

#include "base/check.h"
#include "base/time.h"
#include "dataplane/transport/lane.h"
#include "dataplane/wire/frames.h"
#include "dataplane/wire/packet.h"

namespace godwit::transport {

class PathMtu {
 public:
  static constexpr std::uint32_t kEvidence = 3;
  static constexpr std::uint32_t kProbesMax = 3;  // MAX_PROBES
  /// Not a matter of size if lost: an IP packet of 576 bytes passes everywhere (RFC 791).
  static constexpr std::uint32_t kSmallBytes = 576 - 28;
  /// What packets with content of one size differ by: less is no other size.
  static constexpr std::uint32_t kAckBytesMax = wire::ack_block_bytes(wire::kAckWordsMax);

  PathMtu(std::uint32_t bytes_max, std::uint32_t bytes_fallback, const PathMtuTimers& timers) : timers_(timers) {
    GW_ASSERT(bytes_max >= wire::kDatagramBytesMinimum && bytes_fallback >= wire::kDatagramBytesMinimum);
    for (const std::uint32_t bytes :
         {bytes_max, bytes_fallback, static_cast<std::uint32_t>(wire::kDatagramBytesMinimum)}) {
      if (count_ == 0 || bytes < sizes_[count_ - 1]) {
        sizes_[count_++] = bytes;
      }
    }
  }

  /// UDP payload that a packet may have.
  [[nodiscard]] std::uint32_t bytes() const { return sizes_[at_]; }

  // ---- falling ----
  void on_acknowledged(std::uint32_t packet_bytes) { passed_bytes_ = std::max(passed_bytes_, packet_bytes); }
  void on_lost(std::uint32_t packet_bytes) {
    lost_bytes_ = packet_bytes > kSmallBytes ? std::max(lost_bytes_, packet_bytes) : lost_bytes_;
  }
  /// After what an acknowledgement or a timer gave up has been told. True: packets are smaller from now on.
  [[nodiscard]] bool falls(Instant now) {
    if (passed_bytes_ + kAckBytesMax >= dropped_bytes_) {
      forget_evidence();
    }
    if (lost_bytes_ > 0 && passed_bytes_ > 0) {
      if (passed_bytes_ + kAckBytesMax < lost_bytes_) {
        ++evidence_;
        dropped_bytes_ = std::max(dropped_bytes_, lost_bytes_);
        narrow_since_ = std::min(narrow_since_, now);
      }
      lost_bytes_ = passed_bytes_ = 0;
    }
    std::size_t next = at_ + 1;
    while (next < count_ && sizes_[next] >= dropped_bytes_) {
      ++next;  // what was dropped was smaller
    }
    if (evidence_ < kEvidence || next == count_) {
      return false;
    }
    at_ = next;
    forget_evidence();
    probes_lost_ = 0;
    probe_at_ = now + timers_.probe;
    return true;
  }
  /// Packets that could not be smaller do not get through, and none of their size has for so long.
  [[nodiscard]] bool is_too_narrow(Instant now, Duration patience) const {
    return evidence_ >= kEvidence && now - narrow_since_ >= patience;
  }

  // ---- rising ----
  /// The size that a probe should try now; 0: none. The next one is due only when this one's fate is known.
  [[nodiscard]] std::uint32_t probe_due(Instant now) const {
    return at_ > 0 && !probing_ && now >= probe_at_ ? sizes_[at_ - 1] : 0;
  }
  void on_probe_sent() { probing_ = true; }
  void on_probe_acknowledged() {
    probing_ = false;
    passed_ = true;
  }
  void on_probe_lost(Instant now) {
    probing_ = false;
    const bool enough = ++probes_lost_ >= kProbesMax;
    probes_lost_ = enough ? 0 : probes_lost_;
    probe_at_ = now + (enough ? timers_.raise : timers_.probe);
  }
  /// True: packets are larger from now on; and the next size is tried at once.
  [[nodiscard]] bool rises() {
    if (!passed_) {
      return false;
    }
    passed_ = false;
    probes_lost_ = 0;
    --at_;
    return true;
  }

 private:
  void forget_evidence() {
    evidence_ = dropped_bytes_ = 0;
    narrow_since_ = kNever;
  }

  PathMtuTimers timers_;
  std::array<std::uint32_t, 3> sizes_{};  // falling
  std::size_t count_ = 0;
  std::size_t at_ = 0;
  // The largest packets since both were looked at; 0: none.
  std::uint32_t passed_bytes_ = 0;
  std::uint32_t lost_bytes_ = 0;
  std::uint32_t evidence_ = 0;
  std::uint32_t dropped_bytes_ = 0;  // the largest packet of the evidence
  Instant narrow_since_ = kNever;    // the first evidence
  std::uint32_t probes_lost_ = 0;    // in a row
  Instant probe_at_ = kNever;
  bool probing_ = false;
  bool passed_ = false;
};

}  // namespace godwit::transport
