// Goal: scans take no more than their share of a core, whatever one costs. Method: a clock of the test's own.

#include "base/scan_pace.h"

#include <gtest/gtest.h>

namespace godwit {
namespace {

TEST(ScanPace, TakesItsShareAndNoMore) {
  constexpr Duration kStep = milliseconds(1);
  ScanPace pace(2, milliseconds(1000));
  EXPECT_TRUE(pace.due({0})) << "the first at once";
  Duration spent, cost = microseconds(100);
  Instant now{0};
  int scans = 0;
  for (; now.ns < milliseconds(10'000'000).ns; now = now + kStep) {
    if (!pace.due(now)) {
      continue;
    }
    pace.note(now, cost);
    spent = Duration{spent.ns + cost.ns};
    cost = cost * 2 > milliseconds(60'000) ? microseconds(100) : cost * 2;
    ++scans;
  }
  EXPECT_GT(scans, 20);
  // The last scan's share is still to come.
  EXPECT_LE(spent.ns, now.ns / 50 + milliseconds(60'000).ns);
}

TEST(ScanPace, CheapScansKeepTheShortestPeriod) {
  ScanPace pace(1, milliseconds(1000));
  pace.note({0}, microseconds(10));
  EXPECT_EQ(pace.period(), milliseconds(1000));
  EXPECT_FALSE(pace.due(Instant{0} + milliseconds(999)));
  EXPECT_TRUE(pace.due(Instant{0} + milliseconds(1000)));
}

TEST(ScanPace, NoCostIsTooMuchToCount) {
  ScanPace pace(1, milliseconds(1));
  pace.note({INT64_MAX / 2}, Duration{INT64_MAX});
  EXPECT_FALSE(pace.due({INT64_MAX / 2 + 1}));
  pace.note({0}, Duration{-5});
  EXPECT_EQ(pace.period(), milliseconds(1));
}

}  // namespace
}  // namespace godwit
