#include "dataplane/placement/rebuild.h"

#include <gtest/gtest.h>

#include <set>

namespace godwit::placement::test {
namespace {

pages::Bitmap set_of(std::uint64_t size, std::initializer_list<pages::PageNumber> pages) {
  pages::Bitmap set(size);
  for (const pages::PageNumber page : pages) set.set(page);
  return set;
}

TEST(Rebuild, TheNewestVersionCountsAndWhatIsHereNeedsNobody) {
  const Rebuilt rebuilt = rebuild({{.sub = 1, .page = 0, .version = 5},
                                   {.sub = 2, .page = 0, .version = 9},
                                   {.sub = 3, .page = 0, .version = 9},
                                   {.sub = 1, .page = 1, .version = 12},
                                   {.sub = 1, .page = 2, .version = 7, .zero = true},
                                   {.sub = 1, .page = 99, .version = 3}},
                                  set_of(5, {0, 2, 3}));
  EXPECT_EQ(rebuilt.directory.holders(0), *Holders::of(std::vector<SubId>{2, 3}));
  EXPECT_EQ(rebuilt.directory.place(1), Place::kResident);
  EXPECT_EQ(rebuilt.directory.place(2), Place::kZero);
  EXPECT_EQ(rebuilt.directory.place(4), Place::kResident);
  EXPECT_EQ(rebuilt.lost, set_of(5, {3}));
  EXPECT_EQ(rebuilt.version_newest, 12U);
  const std::vector<Listed> stale{
      {.sub = 1, .page = 0, .version = 5}, {.sub = 1, .page = 1, .version = 12}, {.sub = 1, .page = 99, .version = 3}};
  EXPECT_EQ(rebuilt.stale, stale);
  const std::vector<Listed> kept{{.sub = 2, .page = 0, .version = 9},
                                 {.sub = 3, .page = 0, .version = 9},
                                 {.sub = 1, .page = 2, .version = 7, .zero = true}};
  EXPECT_EQ(rebuilt.kept, kept);
}

TEST(Rebuild, WhoTellsTwiceHoldsOnce) {
  const Rebuilt rebuilt =
      rebuild({{.sub = 4, .page = 0, .version = 2}, {.sub = 4, .page = 0, .version = 2}}, set_of(1, {0}));
  EXPECT_EQ(rebuilt.directory.holders(0), Holders::of(4));
  EXPECT_EQ(rebuilt.stale.size(), 1U);
}

class Fake final : public World {
 public:
  std::set<pages::PageNumber> main, zero;
  std::set<std::pair<SubId, pages::PageNumber>> subs;
  [[nodiscard]] bool main_has_last(pages::PageNumber page) const override { return main.contains(page); }
  [[nodiscard]] bool sub_has_last(SubId sub, pages::PageNumber page) const override {
    return subs.contains({sub, page});
  }
  [[nodiscard]] bool last_is_zero(pages::PageNumber page) const override { return zero.contains(page); }
};

TEST(FirstMisplaced, FindsEachKindOfMistake) {
  PageDirectory directory(3);
  ASSERT_TRUE(directory.set_held(1, 1, *Holders::of(std::vector<SubId>{1, 2})));
  directory.set_zero(2, 1);
  Fake right;
  right.main = {0};
  right.zero = {2};
  right.subs = {{1, 1}, {2, 1}};
  EXPECT_EQ(first_misplaced(directory, right), 3U);
  Fake wrong = right;
  wrong.main.clear();
  EXPECT_EQ(first_misplaced(directory, wrong), 0U);
  wrong = right;
  wrong.subs.erase({2, 1});
  EXPECT_EQ(first_misplaced(directory, wrong), 1U) << "one of two holders has an old one";
  wrong = right;
  wrong.main.insert(1);
  EXPECT_EQ(first_misplaced(directory, wrong), 1U) << "held, and at the main host";
  wrong = right;
  wrong.zero.clear();
  EXPECT_EQ(first_misplaced(directory, wrong), 2U);
}

}  // namespace
}  // namespace godwit::placement::test
