#include "dataplane/memory/latency_histogram.h"

#include <gtest/gtest.h>

namespace godwit::memory {
namespace {

TEST(LatencyHistogram, EveryTimeIsWithinItsBucket) {
  for (std::uint64_t ns = 0; ns < 5000; ++ns) {
    const std::size_t bucket = latency_bucket(ns);
    EXPECT_LE(ns, latency_bound_ns(bucket));
    EXPECT_TRUE(bucket == 0 || ns > latency_bound_ns(bucket - 1)) << ns;
  }
  for (std::uint64_t ns = 5000; ns < std::uint64_t{1} << 40; ns += ns / 7) {
    const std::size_t bucket = latency_bucket(ns);
    ASSERT_LT(bucket, kLatencyBuckets - 1);
    EXPECT_LE(ns, latency_bound_ns(bucket));
    EXPECT_LE(latency_bound_ns(bucket), ns + ns / 8);
  }
  EXPECT_EQ(latency_bucket(UINT64_MAX), kLatencyBuckets - 1);
}

TEST(LatencyHistogram, PercentilesOfSeveralTogether) {
  LatencyHistogram a;
  LatencyHistogram b;
  for (std::uint64_t us = 1; us <= 500; ++us) {
    a.observe(us * 1000);
    b.observe((us + 500) * 1000);
  }
  LatencyFigures figures;
  EXPECT_EQ(figures.percentile_ns(0.5), 0U);
  a.add_to(figures);
  b.add_to(figures);
  EXPECT_EQ(figures.count, 1000U);
  EXPECT_EQ(figures.max_ns, 1000000U);
  EXPECT_EQ(figures.sum_ns, 500500000U);
  for (const double share : {0.01, 0.5, 0.9, 0.99}) {
    const auto exact = static_cast<std::uint64_t>(share * 1e6);
    EXPECT_GE(figures.percentile_ns(share), exact);
    EXPECT_LE(figures.percentile_ns(share), exact + exact / 8);
  }
  EXPECT_EQ(figures.percentile_ns(1), 1000000U);
}

}  // namespace
}  // namespace godwit::memory
