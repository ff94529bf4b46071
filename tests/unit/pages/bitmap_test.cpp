#include "dataplane/pages/bitmap.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/unit/pages/random_bits.h"

namespace godwit::pages {
namespace {

/// The same operations, one bool at a time.
struct Model {
  std::vector<bool> bits;

  void assign(PageNumber first, std::uint64_t count, bool value) {
    for (PageNumber page = first; page < first + count; ++page) bits[page] = value;
  }
  PageNumber next(PageNumber from, bool value) const {
    while (from < bits.size() && bits[from] != value) ++from;
    return std::min<PageNumber>(from, bits.size());
  }
};

void expect_same(const Bitmap& bitmap, const Model& model) {
  ASSERT_EQ(bitmap.size(), model.bits.size());
  std::uint64_t count = 0;
  for (PageNumber page = 0; page < bitmap.size(); ++page) {
    ASSERT_EQ(bitmap.test(page), model.bits[page]) << page;
    count += model.bits[page] ? 1U : 0U;
  }
  EXPECT_EQ(bitmap.count(), count);
  EXPECT_EQ(bitmap.any(), count != 0);
  if (bitmap.size() % 64 != 0) {
    EXPECT_EQ(bitmap.words().back() >> (bitmap.size() % 64), 0U) << "bits beyond the size";
  }
}

TEST(Bitmap, RangesAndSearchesMatchABoolAPage) {
  Random random(1);
  for (const std::uint64_t size : std::initializer_list<std::uint64_t>{1, 63, 64, 65, 128, 200, 1000}) {
    Bitmap bitmap(size);
    Model model{std::vector<bool>(size)};
    for (int step = 0; step < 200; ++step) {
      const PageNumber first = below(random, size + 1);
      const std::uint64_t count = below(random, size - first + 1);
      const bool value = below(random, 2) == 0;
      value ? bitmap.set_range(first, count) : bitmap.clear_range(first, count);
      model.assign(first, count, value);
      ASSERT_NO_FATAL_FAILURE(expect_same(bitmap, model));
      for (PageNumber from = 0; from <= size; from += 1 + below(random, 9)) {
        ASSERT_EQ(bitmap.next_set(from), model.next(from, true));
        ASSERT_EQ(bitmap.next_clear(from), model.next(from, false));
      }
    }
  }
}

TEST(Bitmap, SetOperationsMatchABoolAPage) {
  Random random(2);
  for (const std::uint64_t size : std::initializer_list<std::uint64_t>{1, 64, 130, 777}) {
    const Bitmap a = random_bits(random, size, 0.4);
    const Bitmap b = random_bits(random, size, 0.6);
    Bitmap either = a;
    Bitmap both = a;
    Bitmap only = a;
    either |= b;
    both &= b;
    only.and_not(b);
    for (PageNumber page = 0; page < size; ++page) {
      EXPECT_EQ(either.test(page), a.test(page) || b.test(page));
      EXPECT_EQ(both.test(page), a.test(page) && b.test(page));
      EXPECT_EQ(only.test(page), a.test(page) && !b.test(page));
    }
  }
}

TEST(Bitmap, RunsAreTheBitmap) {
  Random random(3);
  const Bitmap bitmap = random_runs(random, 5000, 7, 20);
  Bitmap rebuilt(bitmap.size());
  PageNumber last_end = 0;
  bool first = true;
  bitmap.for_each_run([&](PageNumber at, std::uint64_t count) {
    EXPECT_GT(count, 0U);
    EXPECT_TRUE(first || at > last_end) << "runs in order, a clear bit between";
    first = false;
    last_end = at + count;
    rebuilt.set_range(at, count);
  });
  EXPECT_EQ(rebuilt, bitmap);
}

TEST(Bitmap, AllOfASizeThatEndsWithinAWord) {
  Bitmap bitmap(70);
  bitmap.set_all();
  EXPECT_EQ(bitmap.count(), 70U);
  EXPECT_EQ(bitmap.next_clear(0), 70U);
  bitmap.clear_all();
  EXPECT_FALSE(bitmap.any());
}

TEST(Bitmap, Empty) {
  Bitmap bitmap;
  bitmap.set_all();
  EXPECT_EQ(bitmap.next_set(0), 0U);
  EXPECT_FALSE(bitmap.any());
}

}  // namespace
}  // namespace godwit::pages
