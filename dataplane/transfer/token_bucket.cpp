#include "dataplane/transfer/token_bucket.h"

#include <algorithm>

namespace godwit::transfer {
namespace {
constexpr std::uint64_t kBitUsPerByte = 8'000'000;
constexpr std::int64_t kBurstUs = 2000;  // the grain of the limit
constexpr std::int64_t kBurstBytesMin = 65536;
constexpr std::int64_t kElapsedUsMax = 100'000;            // longer pauses earn no more
constexpr std::uint64_t kRateBpsMax = 10'000'000'000'000;  // keeps the products below 2^63
}  // namespace

TokenBucket::TokenBucket(std::uint64_t rate_bps)
    : rate_bps_(std::min(rate_bps, kRateBpsMax)),
      burst_bytes_(std::max(kBurstBytesMin, static_cast<std::int64_t>(rate_bps_ * kBurstUs / kBitUsPerByte))) {}

void TokenBucket::start(Instant now) {
  last_ = now;
  level_bytes_ = burst_bytes_;
}

void TokenBucket::refill(Instant now, std::uint64_t spent_bytes) {
  if (rate_bps_ == 0) {
    return;
  }
  const std::int64_t elapsed_us = std::max<std::int64_t>((now - last_).us(), 0);
  last_ = elapsed_us > kElapsedUsMax ? now : last_ + microseconds(elapsed_us);
  bit_us_ += rate_bps_ * static_cast<std::uint64_t>(std::min(elapsed_us, kElapsedUsMax));
  level_bytes_ = std::min(burst_bytes_, level_bytes_ + static_cast<std::int64_t>(bit_us_ / kBitUsPerByte));
  bit_us_ %= kBitUsPerByte;
  level_bytes_ -= static_cast<std::int64_t>(spent_bytes);
  promised_bytes_ = 0;
}

void TokenBucket::promise(std::uint64_t bytes) {
  if (rate_bps_ != 0) {
    promised_bytes_ += static_cast<std::int64_t>(bytes);
  }
}

Instant TokenBucket::opens_at() const {
  if (open()) {
    return kNever;
  }
  // A promise becomes a charge at the next refill; until then waiting for the level alone would be too short.
  const auto missing_bytes = static_cast<std::uint64_t>(promised_bytes_ - level_bytes_ + 1);
  const std::uint64_t wait_us = missing_bytes * kBitUsPerByte / rate_bps_ + 1;
  return last_ + microseconds(static_cast<std::int64_t>(wait_us));
}

}  // namespace godwit::transfer
