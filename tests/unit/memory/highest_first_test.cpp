// Goal: the highest pages that are here leave first, as many as asked for. Method: bitmaps.

#include "dataplane/memory/highest_first.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace godwit::memory::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<pages::PageNumber> chosen(const pages::Bitmap& here, std::uint64_t count) {
  std::vector<pages::PageNumber> out;
  HighestFirst().choose(here, count, out);
  return out;
}

TEST(HighestFirst, ChoosesFromTheTopDown) {
  pages::Bitmap here(200);
  for (const pages::PageNumber page : {0U, 63U, 64U, 130U, 199U}) {
    here.set(page);
  }
  EXPECT_THAT(chosen(here, 3), ElementsAre(199, 130, 64));
  EXPECT_THAT(chosen(here, 9), ElementsAre(199, 130, 64, 63, 0));
}

TEST(HighestFirst, NothingHereIsNothingChosen) { EXPECT_THAT(chosen(pages::Bitmap(200), 3), IsEmpty()); }

}  // namespace
}  // namespace godwit::memory::test
