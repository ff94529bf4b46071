#include "dataplane/placement/page_directory.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace godwit::placement::test {
namespace {

Holders holders(std::initializer_list<SubId> subs) { return *Holders::of(std::vector<SubId>(subs)); }

TEST(Holders, AreAListWithoutRepetition) {
  EXPECT_FALSE(Holders::of(std::vector<SubId>{}));
  EXPECT_FALSE(Holders::of(std::vector<SubId>{1, 2, 1}));
  EXPECT_FALSE(Holders::of(std::vector<SubId>(Holders::kCountMax + 1, 1)));
  EXPECT_TRUE(holders({3, 1}).contains(1));
  EXPECT_FALSE(holders({3, 1}).contains(0)) << "room that is not used names nobody";
  EXPECT_NE(holders({3, 1}), holders({1, 3})) << "the order in which they are asked";
}

TEST(PageDirectory, SaysWhatWasSaidLast) {
  PageDirectory directory(10);
  EXPECT_EQ(directory.count(Place::kResident), 10U);
  ASSERT_TRUE(directory.set_held(2, 4, holders({7})));
  ASSERT_TRUE(directory.set_held(3, 1, holders({7, 9})));
  directory.set_zero(5, 2);
  directory.set_resident(2, 1);
  EXPECT_EQ(directory.place(2), Place::kResident);
  EXPECT_EQ(directory.holders(3), holders({7, 9}));
  EXPECT_EQ(directory.holders(4), holders({7}));
  EXPECT_EQ(directory.place(6), Place::kZero);
  EXPECT_EQ(directory.count(Place::kHeld), 2U);
  EXPECT_EQ(directory.count(Place::kZero), 2U);
  EXPECT_EQ(directory.count_held_by(7), 2U);
  EXPECT_EQ(directory.count_held_by(9), 1U);
  const pages::Bitmap gone = directory.held_only_by(7);
  EXPECT_EQ(gone.count(), 1U);
  EXPECT_TRUE(gone.test(4));
}

TEST(PageDirectory, AgreesWithANaiveOneOverRandomChanges) {
  std::mt19937_64 random(5);
  constexpr std::uint64_t kPages = 300;
  PageDirectory directory(kPages);
  std::map<pages::PageNumber, Holders> held;
  std::vector<Place> places(kPages, Place::kResident);
  for (int step = 0; step < 3000; ++step) {
    const std::uint64_t first = random() % kPages;
    const std::uint64_t count = random() % std::min<std::uint64_t>(20, kPages - first + 1);
    const auto kind = static_cast<Place>(random() % 3);
    const auto a = static_cast<SubId>(random() % 5);
    const Holders list = random() % 2 != 0 ? holders({a}) : holders({a, static_cast<SubId>(a + 1)});
    if (kind == Place::kHeld) {
      ASSERT_TRUE(directory.set_held(first, count, list));
    }
    if (kind == Place::kZero) directory.set_zero(first, count);
    if (kind == Place::kResident) directory.set_resident(first, count);
    for (std::uint64_t page = first; page < first + count; ++page) {
      places[page] = kind;
      held.insert_or_assign(page, list);
    }
  }
  std::uint64_t seen = 0;
  std::uint64_t by_two = 0;
  directory.for_each_run(0, kPages, [&](std::uint64_t first, std::uint64_t count, Place place, const Holders* list) {
    EXPECT_EQ(first, seen) << "in order, without a gap";
    for (; seen < first + count; ++seen) {
      ASSERT_EQ(place, places[seen]) << seen;
      ASSERT_EQ(list != nullptr, place == Place::kHeld);
      if (list != nullptr) {
        ASSERT_EQ(*list, held.at(seen));
      }
      by_two += list != nullptr && list->contains(2) ? 1U : 0U;
    }
  });
  EXPECT_EQ(seen, kPages);
  EXPECT_EQ(directory.count_held_by(2), by_two);
  std::uint64_t iterated = 0;
  directory.for_each_held_by(2, [&](std::uint64_t, std::uint64_t count) { iterated += count; });
  EXPECT_EQ(iterated, by_two);
  const auto again = PageDirectory::decode(directory.encode(), kPages);
  ASSERT_TRUE(again);
  EXPECT_EQ(*again, directory);
}

TEST(PageDirectory, TakesTwoBytesAPage) {
  constexpr std::uint64_t kPages = 1U << 20;
  PageDirectory directory(kPages);
  for (std::uint64_t page = 0; page < kPages; ++page) {
    ASSERT_TRUE(directory.set_held(page, 1, Holders::of(static_cast<SubId>(page % 16))));
  }
  EXPECT_LE(directory.bytes(), kPages * 2 + 8192);
}

TEST(PageDirectory, ListsThatNobodyNamesMakeRoomForOthers) {
  PageDirectory directory(PageDirectory::kListsMax + 1);
  for (std::uint64_t page = 0; page < PageDirectory::kListsMax; ++page) {
    ASSERT_TRUE(directory.set_held(page, 1, Holders::of(static_cast<SubId>(page))));
  }
  const Holders one_more = holders({1, 2});
  EXPECT_FALSE(directory.set_held(PageDirectory::kListsMax, 1, one_more));
  EXPECT_EQ(directory.place(PageDirectory::kListsMax), Place::kResident) << "nothing has changed";
  EXPECT_TRUE(directory.set_held(PageDirectory::kListsMax, 1, holders({1})));
  directory.set_resident(5, 1);
  EXPECT_TRUE(directory.set_held(PageDirectory::kListsMax, 1, one_more));
  EXPECT_EQ(directory.holders(PageDirectory::kListsMax), one_more);
}

TEST(PageDirectory, AListThatIsSetAgainOverItselfStays) {
  PageDirectory directory(4);
  ASSERT_TRUE(directory.set_held(0, 4, holders({1})));
  ASSERT_TRUE(directory.set_held(0, 4, holders({1})));
  EXPECT_EQ(directory.count_held_by(1), 4U);
  EXPECT_EQ(directory.holders(3), holders({1}));
}

TEST(PageDirectory, NoDamagedSnapshotIsBelieved) {
  PageDirectory directory(100);
  ASSERT_TRUE(directory.set_held(10, 20, holders({4, 2})));
  directory.set_zero(50, 7);
  const std::vector<std::byte> good = directory.encode();
  ASSERT_TRUE(PageDirectory::decode(good, 100));
  EXPECT_FALSE(PageDirectory::decode(good, 101)) << "of another VM";
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::vector<std::byte> bad = good;
    bad[at] ^= std::byte{0x41};
    EXPECT_FALSE(PageDirectory::decode(bad, 100)) << at;
    EXPECT_FALSE(PageDirectory::decode(std::span(good).first(at), 100)) << at;
  }
}

}  // namespace
}  // namespace godwit::placement::test
