// The small parts of transfer, each alone: what a round hands out, fragments, the bandwidth limit, estimates.

#include <gtest/gtest.h>

#include <map>

#include "dataplane/transfer/convergence.h"
#include "dataplane/transfer/page_assembly.h"
#include "dataplane/transfer/round_pages.h"
#include "dataplane/transfer/token_bucket.h"
#include "simulation/network.h"

namespace godwit::transfer {
namespace {

TEST(RoundPages, HandsOutEveryPageOnceWhateverTheLanesDo) {
  simulation::Random random(7);
  for (int turn = 0; turn < 50; ++turn) {
    const std::uint64_t size = random.between(1, 3000);
    pages::Bitmap content(size), zero(size), seen(size);
    for (pages::PageNumber page = 0; page < size; ++page) {
      const std::uint64_t draw = random.below(4);
      draw == 0 ? content.set(page) : draw == 1 ? zero.set(page) : void();
    }
    RoundPages round(size);
    round.add(content, zero);
    transport::Work work;
    while (round.next(static_cast<std::uint16_t>(random.between(1, 3)), work)) {
      ASSERT_GE(work.count, 1U);
      for (pages::PageNumber page = work.page; page < work.page + work.count; ++page) {
        ASSERT_TRUE((work.zero ? zero : content).test(page));
        ASSERT_FALSE(seen.test(page));
        seen.set(page);
      }
    }
    content |= zero;
    EXPECT_EQ(seen, content);
    EXPECT_EQ(round.left(), 0U);
  }
}

TEST(RoundPages, ALaneGetsNeighbours) {
  pages::Bitmap content(1024);
  content.set_all();
  RoundPages round(1024);
  round.add(content, pages::Bitmap(1024));
  std::map<std::uint16_t, pages::PageNumber> last;
  std::uint64_t pairs = 0;
  transport::Work first, second;
  for (std::uint16_t lane = 1; round.next(lane, first) && round.next(lane, second); lane = lane == 3 ? 1 : lane + 1) {
    pairs += second.page == first.page + 1 ? 1U : 0U;
  }
  EXPECT_EQ(pairs, 512U);
}

TEST(RoundPages, LongZeroRunsAreCut) {
  pages::Bitmap zero(10'000);
  zero.set_all();
  RoundPages round(10'000);
  round.add(pages::Bitmap(10'000), zero);
  transport::Work work;
  while (round.next(1, work)) {
    EXPECT_TRUE(work.zero);
    EXPECT_LE(work.count, kZeroRunPagesMax);
  }
}

TEST(RoundPages, DroppedPagesAreNotHandedOut) {
  pages::Bitmap content(200), dropped(200);
  content.set_range(0, 100);
  dropped.set_range(10, 120);
  RoundPages round(200);
  round.add(content, pages::Bitmap(200));
  transport::Work work;
  ASSERT_TRUE(round.next(1, work));
  EXPECT_EQ(round.drop(dropped), 90U);
  std::uint64_t left = 0;
  while (round.next(2, work)) {
    EXPECT_LT(work.page, 10U);
    ++left;
  }
  EXPECT_EQ(left, 9U);
}

TEST(RoundPages, PagesMayComeLaterBelowThoseHandedOut) {
  pages::Bitmap late(200), early(200);
  late.set_range(150, 10);
  early.set_range(0, 10);
  RoundPages round(200);
  round.add(late, pages::Bitmap(200));
  transport::Work work;
  while (round.next(1, work)) {
  }
  round.add(early, pages::Bitmap(200));
  std::uint64_t count = 0;
  while (round.next(1, work)) {
    ++count;
  }
  EXPECT_EQ(count, 10U);
}

TEST(PageAssembly, CompleteInAnyOrderAndNeverEarlier) {
  using Result = PageAssembly::Result;
  PageAssembly assembly;
  EXPECT_EQ(assembly.add(1, 2816, 1280), Result::kPartial);
  EXPECT_EQ(assembly.add(1, 2816, 1280), Result::kNothingNew);
  EXPECT_EQ(assembly.add(1, 0, 1408), Result::kPartial);
  EXPECT_TRUE(assembly.partial(1));
  EXPECT_EQ(assembly.add(1, 1000, 1000), Result::kPartial);  // a retransmission may be cut elsewhere
  EXPECT_EQ(assembly.add(1, 1408, 1408), Result::kComplete);
  EXPECT_EQ(assembly.size(), 0U);
}

TEST(PageAssembly, IsBounded) {
  using Result = PageAssembly::Result;
  PageAssembly assembly;
  for (std::uint32_t i = 0; i < PageAssembly::kPiecesMax; ++i) {
    EXPECT_EQ(assembly.add(1, i * 100, 10), Result::kPartial);
  }
  EXPECT_EQ(assembly.add(1, 3000, 10), Result::kRefused);
  for (pages::PageNumber page = 2; page < PageAssembly::kPagesMax + 1; ++page) {
    ASSERT_EQ(assembly.add(page, 0, 1), Result::kPartial);
  }
  EXPECT_EQ(assembly.add(1'000'000, 0, 1), Result::kRefused);
}

TEST(TokenBucket, LetsThroughItsRateAndOneBurst) {
  TokenBucket bucket(80'000'000);  // 10 MB/s
  Instant now{};
  bucket.start(now);
  std::uint64_t total = 0, spent = 0;
  for (int i = 0; i < 10'000; ++i) {  // a second in steps of 100 us
    while (bucket.open()) {
      bucket.promise(4096);
      spent += 4096;
    }
    total += spent;
    now = now + microseconds(100);
    bucket.refill(now, spent);
    spent = 0;
  }
  EXPECT_GE(total, 10'000'000U);
  EXPECT_LE(total, 10'000'000U + 65536 + 2 * 4096);
}

TEST(TokenBucket, SaysWhenItOpens) {
  TokenBucket bucket(8'000'000);
  Instant now{1000};
  bucket.start(now);
  EXPECT_EQ(bucket.opens_at(), kNever);
  bucket.promise(100'000);
  ASSERT_FALSE(bucket.open());
  bucket.refill(now, 100'000);
  now = bucket.opens_at();
  bucket.refill(now, 0);
  EXPECT_TRUE(bucket.open());
}

TEST(Convergence, EstimatesFromWhatWasMeasured) {
  Convergence convergence;
  convergence.round_moved(25'000, milliseconds(1000));  // some 830 Mbit/s
  const Duration rest = convergence.time_for(2500, 0, Duration{});
  EXPECT_GE(rest, milliseconds(99));
  EXPECT_LE(rest, milliseconds(101));
  convergence.round_moved(3, microseconds(1));  // too few to say anything
  EXPECT_EQ(convergence.time_for(2500, 0, Duration{}), rest);
  convergence.scan_found(500, milliseconds(100), milliseconds(2));
  EXPECT_EQ(convergence.written_pages_per_s(), 5000U);
  EXPECT_EQ(convergence.time_for(2500, 0, Duration{}), rest + milliseconds(4));
}

}  // namespace
}  // namespace godwit::transfer
