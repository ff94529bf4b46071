#pragma once
// Two lanes back to back, and users that count what they get: for tests of lanes. Single thread.

#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <vector>

#include "dataplane/transport/lane.h"
#include "dataplane/wire/packet.h"

namespace godwit::transport {

using Bytes = std::vector<std::byte>;

class User final : public LaneUser {
 public:
  bool next_work(std::uint16_t, Work& out) override {
    if (at == work.size()) {
      return false;
    }
    out = work[at++];
    return true;
  }
  void read_page(pages::PageNumber, std::uint32_t, std::span<std::byte> out) override {
    std::fill(out.begin(), out.end(), std::byte{1});
  }
  void on_acknowledged(const Work&) override { ++acknowledged; }
  void on_page(std::uint16_t lane, std::uint32_t, pages::PageNumber, std::uint32_t,
               std::span<const std::byte> bytes) override {
    lanes |= 1U << lane;
    page_bytes += bytes.size();
  }
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t count) override {
    zero_pages += count;
  }
  void on_message(std::span<const std::byte> message) override { message_bytes += message.size(); }

  std::vector<Work> work;
  std::size_t at = 0;
  std::uint32_t lanes = 0;  // bits: pages came on them
  std::uint64_t acknowledged = 0, page_bytes = 0, zero_pages = 0, message_bytes = 0;
};

struct Protection {
  Cipher cipher = Cipher::kAes128Gcm;
  KeyLimits limits;
};

inline LaneConfig config(bool initiator, std::uint16_t lane, std::uint32_t datagram_bytes = 8972,
                         const Protection& protection = {}) {
  LaneConfig c;
  c.local_flow_id = initiator ? 11 : 22;
  c.peer_flow_id = initiator ? 22 : 11;
  c.lane = lane;
  c.initiator = initiator;
  c.datagram_bytes_max = datagram_bytes;
  c.cipher = protection.cipher;
  c.key_limits = protection.limits;
  return c;
}

struct Pair {
  explicit Pair(std::uint16_t lane, std::uint32_t datagram_bytes = 8972, const Protection& protection = {})
      : a(config(true, lane, datagram_bytes, protection), user_a, now),
        b(config(false, lane, datagram_bytes, protection), user_b, now),
        out(datagram_bytes) {}

  std::size_t pass(Lane& from, Lane& to) {
    std::size_t count = 0;
    while (const std::size_t length = from.poll_transmit(now, out)) {
      EXPECT_EQ(to.on_packet(now, std::span(out).first(length)), Received::kAccepted);
      ++count;
    }
    return count;
  }
  void run() {
    for (int i = 0; i < 100'000 && pass(a, b) + pass(b, a) > 0; ++i) {
      now = now + microseconds(50);
    }
  }
  Bytes packet() {
    const std::size_t length = a.poll_transmit(now, out);
    return Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(length));
  }

  User user_a, user_b;
  Instant now{1'000'000'000};
  Lane a, b;
  Bytes out;
};

}  // namespace godwit::transport
