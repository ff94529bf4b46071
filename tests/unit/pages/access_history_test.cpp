// Goal: heat is what the last scans say, for any pattern. Method: a model that keeps the bitmaps and counts.

#include "dataplane/pages/access_history.h"

#include <gtest/gtest.h>

#include <deque>
#include <numeric>

#include "tests/unit/pages/random_bits.h"

namespace godwit::pages {
namespace {

constexpr std::uint64_t kPages = 1000;  // the last word is not full

/// The last scans, newest first.
using Model = std::deque<std::vector<bool>>;

unsigned heat_by(const Model& scans, PageNumber page) {
  unsigned heat = 0;
  for (std::size_t age = 0; age < scans.size(); ++age) {
    heat += scans[age][page] ? 128U >> age : 0U;
  }
  return heat;
}

TEST(AccessHistory, HeatIsTheDecayedCountOfTheLastScans) {
  std::mt19937_64 random(1);
  AccessHistory history(kPages);
  Model scans;
  for (int scan = 0; scan < 40; ++scan) {
    std::vector<bool> accessed(kPages);
    Bitmap half(kPages);
    std::vector<std::uint64_t> words(3);
    const std::uint64_t density = random() % 100;
    for (PageNumber page = 0; page < kPages; ++page) {
      if (random() % 100 >= density) {
        continue;
      }
      accessed[page] = true;
      // By each of the three ways, some by more than one.
      if (page >= 256 && page < 448) {
        words[(page - 256) / 64] |= std::uint64_t{1} << page % 64;
      } else if (page % 3 == 0) {
        history.note(page);
      }
      if (page % 3 != 0 || page % 2 == 0) {
        half.set(page);
      }
    }
    for (PageNumber page = 256; page < 448; ++page) {
      half.clear(page);
    }
    history.note(half);
    history.note(256, words);
    EXPECT_EQ(history.end_scan(), static_cast<std::uint64_t>(std::count(accessed.begin(), accessed.end(), true)));
    scans.push_front(std::move(accessed));
    scans.resize(std::min<std::size_t>(scans.size(), AccessHistory::kScans));
    for (PageNumber page = 0; page < kPages; ++page) {
      ASSERT_EQ(history.heat(page), heat_by(scans, page)) << "page " << page << " after scan " << scan;
    }
  }
  EXPECT_EQ(history.scans(), 40U);
}

TEST(AccessHistory, CellsAreMeansOfEqualPartsAndOnlyIdleOnesAreZero) {
  AccessHistory history(kPages);
  history.note(999);
  for (PageNumber page = 100; page < 200; ++page) {
    history.note(page);
  }
  history.end_scan();
  const auto tenths = heat_cells(history, 10);
  EXPECT_EQ(tenths, (std::vector<std::uint8_t>{0, 128, 0, 0, 0, 0, 0, 0, 0, 2})) << "128 in 100 pages, rounded up";
  const auto single = heat_cells(history, 1);
  EXPECT_EQ(single, (std::vector<std::uint8_t>{13}));
  const auto each = heat_cells(history, 4096);
  ASSERT_EQ(each.size(), kPages) << "no more parts than pages";
  EXPECT_EQ(std::accumulate(each.begin(), each.end(), 0U), 101U * 128U);
  for (std::uint64_t cells = 1; cells <= kPages; cells += 7) {
    const auto map = heat_cells(history, cells);
    ASSERT_EQ(map.size(), cells);
    EXPECT_NE(map.back(), 0) << cells << " cells: the last one has page 999";
  }
}

}  // namespace
}  // namespace godwit::pages
