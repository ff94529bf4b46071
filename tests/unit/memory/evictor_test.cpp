// Eviction from a process of its own, and from this one, with each tracker that can: nothing is lost, whoever touches
// what at which moment.

#include <sys/mman.h>

#include <cstring>

#include "tests/unit/memory/counters.h"
#include "tests/unit/memory/own_ram.h"
#include "tests/unit/memory/paged_guest.h"
#include "tests/unit/memory/split_guest.h"

namespace godwit::memory::test {
namespace {

constexpr std::uint64_t kPage = pages::kPageSize;

/// Until the time is over and so many pages have left, `round` again and again.
template <class F>
void for_torture_time(const Evictor& evictor, std::uint64_t evicted_least, F round) {
  for (const auto until = std::chrono::steady_clock::now() + torture_time();
       (std::chrono::steady_clock::now() < until || evictor.stats().evicted_pages < evicted_least) &&
       !testing::Test::HasFatalFailure();) {
    round();
  }
}

class EvictorTest : public testing::TestWithParam<TrackerKind> {
 protected:
  void SetUp() override {
    if (const auto why = g_.cannot()) {
      GTEST_SKIP() << *why;
    }
  }

  /// All pages hold their pattern and are unwritten.
  void start(SplitLimits limits) {
    ASSERT_NO_FATAL_FAILURE(g_.start());
    for (pages::PageNumber page = 0; page < g_.ram->page_count(); ++page) {
      const std::vector<std::byte> pattern = pattern_of(page);
      const PageWrite write{page, 0, pattern};
      ASSERT_TRUE(g_.ram->write({&write, 1}));
    }
    const auto armed = g_.start_tracker();
    ASSERT_TRUE(armed) << armed.error().text;
    split_ = std::make_unique<SplitGuest>(*g_.ram, *g_.tracker, limits);
    ASSERT_NO_FATAL_FAILURE(split_->start());
  }
  [[nodiscard]] std::uint64_t all() const { return g_.ram->page_count(); }

  PagedGuest g_{GetParam(), false};
  std::unique_ptr<SplitGuest> split_;  // goes before the guest
};

INSTANTIATE_TEST_SUITE_P(All, EvictorTest, testing::Values(TrackerKind::kPagemapScan, TrackerKind::kWriteProtectEvents),
                         [](const auto& info_of) {
                           std::string name(memory::name_of(info_of.param));
                           std::erase(name, '-');
                           return name;
                         });

constexpr SplitLimits kNoLimits{.budget_pages = 1U << 20, .high_pages = 0, .low_pages = 0};

TEST_P(EvictorTest, AllGoesAndComesBackAsItWas) {
  ASSERT_NO_FATAL_FAILURE(start(kNoLimits));
  split_->evict_all();
  EXPECT_EQ(split_->resident_pages(), 0U);
  const EvictorStats stats = split_->evictor->stats();
  EXPECT_EQ(stats.evicted_pages, all());
  EXPECT_EQ(stats.zero_pages, all() / 5);
  EXPECT_EQ(split_->pager->missing_count(), all() - all() / 5) << "zero pages are nowhere, and need nobody";
  split_->begin_serving();
  g_.guest->begin_workers(3);
  EXPECT_TRUE(g_.guest->finish());
  EXPECT_TRUE(g_.guest->kernel_reads_pattern(1));
  split_->stop();
  EXPECT_EQ(split_->pager->missing_count(), 0U);
  pages::Bitmap expected(all());
  for (pages::PageNumber page = 0; page < all(); page += 3) {
    expected.set(page);
  }
  EXPECT_EQ(g_.collect(), expected) << "a page that left and came back is as written as it was";
}

TEST_P(EvictorTest, WhatIsSetApartLeavesAndNothingElse) {
  ASSERT_NO_FATAL_FAILURE(start(kNoLimits));
  split_->evict_once();
  split_->confirm_all();
  const pages::Bitmap missing = split_->pager->missing();
  const std::uint64_t stay = all() / 2;
  const auto apart = split_->evictor->set_apart(stay);
  ASSERT_TRUE(apart) << apart.error().text;
  EXPECT_FALSE(pages::Bitmap(missing).and_not(*apart).any()) << "what has left may leave again";
  EXPECT_EQ(split_->resident_pages() + missing.count(), stay + apart->count());
  split_->evict_all();
  EXPECT_EQ(split_->resident_pages(), stay);
  EXPECT_FALSE(pages::Bitmap(split_->pager->missing()).and_not(*apart).any());
  split_->evictor->any_may_leave();
  split_->evict_all();
  EXPECT_EQ(split_->resident_pages(), 0U);
}

TEST_P(EvictorTest, AWrittenPageStaysWrittenAwayAndBack) {
  ASSERT_NO_FATAL_FAILURE(start(kNoLimits));
  split_->begin_serving();
  pages::Bitmap expected(all());
  for (const pages::PageNumber page : {6U, 700U}) {
    g_.guest->write(page);
    expected.set(page);
  }
  g_.guest->fill(9, 0);  // written, and zero: leaves without a holder
  expected.set(9);
  g_.guest->write(11);
  split_->evict_all();
  for (const pages::PageNumber page : {6U, 7U, 9U, 700U}) {
    g_.guest->read(page);
  }
  expected.set(11);
  EXPECT_EQ(g_.collect(), expected) << "6, 9 and 700 are back, 11 is away, 7 was only read";
  g_.guest->read(11);
  EXPECT_FALSE(g_.collect().any());
  g_.guest->write(7);
  expected.clear_all();
  expected.set(7);
  EXPECT_EQ(g_.collect(), expected);
}

TEST_P(EvictorTest, WhatWasPulledAndLeftAgainIsNotPulledOnceMore) {
  ASSERT_NO_FATAL_FAILURE(start(kNoLimits));
  split_->evict_all();
  pages::Bitmap pulled(all());
  pulled.set(6);
  pulled.set(7);
  split_->pager->await(pulled);
  EXPECT_EQ(split_->pager->awaited_count(), 2U);
  const std::vector<std::byte> early = pattern_of(6);
  const auto place = [&](pages::PageNumber page) {
    std::vector<PageRange> placed;
    const PageWrite write{page, 0, early};
    EXPECT_TRUE(split_->pager->place(0, {&write, 1}, &placed, DemandPager::Only::kAwaited));
    return !placed.empty();
  };
  EXPECT_FALSE(place(8)) << "a store has it";
  EXPECT_TRUE(place(6));
  split_->begin_serving();
  g_.guest->write(6);
  split_->stop();
  const std::vector<std::byte> last = split_->content(6);
  EXPECT_NE(last, early);
  split_->evict_all();
  ASSERT_TRUE(split_->pager->is_missing(6));
  EXPECT_FALSE(place(6)) << "what is on its way here is older than what has left";
  std::vector<PageRange> zeroed;
  EXPECT_TRUE(split_->pager->place_zero(0, {6, 3}, &zeroed, DemandPager::Only::kAwaited));
  ASSERT_EQ(zeroed.size(), 1U);
  EXPECT_EQ(zeroed[0].first, 7U);
  EXPECT_EQ(zeroed[0].count, 1U);
  EXPECT_EQ(split_->pager->awaited_count(), 0U);
  EXPECT_EQ(split_->content(6), last);
}

TEST_P(EvictorTest, OnTheWayOutAPageIsAnsweredFromHere) {
  ASSERT_NO_FATAL_FAILURE(start(kNoLimits));
  const EvictedBatch batch = split_->evict_once();
  ASSERT_FALSE(batch.pages.empty());
  split_->begin_serving();
  const LeavingPage& page = batch.pages.front();
  EXPECT_TRUE(g_.guest->holds_pattern(page.page));
  split_->stop();
  EXPECT_EQ(split_->from_leaving, 1U);
  EXPECT_FALSE(split_->leaving->forget(page.page, page.version)) << "the holder's copy is worth nothing";
}

TEST_P(EvictorTest, WithoutRoomForPagesOnTheirWayNothingGoes) {
  SplitLimits limits = kNoLimits;
  limits.slots = 100;
  ASSERT_NO_FATAL_FAILURE(start(limits));
  while (split_->leaving->free() > 0) {
    ASSERT_FALSE(split_->evict_once().nothing_left);
  }
  const std::uint64_t before = split_->resident_pages();
  const EvictedBatch none = split_->evict_once();
  EXPECT_TRUE(none.pages.empty() && !none.nothing_left);
  EXPECT_EQ(split_->resident_pages(), before);
  split_->confirm_all();
  EXPECT_EQ(split_->leaving->free(), 100U);
  EXPECT_FALSE(split_->evict_once().pages.empty());
}

TEST_P(EvictorTest, NothingIsPlacedBeyondTheBudget) {
  ASSERT_NO_FATAL_FAILURE(start({.budget_pages = 500, .high_pages = 400, .low_pages = 300}));
  split_->evict_all();
  std::vector<std::byte> zeros(kPage);
  std::uint64_t placed = 0;
  for (pages::PageNumber page = 0; page < all(); ++page) {
    const PageWrite write{page, 0, zeros};
    const auto done = split_->pager->place(0, {&write, 1});
    ASSERT_TRUE(done) << done.error().text;
    if (!*done) {
      EXPECT_TRUE(split_->pager->wants(page)) << "it may come again";
      break;
    }
    placed = split_->resident_pages();
  }
  EXPECT_EQ(placed, 500U);
  // Zeros of a hole take room, too: who waits for them is answered when there is some.
  g_.guest->begin_read(4);
  while (!split_->pager->has_unanswered()) {
    split_->serve_once();
  }
  EXPECT_EQ(split_->resident_pages(), 500U);
  static_cast<void>(split_->evict_once());
  split_->begin_serving();
  EXPECT_TRUE(g_.guest->finish());
}

TEST_P(EvictorTest, WatermarksSayWhenAndHowFar) {
  ASSERT_NO_FATAL_FAILURE(start({.budget_pages = 2000, .high_pages = 1500, .low_pages = 1000}));
  std::uint64_t batches = 0;
  while (*split_->evictor->wanted()) {
    static_cast<void>(split_->evict_once());
    split_->confirm_all();
    ++batches;
  }
  EXPECT_GT(batches, 0U);
  EXPECT_LE(split_->resident_pages(), 1000U);
  EXPECT_GT(split_->resident_pages() + LeavingPages::kBatchPagesMax, 1000U);
  split_->begin_serving();
  for (pages::PageNumber page = 0; split_->resident_pages() < 1400; ++page) {
    g_.guest->read(page);
  }
  EXPECT_FALSE(*split_->evictor->wanted()) << "above the low one only";
}

TEST_P(EvictorTest, APageGivenBackBeforeOrAfterIsZeroAndWritten) {
  g_.balloon = true;
  ASSERT_NO_FATAL_FAILURE(start(kNoLimits));
  split_->begin_serving();
  g_.guest->give_back(20, 4);
  g_.tracker->userfaults()->reader().settle();
  EXPECT_FALSE(split_->pager->hold(21)) << "its removal might be under way";
  split_->evict_all();
  EXPECT_TRUE(split_->pager->is_missing(40));
  g_.guest->give_back(40, 1);
  g_.tracker->userfaults()->reader().settle();
  EXPECT_FALSE(split_->pager->is_missing(40));
  g_.guest->read(40);
  EXPECT_EQ(split_->content(40), std::vector<std::byte>(kPage)) << "whatever its holder has";
  const pages::Bitmap written = g_.collect();
  EXPECT_TRUE(written.test(20) && written.test(23) && written.test(40));
  EXPECT_FALSE(written.test(19) || written.test(24));
}

TEST_P(EvictorTest, UnderWritersAndABalloonTheCopyIsTheGuest) {
  g_.balloon = true;
  ASSERT_NO_FATAL_FAILURE(start({.budget_pages = 900, .high_pages = 800, .low_pages = 700}));
  split_->begin();
  std::vector<std::byte> copied(all() * kPage);
  for (pages::PageNumber page = 0; page < all(); ++page) {
    std::ranges::copy(pattern_of(page), copied.begin() + static_cast<std::ptrdiff_t>(page * kPage));
  }
  g_.guest->start_writers(2, true);
  for_torture_time(*split_->evictor, all(), [&] { split_->copy_written(copied); });
  g_.guest->stop_writers();
  split_->stop();
  split_->copy_written(copied);
  for (pages::PageNumber page = 0; page < all(); ++page) {
    const auto mine = std::span(copied).subspan(page * kPage, kPage);
    ASSERT_TRUE(std::ranges::equal(split_->content(page), mine)) << page;
  }
}

TEST(EvictorTorture, NoWriteIsLostAndTheResidentSetKeepsWithinItsBudget) {
  auto own = OwnRam::on_tmpfs(16U << 20);
  ASSERT_TRUE(own);
  auto ram = GuestRam::open(own->region_files());
  ASSERT_TRUE(ram) << ram.error().text;
  std::memset(own->data(), 0, ram->page_count() * kPage);
  const TrackerKind kind = TrackerKind::kPagemapScan;
  auto chosen = choose_tracker(own->tracker_request(*ram), &kind);
  if (!chosen) {
    GTEST_SKIP() << chosen.error().text;
  }
  ASSERT_TRUE(chosen->tracker->arm());
  const std::uint64_t budget = ram->page_count() / 4;
  SplitGuest split(*ram, *chosen->tracker,
                   {.budget_pages = budget, .high_pages = budget - 100, .low_pages = budget - 200});
  ASSERT_NO_FATAL_FAILURE(split.start());
  split.evict_all();
  std::vector<std::byte> copied(ram->page_count() * kPage);
  split.begin();
  Counters counters(own->data(), ram->page_count(), 2);
  counters.begin();
  for_torture_time(*split.evictor, 2 * ram->page_count(), [&] { split.copy_written(copied); });
  counters.stop();
  split.stop();
  split.copy_written(copied);
  std::uint64_t wrong = 0;
  std::uint64_t wrong_copies = 0;
  for (pages::PageNumber page = 0; page < ram->page_count(); ++page) {
    const std::vector<std::byte> content = split.content(page);
    std::vector<std::byte> expected(kPage);
    counters.write_to(page, expected);
    wrong += content == expected ? 0U : 1U;
    wrong_copies += std::ranges::equal(content, std::span(copied).subspan(page * kPage, kPage)) ? 0U : 1U;
  }
  const EvictorStats stats = split.evictor->stats();
  std::printf(
      "evictions %lu, refetched %lu, of it on their way %lu, additions %lu, pages copied %lu, resident at most %lu of "
      "%lu\n",
      stats.evicted_pages, split.from_leaving + split.from_store, split.from_leaving, counters.additions(),
      split.written_pages, split.resident_most, budget);
  EXPECT_EQ(counters.wrong_met(), 0U) << "counters";
  EXPECT_EQ(wrong, 0U) << "pages";
  EXPECT_EQ(wrong_copies, 0U) << "pages that changed and were not told of as written";
  EXPECT_GT(split.from_leaving, 0U);
  EXPECT_LE(split.resident_most, budget + LeavingPages::kBatchPagesMax);
}

TEST(EvictorTmpfs, PagesOfAHugePageKeepTheirContent) {
  auto own = OwnRam::on_huge_tmpfs(2 * kHugePageSize);
  if (!own) {
    GTEST_SKIP() << "no tmpfs of huge pages can be made here";
  }
  auto ram = GuestRam::open(own->region_files());
  ASSERT_TRUE(ram) << ram.error().text;
  const TrackerKind kind = TrackerKind::kPagemapScan;
  auto chosen = choose_tracker(own->tracker_request(*ram), &kind);
  if (!chosen) {
    GTEST_SKIP() << chosen.error().text;
  }
  ASSERT_TRUE(chosen->tracker->arm());
  SplitGuest split(*ram, *chosen->tracker, kNoLimits);
  ASSERT_NO_FATAL_FAILURE(split.start());
  for (int batch = 0; batch < 8; ++batch) {
    split.evict_once();
  }
  EXPECT_GE(split.evictor->stats().huge_pages, LeavingPages::kBatchPagesMax);
  const std::vector<std::byte> sevens(kPage, std::byte{7});
  for (pages::PageNumber page = 0; page < ram->page_count(); ++page) {
    ASSERT_TRUE(split.content(page) == sevens) << page;
  }
}

TEST(EvictorRefusal, WhatCannotBeEvictedIsTold) {
  PagedGuest g(TrackerKind::kHashes, false);
  ASSERT_NO_FATAL_FAILURE(g.start());
  ASSERT_TRUE(g.start_tracker());
  SplitGuest split(*g.ram, *g.tracker, kNoLimits);
  split.policy = std::make_unique<ColdestFirst>(g.ram->page_count());
  auto pager = DemandPager::create(split.pager_request());
  ASSERT_TRUE(pager);
  split.pager = std::move(*pager);
  auto leaving = LeavingPages::create(split.leaving_file, split.of(), 64, std::move(*PinPipe::make()), 1);
  ASSERT_TRUE(leaving);
  split.leaving = std::make_unique<LeavingPages>(std::move(*leaving));
  const auto evictor = split.make_evictor();
  ASSERT_FALSE(evictor);
  EXPECT_EQ(evictor.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(evictor.error().text.find("hashes"), std::string::npos) << evictor.error().text;
}

}  // namespace
}  // namespace godwit::memory::test
