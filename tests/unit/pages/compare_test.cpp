#include "dataplane/pages/compare.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/unit/pages/random_bits.h"

namespace godwit::pages {
namespace {

GenerationTable random_table(Random& random, std::uint64_t size) {
  constexpr Generation kChoices[] = {kNeverWritten,     1, 2, 0x7fffffff, 0x80000000, kUnknownGeneration - 1,
                                     kUnknownGeneration};
  GenerationTable table(size);
  for (PageNumber page = 0; page < size; ++page) table.set(page, kChoices[below(random, std::size(kChoices))]);
  return table;
}

class Compare : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_supported(GetParam())) GTEST_SKIP() << "this CPU lacks the instructions";
  }
};

TEST_P(Compare, MatchesTheRulePageByPage) {
  Random random(1);
  for (const std::uint64_t size : std::initializer_list<std::uint64_t>{0, 1, 15, 63, 64, 65, 127, 1000, 4096}) {
    const GenerationTable retained = random_table(random, size);
    const GenerationTable current = random_table(random, size);
    Bitmap out(size);
    out.set_all();  // what was there must not matter
    find_not_reusable(retained, current, out, GetParam());
    Bitmap expected(size);
    for (PageNumber page = 0; page < size; ++page) {
      const Generation a = retained.get(page);
      const Generation b = current.get(page);
      if (a != b || a == UINT32_MAX) expected.set(page);
    }
    EXPECT_EQ(out, expected) << size;
  }
}

TEST_P(Compare, LargeTablesAreCutIntoBlocksWithoutAGap) {
  constexpr std::uint64_t kSize = (5 << 20) + 77;
  Random random(2);
  GenerationTable retained(kSize, 4);
  const GenerationTable current(kSize, 4);
  Bitmap changed = random_bits(random, kSize, 0.001);
  changed.set(kSize - 1);
  retained.set_written(changed, 5);
  Bitmap out(kSize);
  find_not_reusable(retained, current, out, GetParam());
  EXPECT_EQ(out, changed);
}

TEST_P(Compare, UnknownEqualsNothingNotEvenItself) {
  const GenerationTable unknown(1000, kUnknownGeneration);
  Bitmap out(1000);
  find_not_reusable(unknown, unknown, out, GetParam());
  EXPECT_EQ(out.count(), 1000U);
}

std::string name_of(const testing::TestParamInfo<Isa>& isa) {
  constexpr const char* kNames[] = {"plain", "avx2", "avx512"};
  return kNames[static_cast<std::size_t>(isa.param)];
}

INSTANTIATE_TEST_SUITE_P(Isa, Compare, testing::Values(Isa::kPlain, Isa::kAvx2, Isa::kAvx512), name_of);

TEST(CompareChoice, TakesTheBestThatTheCpuHas) {
  for (const Isa isa : {Isa::kPlain, Isa::kAvx2, Isa::kAvx512}) {
    if (isa_supported(isa)) {
      EXPECT_GE(isa_best(), isa);
    } else {
      EXPECT_NE(isa_best(), isa);
    }
  }
}

}  // namespace
}  // namespace godwit::pages
