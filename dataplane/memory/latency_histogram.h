#pragma once
// How long things took, in fixed buckets: eight an octave, so a percentile is at most an eighth too long, from 1 ns to
// 2^40 ns (18 minutes). Pure.
//
// LatencyHistogram has one writer and any reader, as SingleWriter; LatencyFigures is a picture of one or the sum of
// several.

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/single_writer.h"

namespace godwit::memory {

inline constexpr std::size_t kLatencyBuckets = 304;

/// Below 8 ns a bucket a nanosecond; above, the three bits after the leading one choose among eight.
constexpr std::size_t latency_bucket(std::uint64_t ns) {
  if (ns < 8) {
    return ns;
  }
  const auto shift = static_cast<std::size_t>(std::bit_width(ns)) - 4;
  return std::min(kLatencyBuckets - 1, shift * 8 + static_cast<std::size_t>(ns >> shift));
}
/// The longest time that the bucket counts.
constexpr std::uint64_t latency_bound_ns(std::size_t bucket) {
  if (bucket < 8) {
    return bucket;
  }
  const std::size_t shift = bucket / 8 - 1;
  return ((std::uint64_t{bucket} % 8 + 9) << shift) - 1;
}

struct LatencyFigures {
  std::array<std::uint64_t, kLatencyBuckets> counts{};
  std::uint64_t count = 0;
  std::uint64_t sum_ns = 0;
  std::uint64_t max_ns = 0;

  /// The time that this share (0 to 1) of all did not exceed; 0 where there is nothing.
  [[nodiscard]] std::uint64_t percentile_ns(double share) const {
    const double rank = share * static_cast<double>(count);
    std::uint64_t seen = 0;
    for (std::size_t bucket = 0; bucket < counts.size(); ++bucket) {
      seen += counts[bucket];
      if (seen > 0 && static_cast<double>(seen) >= rank) {
        return std::min(max_ns, latency_bound_ns(bucket));
      }
    }
    return max_ns;
  }
};

class LatencyHistogram {
 public:
  void observe(std::uint64_t ns) {
    ++counts_[latency_bucket(ns)];
    sum_ns_ += ns;
    max_ns_.set(std::max(max_ns_.get(), ns));
  }
  void add_to(LatencyFigures& figures) const {
    for (std::size_t bucket = 0; bucket < counts_.size(); ++bucket) {
      figures.counts[bucket] += counts_[bucket];
      figures.count += counts_[bucket];
    }
    figures.sum_ns += sum_ns_;
    figures.max_ns = std::max(figures.max_ns, max_ns_.get());
  }

 private:
  std::array<SingleWriter<std::uint64_t>, kLatencyBuckets> counts_;
  SingleWriter<std::uint64_t> sum_ns_, max_ns_;
};

}  // namespace godwit::memory
