#include "base/uuid.h"

#include <gtest/gtest.h>

#include <unordered_set>

namespace godwit {
namespace {

constexpr std::string_view kText = "00112233-4455-6677-8899-aabbccddeeff";

TEST(Uuid, ParsesAndFormats) {
  const auto id = Id128::parse(kText);
  ASSERT_TRUE(id);
  EXPECT_EQ(id->text(), kText);
  EXPECT_EQ(id->bytes()[0], 0x00);
  EXPECT_EQ(id->bytes()[15], 0xff);
  EXPECT_EQ(Id128::parse("00112233-4455-6677-8899-AABBCCDDEEFF"), id);
}

TEST(Uuid, RefusesEveryOtherText) {
  for (const std::string_view bad : {"", "0011223344556677-8899-aabbccddeeff", "00112233-4455-6677-8899-aabbccddeef",
                                     "00112233-4455-6677-8899-aabbccddeeff0", "00112233-4455-6677-8899-aabbccddeefg",
                                     "00112233_4455-6677-8899-aabbccddeeff", "{0112233-4455-6677-8899-aabbccddeef}",
                                     "-0112233-4455-6677-8899-aabbccddeeff", "001122334-455-6677-8899-aabbccddeeff"}) {
    EXPECT_FALSE(Id128::parse(bad)) << bad;
  }
}

TEST(Uuid, BytesMustBeSixteen) {
  const auto id = Id128::random();
  EXPECT_EQ(Id128::from_bytes(id.to_bytes()), id);
  EXPECT_FALSE(Id128::from_bytes(""));
  EXPECT_FALSE(Id128::from_bytes(id.to_bytes().substr(1)));
  EXPECT_FALSE(Id128::from_bytes(id.to_bytes() + "x"));
}

TEST(Uuid, RandomIsVersion4AndDoesNotRepeat) {
  std::unordered_set<Id128> seen;
  for (int i = 0; i < 1000; ++i) {
    const auto id = Id128::random();
    EXPECT_EQ(id.text()[14], '4');
    EXPECT_NE(std::string("89ab").find(id.text()[19]), std::string::npos);
    EXPECT_FALSE(id.is_nil());
    EXPECT_TRUE(seen.insert(id).second);
  }
  EXPECT_TRUE(Id128{}.is_nil());
}

TEST(Uuid, OrdersAsItsText) {
  const auto low = *Id128::parse("00000000-0000-0000-0000-0000000000ff");
  const auto high = *Id128::parse("00000000-0000-0000-0000-000000000100");
  EXPECT_LT(low, high);
  EXPECT_LT(low.text(), high.text());
}

TEST(Uuid, HashUsesBothHalves) {
  const std::hash<Id128> hash;
  EXPECT_NE(hash(*Id128::parse("00000000-0000-0000-0000-000000000001")),
            hash(*Id128::parse("00000000-0000-0000-0000-000000000002")));
  EXPECT_NE(hash(*Id128::parse("10000000-0000-0000-0000-000000000000")),
            hash(*Id128::parse("20000000-0000-0000-0000-000000000000")));
}

}  // namespace
}  // namespace godwit
