#include "dataplane/transport/ack_ranges.h"

#include <algorithm>
#include <bit>

namespace godwit::transport {

namespace {
// Numbers just below the floor are reported too: a late arrival there tells the sender that its loss was none.
constexpr std::uint64_t kWordsMin = 2;
}  // namespace

void AckRanges::on_received(Instant now, std::uint64_t packet_number, bool ack_eliciting, bool ack_now,
                            Duration waited) {
  const std::uint64_t expected = window_.any() ? window_.largest() + 1 : 0;
  window_.set(packet_number);
  if (packet_number >= expected) {
    largest_at_ = now + Duration{-waited.ns};
  }
  advance_floor();
  if (!ack_eliciting) {
    return;
  }
  if (pending_++ == 0) {
    deadline_ = now + kAckDelayMax;
  }
  if (packet_number != expected || ack_now || pending_ >= kAckPacketsMax || policy_ == AckPolicy::kImmediate) {
    immediate_ = true;
    deadline_ = now;
  }
}

void AckRanges::raise_floor(std::uint64_t floor) {
  // A peer's floor is at most its packet's number, which has been received: so the floor stays at most largest + 1.
  floor_ = std::max(floor_, floor);
  advance_floor();
}

void AckRanges::advance_floor() {
  while (window_.any() && floor_ <= window_.largest() && window_.in_window(floor_ / 64)) {
    const auto bit = static_cast<unsigned>(floor_ % 64);
    const auto ones = static_cast<unsigned>(std::countr_one(window_.word(floor_ / 64) >> bit));
    const unsigned step = std::min(ones, 64 - bit);
    floor_ += step;
    if (step == 0 || bit + step < 64) {
      return;
    }
  }
}

std::size_t AckRanges::word_count() const {
  const std::uint64_t top = window_.largest() / 64;
  const std::uint64_t wanted = top >= floor_ / 64 ? top - floor_ / 64 + 1 : 0;
  return std::min({std::max(wanted, kWordsMin), std::uint64_t{wire::kAckWordsMax}, top + 1});
}

wire::AckBlock AckRanges::build(Instant now, std::uint64_t edge) {
  GW_ASSERT(window_.any());
  wire::AckBlock ack;
  ack.largest = window_.largest();
  ack.floor = floor_;
  ack.edge = edge;
  ack.ack_delay_us = static_cast<std::uint32_t>(std::clamp<std::int64_t>((now - largest_at_).us(), 0, UINT32_MAX));
  ack.word_count = static_cast<std::uint8_t>(word_count());
  const std::uint64_t top = ack.largest / 64;
  for (std::size_t i = 0; i < ack.word_count; ++i) {
    ack.words[i] = window_.word(top - i);
  }
  pending_ = 0;
  immediate_ = false;
  deadline_ = kNever;
  return ack;
}

}  // namespace godwit::transport
