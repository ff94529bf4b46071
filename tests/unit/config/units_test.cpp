#include "config/units.h"

#include <gtest/gtest.h>

namespace godwit::config {
namespace {

TEST(Units, Sizes) {
  EXPECT_EQ(parse_bytes("4GiB"), 4ULL << 30);
  EXPECT_EQ(parse_bytes("4 GiB"), 4ULL << 30);
  EXPECT_EQ(parse_bytes("1.5KiB"), 1536U);
  EXPECT_EQ(parse_bytes("0"), 0U);
  EXPECT_EQ(parse_bytes("0MiB"), 0U);
  EXPECT_EQ(parse_bytes("7B"), 7U);
}

TEST(Units, DurationsAndRates) {
  EXPECT_EQ(parse_duration("300ms"), milliseconds(300));
  EXPECT_EQ(parse_duration("1.5s"), milliseconds(1500));
  EXPECT_EQ(parse_duration("2min"), milliseconds(120'000));
  EXPECT_EQ(parse_duration("50us"), microseconds(50));
  EXPECT_EQ(parse_rate_bps("1Gbit/s"), 1'000'000'000U);
  EXPECT_EQ(parse_rate_bps("2.5Gbit/s"), 2'500'000'000U);
}

TEST(Units, RefusesEveryOtherText) {
  for (const char* bad :
       {"",           "4",     "GiB",   "4GB",      "4gib",    "-4GiB",  "+4GiB", "4  GiB", "4GiB ",
        " 4GiB",      "4.GiB", ".5GiB", "1.2.3GiB", "0x10MiB", "1e3MiB", "0.1B",  "nan",    "99999999999999999999GiB",
        "9000000TiB", "4Gib"}) {
    EXPECT_FALSE(parse_bytes(bad)) << bad;
  }
  EXPECT_FALSE(parse_duration("300"));
  EXPECT_FALSE(parse_duration("300 m"));
  EXPECT_FALSE(parse_rate_bps("1GiB/s"));
}

TEST(Units, LargestPossible) {
  EXPECT_EQ(parse_bytes("8388607TiB"), 8388607ULL << 40);
  EXPECT_FALSE(parse_bytes("8388608TiB"));
}

TEST(Units, Formats) {
  EXPECT_EQ(format_bytes(4ULL << 30), "4 GiB");
  EXPECT_EQ(format_bytes(3ULL << 29), "1.5 GiB");
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_duration(milliseconds(300)), "300 ms");
  EXPECT_EQ(format_duration(milliseconds(-1500)), "-1.5 s");
  EXPECT_EQ(format_rate_bps(1'000'000'000), "1 Gbit/s");
  EXPECT_EQ(format_pages(1234), "1234 pages (4.8 MiB)");
  EXPECT_EQ(format_pages(1), "1 page (4 KiB)");
}

}  // namespace
}  // namespace godwit::config
