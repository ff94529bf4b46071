#pragma once
// The bandwidth limit of one migration. Integers only; time is passed in. What is handed out between two refills is
// promised at its nominal size and charged at the next refill as the lanes have counted it, so headers and
// retransmissions pay too.

#include <cstdint>

#include "base/time.h"

namespace godwit::transfer {

class TokenBucket {
 public:
  /// 0: no limit.
  explicit TokenBucket(std::uint64_t rate_bps);
  void start(Instant now);
  /// `spent_bytes` have gone out since the last call.
  void refill(Instant now, std::uint64_t spent_bytes);
  void promise(std::uint64_t bytes);
  [[nodiscard]] bool open() const { return rate_bps_ == 0 || level_bytes_ > promised_bytes_; }
  /// When refill() opens it again; kNever while it is open.
  [[nodiscard]] Instant opens_at() const;

 private:
  std::uint64_t rate_bps_;
  std::int64_t burst_bytes_;
  std::int64_t level_bytes_ = 0;  // negative: debt
  std::int64_t promised_bytes_ = 0;
  std::uint64_t bit_us_ = 0;  // part of a byte, in bits times 10^6
  Instant last_{};
};

}  // namespace godwit::transfer
