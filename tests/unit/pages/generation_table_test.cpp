#include "dataplane/pages/generation_table.h"

#include <gtest/gtest.h>

#include <utility>

#include "tests/unit/pages/random_bits.h"

namespace godwit::pages {
namespace {

TEST(GenerationTable, IsAlignedPaddedAndFilled) {
  for (const std::uint64_t size : std::initializer_list<std::uint64_t>{1, 63, 64, 65, 1000, 3 << 20}) {
    GenerationTable table(size, 7);
    const auto address = reinterpret_cast<std::uintptr_t>(table.entries().data());
    EXPECT_EQ(address % 64, 0U);
    EXPECT_EQ(table.size(), size);
    EXPECT_EQ(table.count(7), size);
    for (std::uint64_t i = size; i % 64 != 0; ++i) EXPECT_EQ(table.entries().data()[i], 0U) << "padding";
  }
}

TEST(GenerationTable, SetWrittenTouchesExactlyTheWrittenPages) {
  Random random(1);
  const Bitmap written = random_runs(random, 10'000, 5, 9);
  GenerationTable table(written.size(), 3);
  table.set_written(written, 8);
  for (PageNumber page = 0; page < table.size(); ++page) ASSERT_EQ(table.get(page), written.test(page) ? 8U : 3U);
}

TEST(GenerationTable, SetFromTakesExactlyTheNamedPages) {
  Random random(2);
  const Bitmap named = random_bits(random, 1000, 0.3);
  GenerationTable table(1000, 1);
  GenerationTable from(1000);
  for (PageNumber page = 0; page < 1000; ++page) from.set(page, static_cast<Generation>(page + 10));
  table.set_from(named, from);
  for (PageNumber page = 0; page < 1000; ++page) ASSERT_EQ(table.get(page), named.test(page) ? page + 10 : 1U);
}

TEST(GenerationTable, CopiesAreDeepAndMovesLeaveNothing) {
  GenerationTable table(100, 1);
  GenerationTable copy = table;
  EXPECT_EQ(copy, table);
  copy.set(50, 2);
  EXPECT_EQ(table.get(50), 1U);
  EXPECT_NE(copy, table);
  const GenerationTable moved = std::move(copy);
  EXPECT_EQ(moved.get(50), 2U);
  EXPECT_EQ(copy.size(), 0U);  // NOLINT(bugprone-use-after-move): that is what is tested
  table = moved;
  EXPECT_EQ(table, moved);
}

TEST(GenerationTable, Empty) {
  GenerationTable table(0);
  table.fill(9);
  EXPECT_EQ(table, GenerationTable());
}

}  // namespace
}  // namespace godwit::pages
