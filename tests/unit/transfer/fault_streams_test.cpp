// Where the next faults are expected: streams at equal distances are found and followed, among each other too, and what
// is no stream changes next to nothing.

#include "dataplane/transfer/fault_streams.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace godwit::transfer {
namespace {

constexpr std::uint64_t kPages = 100'000;
constexpr std::uint64_t kRunMax = 32;

class FaultStreamsTest : public ::testing::Test {
 protected:
  FaultStreamsTest() { left.set_all(); }

  /// The guest touches it: true if it had to wait, and then all that is foreseen comes.
  bool touch(pages::PageNumber page) {
    if (!left.test(page)) {
      return false;
    }
    left.clear(page);
    streams.on_fault(page);
    foreseen();
    return true;
  }
  std::vector<pages::PageNumber> foreseen() {
    std::vector<pages::PageNumber> pages;
    for (PageRun run = streams.next(left, kRunMax); run.count != 0; run = streams.next(left, kRunMax)) {
      EXPECT_TRUE(left.test(run.first)) << "a run begins with a page that is left";
      EXPECT_LE(run.first + run.count, left.size());
      EXPECT_LE(run.count, kRunMax);
      for (std::uint64_t i = 0; i < run.count; ++i) {
        pages.push_back(run.first + i);
        left.clear(run.first + i);
      }
    }
    return pages;
  }
  using Pages = std::vector<pages::PageNumber>;

  pages::Bitmap left{kPages};
  FaultStreams streams;
};

TEST_F(FaultStreamsTest, TwoFaultsMakeAStrideAndEachThatItForesawDoublesHowFarItRunsAhead) {
  streams.on_fault(1000);
  EXPECT_TRUE(foreseen().empty()) << "one fault is no stream";
  streams.on_fault(1019);
  EXPECT_EQ(foreseen(), (Pages{1038}));
  streams.on_fault(1057);
  EXPECT_EQ(foreseen(), (Pages{1076, 1095}));
  streams.on_fault(1114);
  EXPECT_EQ(foreseen(), (Pages{1133, 1152, 1171, 1190}));
}

TEST_F(FaultStreamsTest, OneThatIsLateIsStillOfTheStream) {
  streams.on_fault(1000);
  streams.on_fault(1019);
  EXPECT_EQ(foreseen(), (Pages{1038}));
  streams.on_fault(1038);
  EXPECT_EQ(foreseen(), (Pages{1057, 1076})) << "on its way already";
  streams.on_fault(1057);
  EXPECT_EQ(foreseen(), (Pages{1095, 1114, 1133})) << "and what was handed out is not named twice";
}

TEST_F(FaultStreamsTest, BackwardsAndUpToTheEndsOfMemory) {
  streams.on_fault(60);
  streams.on_fault(50);
  EXPECT_EQ(foreseen(), (Pages{40}));
  streams.on_fault(30);
  streams.on_fault(20);
  EXPECT_EQ(foreseen(), (Pages{10, 0}));
  streams.on_fault(kPages - 30);
  streams.on_fault(kPages - 20);
  streams.on_fault(kPages - 10);
  EXPECT_TRUE(foreseen().empty());
}

TEST_F(FaultStreamsTest, ASweepComesInRuns) {
  streams.on_fault(500);
  streams.on_fault(501);
  EXPECT_EQ(foreseen(), (Pages{502}));
  streams.on_fault(503);
  streams.on_fault(504);
  const PageRun run = streams.next(left, kRunMax);
  EXPECT_EQ(run.first, 505U);
  EXPECT_EQ(run.count, 4U);
}

TEST_F(FaultStreamsTest, ManyStreamsInTurnAndASweepSeldomWait) {
  constexpr std::uint64_t kStreams = 20, kSteps = 1000;
  constexpr std::uint64_t kAreas = kPages / (kStreams + 1);
  std::uint64_t waits = 0;
  for (std::uint64_t step = 0; step < kSteps; ++step) {
    for (std::uint64_t i = 0; i < kStreams; ++i) {
      waits += touch(i * kAreas + step % 300 * (3 + i % 12)) ? 1U : 0U;
    }
    waits += touch(kStreams * kAreas + step) ? 1U : 0U;
  }
  // 300 steps of each: 10 faults until a stream is as far ahead as it gets, then one in kAheadMax.
  EXPECT_LE(waits, (kStreams + 1) * 14);
}

TEST_F(FaultStreamsTest, WhatIsNoStreamIsNotFollowed) {
  std::mt19937_64 random{7};
  std::uint64_t guesses = 0;
  for (int i = 0; i < 1000; ++i) {
    streams.on_fault(random() % kPages);
    guesses += foreseen().size();
  }
  EXPECT_LE(guesses, 1000U);
}

TEST_F(FaultStreamsTest, AStreamThatHoldsSurvivesFaultsBesideItAndElsewhere) {
  std::mt19937_64 random{7};
  std::uint64_t waits = 0;
  for (const pages::PageNumber page : {0U, 20U, 40U}) {
    touch(page);
  }
  for (pages::PageNumber page = 60; page < 20'000; page += 20) {
    waits += touch(page) ? 1U : 0U;
    touch(50'000 + random() % 50'000);
    touch(page + 7 + random() % 5);
  }
  EXPECT_LE(waits, 100U) << "of 1000";
}

}  // namespace
}  // namespace godwit::transfer
