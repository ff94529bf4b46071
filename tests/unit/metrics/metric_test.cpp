#include "metrics/metric.h"

#include <gtest/gtest.h>

namespace godwit::metrics {
namespace {

constexpr Metric kCount{"a_total", Kind::kCounter, "lane,direction", "help"};
constexpr Metric kLevel{"b_bytes", Kind::kGauge, "", "help"};
constexpr Metric kOther{"c_bytes", Kind::kGauge, "", "help"};
constexpr std::array kBoth{&kCount, &kLevel};

TEST(Histogram, CountsUpToEachBound) {
  Histogram histogram({1, 2, 5});
  for (const double value : {0.5, 1.0, 1.5, 5.0, 7.0, 8.0}) {
    histogram.observe(value);
  }
  EXPECT_EQ(histogram.counts(), (std::vector<std::uint64_t>{2, 1, 1, 2}));
  EXPECT_DOUBLE_EQ(histogram.sum(), 23.0);
}

TEST(Samples, HasEachMetricInItsPlaceThoughNothingWasAdded) {
  Samples samples(kBoth);
  samples.add(kLevel, {}, std::uint64_t{7});
  ASSERT_EQ(samples.families().size(), 2U);
  EXPECT_EQ(samples.families()[0].metric, &kCount);
  EXPECT_TRUE(samples.families()[0].samples.empty());
  ASSERT_EQ(samples.families()[1].samples.size(), 1U);
  EXPECT_EQ(samples.families()[1].samples[0].value, 7.0);
}

TEST(Samples, RefuseWhatIsNotDescribed) {
  Samples samples(kBoth);
  samples.add(kCount, {"0", "sent"}, std::uint64_t{1});
  EXPECT_DEATH(samples.add(kCount, {"0"}, std::uint64_t{1}), "");
  EXPECT_DEATH(samples.add(kOther, {}, std::uint64_t{1}), "");
  EXPECT_DEATH(samples.add(kLevel, {}, Histogram({1})), "");
}

TEST(Metric, LabelNames) {
  EXPECT_EQ(label_names(kCount), (std::vector<std::string>{"lane", "direction"}));
  EXPECT_TRUE(label_names(kLevel).empty());
}

}  // namespace
}  // namespace godwit::metrics
