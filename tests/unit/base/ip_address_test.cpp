#include "base/ip_address.h"

#include <gtest/gtest.h>

namespace godwit {
namespace {

TEST(IpAddress, ParsesAndFormats) {
  const auto v4 = IpAddress::parse("10.0.0.1");
  ASSERT_TRUE(v4);
  EXPECT_FALSE(v4->is_ipv6());
  EXPECT_EQ(v4->bytes()[0], 10);
  EXPECT_EQ(v4->text(), "10.0.0.1");
  const auto v6 = IpAddress::parse("FD00:0::1");
  ASSERT_TRUE(v6);
  EXPECT_TRUE(v6->is_ipv6());
  EXPECT_EQ(v6->text(), "fd00::1");
  EXPECT_NE(*v4, *v6);
}

TEST(IpAddress, RefusesEveryOtherText) {
  using namespace std::string_view_literals;
  for (const auto bad : {""sv, "10.0.0"sv, "10.0.0.256"sv, "10.0.0.1 "sv, "10.0.0.1\0"sv, "fe80::1%eth0"sv, "host"sv,
                         "1:2"sv, "10.0.0.1:80"sv}) {
    EXPECT_FALSE(IpAddress::parse(bad)) << bad;
  }
}

TEST(IpAddress, KnowsMulticast) {
  EXPECT_TRUE(IpAddress::parse("239.1.2.3")->is_multicast());
  EXPECT_TRUE(IpAddress::parse("ff02::1")->is_multicast());
  EXPECT_FALSE(IpAddress::parse("223.1.2.3")->is_multicast());
  EXPECT_TRUE(IpAddress::parse("::")->is_unspecified());
}

TEST(IpPrefix, ParsesAndRefuses) {
  EXPECT_EQ(IpPrefix::parse("10.0.0.1/24")->text(), "10.0.0.1/24");
  EXPECT_EQ(IpPrefix::parse("fd00::1/128")->length, 128U);
  for (const char* bad :
       {"10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/-1", "10.0.0.1/24x", "fd00::1/129", "/24", "a/2"}) {
    EXPECT_FALSE(IpPrefix::parse(bad)) << bad;
  }
}

TEST(IpPrefix, ContainsItsSubnetBitByBit) {
  const auto prefix = *IpPrefix::parse("10.0.16.1/20");
  EXPECT_TRUE(prefix.contains(*IpAddress::parse("10.0.31.255")));
  EXPECT_FALSE(prefix.contains(*IpAddress::parse("10.0.32.0")));
  EXPECT_FALSE(prefix.contains(*IpAddress::parse("fd00::1")));
  EXPECT_TRUE(IpPrefix::parse("10.0.0.1/0")->contains(*IpAddress::parse("1.2.3.4")));
  EXPECT_TRUE(IpPrefix::parse("fd00::1/64")->contains(*IpAddress::parse("fd00::ffff:1:2:3")));
  EXPECT_FALSE(IpPrefix::parse("fd00::1/64")->contains(*IpAddress::parse("fd00:0:0:1::1")));
  EXPECT_FALSE(IpPrefix::parse("10.0.0.1/32")->contains(*IpAddress::parse("10.0.0.2")));
}

}  // namespace
}  // namespace godwit
