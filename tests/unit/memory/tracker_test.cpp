// The same tests for every tracker on tmpfs and on hugetlbfs, against a process of its own that writes.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "dataplane/memory/kernel_abi.h"
#include "dataplane/memory/userfault.h"
#include "dataplane/pages/page_digest.h"
#include "tests/unit/memory/guest_process.h"

namespace godwit::memory::test {
namespace {

constexpr std::uint64_t kPage = pages::kPageSize;

struct Case {
  TrackerKind kind;
  bool huge;
};

std::string name_of_case(const testing::TestParamInfo<Case>& info) {
  std::string name(memory::name_of(info.param.kind));
  std::erase(name, '-');
  return name + (info.param.huge ? "Huge" : "Small");
}

class TrackerTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto offered = trackers_offered();
    if (std::ranges::find(offered, GetParam().kind) == offered.end()) {
      GTEST_SKIP() << "this kernel does not offer " << memory::name_of(GetParam().kind);
    }
    if (GetParam().huge) {
      huge_pages_ = HugePages::add(8);
      if (!huge_pages_) {
        GTEST_SKIP() << "the kernel gives no huge pages (vm.nr_hugepages)";
      }
    }
    options_.regions = {{4U << 20, GetParam().huge}, {6U << 20, GetParam().huge}};
  }

  void TearDown() override {
    tracker_.reset();
    ram_.reset();
    guest_.reset();
    huge_pages_.reset();
  }

  void start_guest() {
    guest_ = GuestProcess::start(options_);
    ASSERT_TRUE(guest_);
    auto ram = GuestRam::open(guest_->region_files());
    ASSERT_TRUE(ram) << ram.error().text;
    ram_.emplace(std::move(*ram));
  }

  std::expected<ChosenTracker, Error> make_tracker(bool continuing = false) {
    TrackerRequest request;
    request.ram = &*ram_;
    request.userfaultfd = guest_->userfaultfd();
    request.pagemap = guest_->pagemap();
    request.has_balloon = balloon_;
    request.learn_hashes = true;
    request.continuing = continuing;
    const TrackerKind kind = GetParam().kind;
    return choose_tracker(std::move(request), &kind);
  }

  void start_tracker(bool continuing = false) {
    auto chosen = make_tracker(continuing);
    ASSERT_TRUE(chosen) << chosen.error().text;
    tracker_ = std::move(chosen->tracker);
    EXPECT_EQ(tracker_->kind(), GetParam().kind);
    const auto armed = tracker_->arm();
    ASSERT_TRUE(armed) << armed.error().text;
  }

  pages::Bitmap collect() {
    pages::Bitmap written(ram_->page_count());
    const auto done = tracker_->collect(written);
    EXPECT_TRUE(done) << done.error().text;
    return written;
  }

  /// Copies the pages as a transfer does, telling the tracker.
  void copy(const pages::Bitmap& pages, std::vector<std::byte>& to) {
    pages.for_each_run([&](pages::PageNumber first, std::uint64_t count) {
      for (pages::PageNumber page = first; page < first + count; ++page) {
        const auto bytes = std::span(to).subspan(page * kPage).first<kPage>();
        ASSERT_TRUE(ram_->read(page, 0, bytes));
        tracker_->note_sent(page, pages::hash_page(bytes));
      }
    });
  }

  std::vector<std::byte> all_of_ram() {
    std::vector<std::byte> bytes(ram_->page_count() * kPage);
    EXPECT_TRUE(ram_->read_pages(0, bytes));
    return bytes;
  }

  static std::uint64_t differing_pages(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
    std::uint64_t count = 0;
    for (std::size_t at = 0; at < a.size(); at += kPage) {
      count += std::memcmp(&a[at], &b[at], kPage) != 0 ? 1U : 0U;
    }
    return count;
  }

  GuestOptions options_;
  bool balloon_ = false;
  std::optional<HugePages> huge_pages_;
  std::unique_ptr<GuestProcess> guest_;
  std::optional<GuestRam> ram_;
  std::unique_ptr<WrittenTracker> tracker_;
};

INSTANTIATE_TEST_SUITE_P(All, TrackerTest,
                         testing::Values(Case{TrackerKind::kPagemapScan, false}, Case{TrackerKind::kPagemapScan, true},
                                         Case{TrackerKind::kWriteProtectEvents, false},
                                         Case{TrackerKind::kWriteProtectEvents, true},
                                         Case{TrackerKind::kHashes, false}, Case{TrackerKind::kHashes, true}),
                         name_of_case);

TEST_P(TrackerTest, WrittenSetIsExactlyWhatTheGuestWrote) {
  start_guest();
  for (pages::PageNumber page = 0; page < ram_->page_count(); page += 2) {
    guest_->write(page);  // the others are holes
  }
  start_tracker();
  EXPECT_FALSE(collect().any()) << "nothing was written after arming";
  std::mt19937_64 random(1);
  for (int round = 0; round < 30; ++round) {
    pages::Bitmap expected(ram_->page_count());
    for (std::uint64_t i = random() % 200; i > 0; --i) {
      guest_->read(random() % ram_->page_count());
      const pages::PageNumber page = random() % ram_->page_count();
      guest_->write(page);
      expected.set(page);
    }
    ASSERT_EQ(collect(), expected) << "round " << round;
  }
}

TEST_P(TrackerTest, WholeRamWrittenAtOnce) {
  start_guest();
  start_tracker();
  for (pages::PageNumber page = 0; page < ram_->page_count(); ++page) {
    guest_->write(page);
  }
  EXPECT_EQ(collect().count(), ram_->page_count());
  EXPECT_FALSE(collect().any());
}

TEST_P(TrackerTest, WritesThroughOurOwnMappingDoNotCount) {
  if (GetParam().kind == TrackerKind::kHashes) {
    GTEST_SKIP() << "hashes see any change of content";
  }
  start_guest();
  start_tracker();
  const std::vector<std::byte> bytes(kPage, std::byte{7});
  const PageWrite write{3, 0, bytes};
  ASSERT_TRUE(ram_->write({&write, 1}));
  EXPECT_FALSE(collect().any());
}

TEST_P(TrackerTest, WrittenPageWhoseEntryWasDroppedIsReported) {
  start_guest();
  start_tracker();
  const std::uint64_t unit = GetParam().huge ? kPagesPerHugePage : 1;
  guest_->write(unit + unit / 2);
  guest_->unmap_entries(unit, unit);
  pages::Bitmap expected(ram_->page_count());
  expected.set(unit + unit / 2);
  EXPECT_EQ(collect(), expected);
  guest_->read(unit + unit / 2);
  EXPECT_FALSE(collect().any());
  guest_->write(unit + unit / 2);
  EXPECT_EQ(collect(), expected);
}

TEST_P(TrackerTest, WhatIsToCountAsWrittenIsReportedOnce) {
  if (GetParam().kind == TrackerKind::kHashes) {
    GTEST_SKIP() << "hashes find out by themselves";
  }
  start_guest();
  start_tracker();
  const std::uint64_t unit = GetParam().huge ? kPagesPerHugePage : 1;
  guest_->read(2 * unit);
  ASSERT_FALSE(collect().any());
  const std::vector<std::byte> bytes(kPage, std::byte{7});
  const PageWrite write{2 * unit, 0, bytes};  // so that hashes of a huge page agree
  ASSERT_TRUE(ram_->write({&write, 1}));
  ASSERT_TRUE(tracker_->count_as_written({2 * unit, unit}));
  pages::Bitmap expected(ram_->page_count());
  expected.set(2 * unit);
  EXPECT_EQ(collect(), expected);
  EXPECT_FALSE(collect().any());
}

TEST_P(TrackerTest, CopyKeptByCollectEqualsRamUnderConcurrentWriters) {
  start_guest();
  start_tracker();
  std::vector<std::byte> copied = all_of_ram();
  guest_->start_writers(2, false);
  for (int round = 0; round < 40; ++round) {
    copy(collect(), copied);
  }
  guest_->stop_writers();
  copy(collect(), copied);
  EXPECT_EQ(differing_pages(copied, all_of_ram()), 0U);
}

TEST_P(TrackerTest, MemoryGivenBackCountsAsWritten) {
  balloon_ = true;
  start_guest();
  for (pages::PageNumber page = 0; page < ram_->page_count(); ++page) {
    guest_->write(page);
  }
  start_tracker();
  ASSERT_FALSE(collect().any());
  const std::uint64_t unit = GetParam().huge ? kPagesPerHugePage : 3;
  guest_->give_back(unit, unit);
  pages::Bitmap expected(ram_->page_count());
  expected.set_range(unit, unit);
  EXPECT_EQ(collect(), expected);
  EXPECT_FALSE(collect().any()) << "once is enough";
  guest_->read(unit);
  EXPECT_FALSE(collect().any()) << "a read of what was given back is no write";
  guest_->write(unit + 1);
  expected.clear_all();
  expected.set(unit + 1);
  EXPECT_EQ(collect(), expected);
}

TEST_P(TrackerTest, CopyEqualsRamWithWritersAndBalloon) {
  balloon_ = true;
  start_guest();
  start_tracker();
  std::vector<std::byte> copied = all_of_ram();
  guest_->start_writers(1, true);
  for (int round = 0; round < 40; ++round) {
    copy(collect(), copied);
  }
  guest_->stop_writers();
  copy(collect(), copied);
  EXPECT_EQ(differing_pages(copied, all_of_ram()), 0U);
}

TEST_P(TrackerTest, PageThatChangedBetweenScanAndCopyAndBackIsReported) {
  start_guest();
  guest_->fill(5, 1);
  start_tracker();
  guest_->fill(5, 2);
  pages::Bitmap expected(ram_->page_count());
  expected.set(5);
  ASSERT_EQ(collect(), expected);
  guest_->fill(5, 3);
  std::vector<std::byte> copied = all_of_ram();
  copy(expected, copied);  // the receiver holds 3
  guest_->fill(5, 2);      // as the scan saw it
  EXPECT_EQ(collect(), expected);
}

TEST_P(TrackerTest, SuccessorFindsWhatWasWrittenWhileNobodyListened) {
  if (GetParam().huge) {
    GTEST_SKIP() << "the same code as for small pages, in units of 2 MiB";
  }
  balloon_ = true;
  start_guest();
  for (pages::PageNumber page = 0; page < 100; ++page) {
    guest_->write(page);
  }
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t daemon = fork();
  if (daemon == 0) {
    auto chosen = make_tracker();
    const char done = chosen && chosen->tracker->arm() ? 'k' : 'x';
    [[maybe_unused]] const ssize_t put = ::write(ready[1], &done, 1);
    for (;;) {
      pause();
    }
  }
  char armed = 0;
  ASSERT_EQ(::read(ready[0], &armed, 1), 1);
  EXPECT_EQ(armed, 'k');
  guest_->write(10);  // seen by the daemon, not collected
  kill(daemon, SIGKILL);
  waitpid(daemon, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
  guest_->begin_write(20);  // waits for the successor where events are used
  start_tracker(true);
  guest_->finish();
  const pages::Bitmap written = collect();
  EXPECT_TRUE(written.test(10));
  EXPECT_TRUE(written.test(20));
  if (GetParam().kind != TrackerKind::kHashes) {
    EXPECT_FALSE(written.test(30)) << "not written";
    EXPECT_TRUE(written.test(200)) << "zero: may have been given back meanwhile";
  }
  guest_->write(30);
  EXPECT_TRUE(collect().test(30));
}

TEST_P(TrackerTest, DisarmedGuestWaitsForNobody) {
  balloon_ = true;
  start_guest();
  guest_->write(5);
  start_tracker();
  const auto disarmed = tracker_->disarm();
  ASSERT_TRUE(disarmed) << disarmed.error().text;
  // Were anything armed, these would wait for a reader that there is not.
  guest_->write(5);
  guest_->give_back(0, GetParam().huge ? kPagesPerHugePage : 1);
  guest_->write(0);
  guest_->kill();
  EXPECT_TRUE(tracker_->disarm()) << "also when QEMU is gone";
}

TEST_P(TrackerTest, GuestThatExitedIsAClearError) {
  if (GetParam().kind == TrackerKind::kHashes) {
    GTEST_SKIP() << "hashes read the RAM files, which stay";
  }
  start_guest();
  start_tracker();
  guest_->write(1);
  guest_->kill();
  pages::Bitmap written(ram_->page_count());
  const auto done = tracker_->collect(written);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kProcessGone) << done.error().text;
}

TEST_P(TrackerTest, UserModeOnlyDescriptorServesForTracking) {
  if (GetParam().kind != TrackerKind::kPagemapScan) {
    GTEST_SKIP() << "events need a full userfaultfd";
  }
  options_.user_mode_only = true;
  start_guest();
  start_tracker();
  guest_->write(9);
  pages::Bitmap expected(ram_->page_count());
  expected.set(9);
  EXPECT_EQ(collect(), expected);
}

TEST_P(TrackerTest, SetUpForTheOtherKindIsRefused) {
  if (GetParam().kind == TrackerKind::kHashes) {
    GTEST_SKIP() << "needs no userfaultfd";
  }
  start_guest();
  const TrackerKind other =
      GetParam().kind == TrackerKind::kPagemapScan ? TrackerKind::kWriteProtectEvents : TrackerKind::kPagemapScan;
  start_tracker();
  TrackerRequest request;
  request.ram = &*ram_;
  request.userfaultfd = guest_->userfaultfd();
  request.pagemap = guest_->pagemap();
  const auto chosen = choose_tracker(std::move(request), &other);
  ASSERT_FALSE(chosen);
  EXPECT_EQ(chosen.error().code, ErrorCode::kUnsupported);
}

TEST(ChooseTracker, WithoutUserfaultfdHashesAndTheReason) {
  const auto guest = GuestProcess::start({{{1U << 20, false}}});
  ASSERT_TRUE(guest);
  const auto ram = GuestRam::open(guest->region_files());
  ASSERT_TRUE(ram);
  TrackerRequest request;
  request.ram = &*ram;
  const auto chosen = choose_tracker(std::move(request));
  ASSERT_TRUE(chosen);
  EXPECT_EQ(chosen->tracker->kind(), TrackerKind::kHashes);
  EXPECT_NE(chosen->reason.find("no userfaultfd"), std::string::npos) << chosen->reason;
}

TEST(ChooseTracker, DescriptorThatIsNoUserfaultfdIsRefused) {
  const auto guest = GuestProcess::start({{{1U << 20, false}}});
  ASSERT_TRUE(guest);
  const auto ram = GuestRam::open(guest->region_files());
  ASSERT_TRUE(ram);
  TrackerRequest request;
  request.ram = &*ram;
  request.userfaultfd = guest->pagemap();
  const auto chosen = choose_tracker(std::move(request));
  ASSERT_FALSE(chosen);
  EXPECT_EQ(chosen.error().code, ErrorCode::kBadArgument);
}

}  // namespace
}  // namespace godwit::memory::test
