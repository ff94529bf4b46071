// Demand paging against a process of its own whose threads read and write pages while they are missing; with every
// tracker, on tmpfs and on hugetlbfs.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <barrier>
#include <cstring>
#include <fstream>
#include <set>

#include "tests/unit/memory/own_ram.h"
#include "tests/unit/memory/paged_guest.h"

namespace godwit::memory::test {
namespace {

constexpr std::uint64_t kPage = pages::kPageSize;
constexpr TrackerKind kKinds[] = {TrackerKind::kPagemapScan, TrackerKind::kWriteProtectEvents, TrackerKind::kHashes};

struct Case {
  TrackerKind kind;
  bool huge;
};

class DemandPagerTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const auto why = g_.cannot()) {
      GTEST_SKIP() << *why;
    }
  }

  void start(const std::function<bool(pages::PageNumber)>& is_missing) {
    ASSERT_NO_FATAL_FAILURE(g_.start());
    ASSERT_NO_FATAL_FAILURE(g_.prepare(is_missing));
    ASSERT_NO_FATAL_FAILURE(g_.arm());
  }

  pages::Bitmap written_by_workers() const {
    pages::Bitmap written(g_.ram->page_count());
    for (pages::PageNumber page = 0; page < g_.ram->page_count(); ++page) {
      workers_write(page) ? written.set(page) : void();
    }
    return written;
  }

  /// Of pages that are missing nobody knows content: what is said of them does not count.
  pages::Bitmap written_and_here() { return g_.collect().and_not(g_.pager->missing()); }
  [[nodiscard]] std::uint64_t unit() const { return GetParam().huge ? kPagesPerHugePage : 1; }

  PagedGuest g_{GetParam().kind, GetParam().huge};
};

INSTANTIATE_TEST_SUITE_P(All, DemandPagerTest,
                         testing::Values(Case{kKinds[0], false}, Case{kKinds[0], true}, Case{kKinds[1], false},
                                         Case{kKinds[1], true}, Case{kKinds[2], false}, Case{kKinds[2], true}),
                         [](const auto& info_of) {
                           std::string name(memory::name_of(info_of.param.kind));
                           std::erase(name, '-');
                           return name + (info_of.param.huge ? "Huge" : "Small");
                         });

bool all(pages::PageNumber /*page*/) { return true; }
bool some(pages::PageNumber page) { return (page * 2654435761U >> 7) % 8 < 3 || page / 600 == 2; }

TEST_P(DemandPagerTest, OnDemandEveryPageIsRightAndTheWrittenSetExact) {
  ASSERT_NO_FATAL_FAILURE(start(all));
  const std::uint64_t missing = g_.pager->missing_count();
  ASSERT_EQ(missing, g_.ram->page_count());
  g_.guest->begin_workers(3);
  g_.begin_serving();
  EXPECT_TRUE(g_.guest->finish());
  g_.stop_serving();
  const PagerStats stats = g_.pager->stats();
  EXPECT_EQ(stats.missing_pages, 0U);
  EXPECT_EQ(stats.demand_pages, missing);
  EXPECT_EQ(stats.background_pages + stats.zero_pages + stats.dropped_pages, 0U);
  EXPECT_EQ(std::set(g_.demanded.begin(), g_.demanded.end()).size(), g_.demanded.size()) << "each is asked for once";
  EXPECT_GE(stats.faults, missing / unit());
  EXPECT_GE(stats.latency.count, missing / unit());
  EXPECT_GT(stats.latency.percentile_ns(0.5), 0U);
  EXPECT_LE(stats.latency.percentile_ns(0.5), stats.latency.max_ns);
  EXPECT_EQ(g_.collect(), written_by_workers());
  EXPECT_FALSE(g_.collect().any());
}

TEST_P(DemandPagerTest, ReusableMissingAndZeroPagesMixedAndABackgroundStream) {
  ASSERT_NO_FATAL_FAILURE(start(some));
  const pages::Bitmap missing = g_.pager->missing();
  ASSERT_TRUE(missing.any());
  g_.begin_serving();
  std::thread background([&] { g_.place_all(1); });
  g_.guest->begin_workers(2);
  EXPECT_TRUE(g_.guest->finish());
  background.join();
  g_.stop_serving();
  const PagerStats stats = g_.pager->stats();
  EXPECT_EQ(stats.missing_pages, 0U);
  EXPECT_EQ(stats.demand_pages + stats.background_pages, missing.count()) << "each is placed once";
  EXPECT_GE(stats.dropped_pages, g_.ram->page_count() - missing.count());
  for (const pages::PageNumber page : g_.demanded) {
    EXPECT_TRUE(missing.test(page)) << page;
  }
  EXPECT_EQ(g_.collect(), written_by_workers());
}

TEST_P(DemandPagerTest, TheKernelWaitsForMissingPagesToo) {
  ASSERT_NO_FATAL_FAILURE(start(all));
  g_.begin_serving();
  EXPECT_TRUE(g_.guest->kernel_reads_pattern(3));
  EXPECT_TRUE(g_.guest->kernel_writes(7 + kPagesPerHugePage));
  g_.stop_serving();
  pages::Bitmap expected(g_.ram->page_count());
  expected.set(7 + kPagesPerHugePage);
  EXPECT_EQ(written_and_here(), expected);
}

TEST_P(DemandPagerTest, WhatIsWrittenBeforeArrivalsGoOnStaysWritten) {
  ASSERT_NO_FATAL_FAILURE(start(some));
  g_.begin_serving();
  const pages::PageNumber page = g_.pager->missing().next_set(0);
  g_.guest->write(page);
  EXPECT_TRUE(g_.guest->holds_pattern(page + kPagesPerHugePage));
  g_.stop_serving();
  g_.place_all(0);
  EXPECT_EQ(g_.pager->missing_count(), 0U);
  pages::Bitmap expected(g_.ram->page_count());
  expected.set(page);
  EXPECT_EQ(g_.collect(), expected);
}

TEST_P(DemandPagerTest, PagesThatTurnOutZeroNeedNotCome) {
  ASSERT_NO_FATAL_FAILURE(start([](pages::PageNumber page) { return page % 5 == 4; }));
  const std::uint64_t missing = g_.pager->missing_count();
  g_.guest->begin_read(4);  // waits
  while (g_.demanded.empty()) {
    std::vector<pages::PageNumber> asked;
    ASSERT_TRUE(g_.pager->read_faults(asked));
    g_.demanded.insert(g_.demanded.end(), asked.begin(), asked.end());
  }
  ASSERT_TRUE(g_.pager->place_zero(0, {0, g_.ram->page_count()}));
  EXPECT_TRUE(g_.guest->finish());
  EXPECT_EQ(g_.pager->missing_count(), 0U);
  EXPECT_EQ(g_.pager->stats().zero_pages, missing);
  g_.begin_serving();
  g_.guest->begin_workers(2);
  EXPECT_TRUE(g_.guest->finish());
  g_.stop_serving();
  EXPECT_EQ(g_.collect(), written_by_workers());
}

TEST_P(DemandPagerTest, SuccessorOfAKilledProcessAsksForNothingThatIsHere) {
  ASSERT_NO_FATAL_FAILURE(g_.start());
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t daemon = fork();
  ASSERT_GE(daemon, 0);
  const std::uint64_t placed = 700;
  if (daemon == 0) {
    g_.prepare(all);
    g_.arm();
    g_.place(0, 0, placed);
    char said = testing::Test::HasFailure() ? 'x' : 'a';
    [[maybe_unused]] ssize_t put = ::write(ready[1], &said, 1);
    // A fault is read, and never answered.
    for (std::vector<pages::PageNumber> asked; asked.empty();) {
      static_cast<void>(g_.pager->read_faults(asked));
    }
    put = ::write(ready[1], &said, 1);
    for (;;) {
      pause();
    }
  }
  char said = 0;
  ASSERT_EQ(::read(ready[0], &said, 1), 1);
  ASSERT_EQ(said, 'a');
  g_.guest->begin_workers(3);
  ASSERT_EQ(::read(ready[0], &said, 1), 1);
  kill(daemon, SIGKILL);
  waitpid(daemon, nullptr, 0);
  close(ready[0]);
  close(ready[1]);

  ASSERT_TRUE(g_.start_tracker(true));
  auto pager = DemandPager::take_over(g_.request());
  ASSERT_TRUE(pager) << pager.error().text;
  g_.pager = std::move(*pager);
  EXPECT_EQ(g_.pager->missing_count(), g_.ram->page_count() - placed);
  g_.begin_serving();
  EXPECT_TRUE(g_.guest->finish());
  g_.stop_serving();
  for (const pages::PageNumber page : g_.demanded) {
    EXPECT_GE(page, placed);
  }
  EXPECT_EQ(g_.demanded.size(), g_.ram->page_count() - placed);
  if (GetParam().kind == TrackerKind::kPagemapScan && !GetParam().huge) {
    EXPECT_EQ(g_.collect(), written_by_workers()) << "the kernel's marks outlive us";
  }
}

TEST_P(DemandPagerTest, PlacedButNotSaidSoIsNotAskedForAgain) {
  ASSERT_NO_FATAL_FAILURE(start(all));
  g_.place(0, 100, 1);
  g_.pager.reset();
  {
    // As if killed between the two.
    auto missing = MissingPages::adopt(g_.file, g_.request().of);
    ASSERT_TRUE(missing) << missing.error().text;
    missing->add(100, 1);
  }
  auto pager = DemandPager::take_over(g_.request());
  ASSERT_TRUE(pager) << pager.error().text;
  g_.pager = std::move(*pager);
  EXPECT_EQ(g_.pager->wants(100), GetParam().huge) << "a huge page is written again before QEMU can see it";
  g_.begin_serving();
  EXPECT_TRUE(g_.guest->holds_pattern(100));
  g_.stop_serving();
  EXPECT_FALSE(written_and_here().any());
}

TEST_P(DemandPagerTest, MemoryGivenBackWhileMissingIsZeroAndWritten) {
  g_.balloon = true;
  ASSERT_NO_FATAL_FAILURE(start(all));
  g_.begin_serving();
  const pages::PageNumber first = 2 * unit();
  g_.guest->give_back(first, unit());
  g_.tracker->userfaults()->reader().settle();  // reading lets QEMU go on, a moment before it is known here
  EXPECT_FALSE(g_.pager->wants(first));
  EXPECT_EQ(g_.pager->stats().removed_pages, unit());
  g_.guest->read(first);
  std::vector<std::byte> content(kPage, std::byte{1});
  g_.place(1, first, unit());  // comes too late
  ASSERT_TRUE(g_.ram->read(first, 0, content));
  EXPECT_EQ(content, std::vector<std::byte>(kPage));
  EXPECT_GE(g_.pager->stats().dropped_pages, unit());
  g_.stop_serving();
  for (const pages::PageNumber page : g_.demanded) {
    EXPECT_TRUE(page < first || page >= first + unit()) << page;
  }
  pages::Bitmap expected(g_.ram->page_count());
  for (pages::PageNumber page = first; page < first + unit(); ++page) {
    // Hashes see content: a page that is zero anyway has not changed.
    if ((GetParam().kind != TrackerKind::kHashes && !GetParam().huge) || page % 5 != 4) {
      expected.set(page);
    }
  }
  EXPECT_EQ(written_and_here(), expected);
}

TEST_P(DemandPagerTest, MemoryGivenBackWhileItIsBeingPlacedStaysZero) {
  g_.balloon = true;
  ASSERT_NO_FATAL_FAILURE(start(all));
  // As many as one call takes; the last of them goes while they are under way.
  const std::uint64_t chunk = GetParam().huge ? unit() : 16;
  g_.begin_serving();
  std::vector<std::byte> content(kPage);
  for (pages::PageNumber first = 0; first < g_.ram->page_count(); first += chunk) {
    const pages::PageNumber removed = first + chunk - unit();
    std::barrier both(2);
    std::thread placing([&] {
      both.arrive_and_wait();
      g_.place(1, first, chunk);
    });
    both.arrive_and_wait();
    g_.guest->give_back(removed, unit());
    placing.join();
    ASSERT_TRUE(g_.ram->read(removed, 0, content));
    EXPECT_EQ(content, std::vector<std::byte>(kPage)) << removed;
  }
  g_.tracker->userfaults()->reader().settle();
  g_.stop_serving();
  EXPECT_EQ(g_.pager->missing_count(), 0U);
}

TEST_P(DemandPagerTest, EndKeepsWhatIsWrittenAndWhatIsNot) {
  ASSERT_NO_FATAL_FAILURE(start([](pages::PageNumber page) { return some(page) && page % 5 != 4; }));
  g_.begin_serving();
  g_.place_all(1);
  pages::Bitmap expected(g_.ram->page_count());
  for (pages::PageNumber page = 1; page < g_.ram->page_count(); page += 37) {
    g_.guest->write(page);
    expected.set(page);
  }
  const auto ended = g_.pager->end();
  ASSERT_TRUE(ended) << ended.error().text;
  g_.stop_serving();
  EXPECT_EQ(access(g_.file.c_str(), F_OK), 0) << "whoever comes next cannot know that nothing is missing";
  // Nobody reads faults any more: holes, and pages that were never touched, must raise none.
  for (pages::PageNumber page = 0; page < g_.ram->page_count(); page += 11) {
    g_.guest->read(page);
  }
  EXPECT_EQ(g_.collect(), expected);
  g_.guest->write(44);
  expected.clear_all();
  expected.set(44);
  EXPECT_EQ(g_.collect(), expected) << "still tracked";
}

TEST_P(DemandPagerTest, EndUnderWritersLosesNoWrite) {
  ASSERT_NO_FATAL_FAILURE(start(some));
  g_.begin_serving();
  g_.place_all(1);
  std::vector<std::byte> copied(g_.ram->page_count() * kPage);
  ASSERT_TRUE(g_.ram->read_pages(0, copied));
  const auto copy = [&](const pages::Bitmap& written) {
    written.for_each_run([&](pages::PageNumber first, std::uint64_t count) {
      for (pages::PageNumber page = first; page < first + count; ++page) {
        const auto bytes = std::span(copied).subspan(page * kPage).first<kPage>();
        ASSERT_TRUE(g_.ram->read(page, 0, bytes));
        g_.tracker->note_sent(page, pages::hash_page(bytes));
      }
    });
  };
  g_.guest->start_writers(2, false);
  for (int round = 0; round < 10; ++round) {
    copy(g_.collect());
    const auto ended = round == 5 ? g_.pager->end() : std::expected<void, Error>{};
    ASSERT_TRUE(ended) << ended.error().text;
  }
  g_.guest->stop_writers();
  g_.stop_serving();
  copy(g_.collect());
  std::vector<std::byte> now(copied.size());
  ASSERT_TRUE(g_.ram->read_pages(0, now));
  EXPECT_TRUE(copied == now);
}

TEST_P(DemandPagerTest, SeveralUserfaultfdsServeTheirRanges) {
  g_.options.userfaultfds = 3;
  ASSERT_NO_FATAL_FAILURE(g_.start());
  // One for the second half of the first region, one for the middle of the other, the first for the rest.
  const auto regions = g_.ram->regions();
  g_.ranges = {{regions[0].qemu_address + (2U << 20), 2U << 20}, {regions[1].qemu_address + (2U << 20), 2U << 20}};
  ASSERT_NO_FATAL_FAILURE(g_.prepare(some));
  ASSERT_NO_FATAL_FAILURE(g_.arm());
  const std::vector<int> descriptors = g_.pager->descriptors();
  ASSERT_EQ(descriptors.size(), 3U);
  const pages::PageNumber missing = g_.pager->missing().next_set(0);
  // By address, the one for the rest last: which of them has the fault to read?
  std::set<std::size_t> raised;
  for (const pages::PageNumber page : {missing, missing + kPagesPerHugePage, missing + 3 * kPagesPerHugePage}) {
    g_.guest->begin_read(g_.pager->missing().next_set(page));
    std::vector<pollfd> polled;
    for (const int descriptor : descriptors) {
      polled.push_back({descriptor, POLLIN, 0});
    }
    EXPECT_EQ(::poll(polled.data(), polled.size(), -1), 1);
    for (std::size_t i = 0; i < polled.size(); ++i) {
      if ((polled[i].revents & POLLIN) != 0) {
        raised.insert(i);
      }
    }
    for (std::size_t before = g_.demanded.size(); g_.demanded.size() == before;) {
      g_.serve_once();
    }
    EXPECT_TRUE(g_.guest->finish());
  }
  EXPECT_EQ(raised.size(), 3U);
  g_.guest->begin_workers(3);
  g_.begin_serving();
  EXPECT_TRUE(g_.guest->finish());
  g_.place_all(1);
  EXPECT_EQ(g_.collect(), written_by_workers());
  const auto ended = g_.pager->end();
  ASSERT_TRUE(ended) << ended.error().text;
  g_.stop_serving();
  g_.guest->write(2);
  EXPECT_TRUE(g_.collect().test(2));
}

TEST_P(DemandPagerTest, ASleeperIsWokenByTheDescriptors) {
  ASSERT_NO_FATAL_FAILURE(start(all));
  g_.guest->begin_read(9);
  pollfd descriptor{g_.pager->descriptors().at(0), POLLIN, 0};
  EXPECT_EQ(::poll(&descriptor, 1, -1), 1);
  while (g_.demanded.empty()) {
    g_.serve_once();
  }
  EXPECT_TRUE(g_.guest->finish());
}

TEST_P(DemandPagerTest, BehindTheGuardNothingIsReadBeforeItIsArmed) {
  ASSERT_NO_FATAL_FAILURE(g_.start());
  ASSERT_NO_FATAL_FAILURE(g_.prepare(all));
  const auto guarded = g_.pager->guard();
  ASSERT_TRUE(guarded) << guarded.error().text;
  EXPECT_TRUE(*guarded);
  g_.guest->begin_read(9);
  pollfd descriptor{g_.pager->descriptors().at(0), POLLIN, 0};
  if (GetParam().kind != TrackerKind::kWriteProtectEvents) {  // whose reader takes the fault, and drops it
    EXPECT_EQ(::poll(&descriptor, 1, -1), 1);
  }
  ASSERT_NO_FATAL_FAILURE(g_.arm());
  while (g_.demanded.empty()) {
    g_.serve_once();
  }
  EXPECT_TRUE(g_.guest->finish());
}

TEST_P(DemandPagerTest, TheGuardSaysIfSomethingIsPresent) {
  ASSERT_NO_FATAL_FAILURE(g_.start());
  ASSERT_NO_FATAL_FAILURE(g_.prepare(some));
  const auto guarded = g_.pager->guard();
  ASSERT_TRUE(guarded) << guarded.error().text;
  EXPECT_FALSE(*guarded);
}

TEST_P(DemandPagerTest, QemuThatExitedIsToldAndPagesStayMissing) {
  ASSERT_NO_FATAL_FAILURE(start(all));
  g_.guest->kill();
  for (pages::PageNumber page = 0; page < unit(); ++page) {
    const std::vector<std::byte> content = pattern_of(page);
    const PageWrite write{page, 0, content};
    const auto placed = g_.pager->place(0, {&write, 1});
    if (page + 1 == unit()) {
      ASSERT_FALSE(placed);
      EXPECT_EQ(placed.error().code, ErrorCode::kProcessGone) << placed.error().text;
    }
  }
  if (!GetParam().huge) {
    EXPECT_EQ(g_.pager->missing_count(), g_.ram->page_count());
  }
}

class DemandPagerRefusal : public testing::Test {};

TEST_F(DemandPagerRefusal, WithoutUserfaultfd) {
  PagedGuest g(TrackerKind::kHashes, false);
  g.options.userfaultfds = 1;
  ASSERT_NO_FATAL_FAILURE(g.start());
  TrackerRequest wanted;
  wanted.ram = &*g.ram;
  auto chosen = choose_tracker(std::move(wanted));
  ASSERT_TRUE(chosen);
  g.tracker = std::move(chosen->tracker);
  const auto pager = DemandPager::create(g.request());
  ASSERT_FALSE(pager);
  EXPECT_EQ(pager.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(pager.error().text.find("there is none"), std::string::npos) << pager.error().text;
}

TEST_F(DemandPagerRefusal, ThatSeesNoAccessesOfTheKernel) {
  PagedGuest g(TrackerKind::kPagemapScan, false);
  if (const auto why = g.cannot()) {
    GTEST_SKIP() << *why;
  }
  ASSERT_NO_FATAL_FAILURE(g.start());
  ASSERT_TRUE(g.start_tracker());
  PagerRequest request = g.request();
  request.sees_kernel_accesses = false;
  const auto pager = DemandPager::create(std::move(request));
  ASSERT_FALSE(pager);
  EXPECT_EQ(pager.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(pager.error().text.find("UFFD_USER_MODE_ONLY"), std::string::npos) << pager.error().text;
}

TEST_F(DemandPagerRefusal, EndWhilePagesAreMissing) {
  PagedGuest g(TrackerKind::kHashes, false);
  ASSERT_NO_FATAL_FAILURE(g.start());
  ASSERT_NO_FATAL_FAILURE(g.prepare(some));
  ASSERT_NO_FATAL_FAILURE(g.arm());
  const auto ended = g.pager->end();
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, ErrorCode::kBadArgument);
}

TEST_F(DemandPagerRefusal, OverlappingUserfaultfds) {
  PagedGuest g(TrackerKind::kPagemapScan, false);
  g.options.userfaultfds = 3;
  ASSERT_NO_FATAL_FAILURE(g.start());
  const std::uint64_t address = g.ram->regions()[0].qemu_address;
  g.ranges = {{address, 2U << 20}, {address + (1U << 20), 2U << 20}};
  const auto armed = g.start_tracker();
  ASSERT_FALSE(armed);
  EXPECT_EQ(armed.error().code, ErrorCode::kBadArgument) << armed.error().text;
}

TEST(DemandPagerHuge, AnEmptyPoolIsToldAndThePageStaysMissing) {
  PagedGuest g(TrackerKind::kPagemapScan, true);
  if (const auto why = g.cannot()) {
    GTEST_SKIP() << *why;
  }
  g.options.regions = {{4U << 20, true}};
  ASSERT_NO_FATAL_FAILURE(g.start());
  ASSERT_NO_FATAL_FAILURE(g.prepare(all));
  ASSERT_NO_FATAL_FAILURE(g.arm());
  std::vector<UniqueFd> others;
  for (;;) {  // takes what is in the pool, also what other tests have left
    UniqueFd file(memfd_create("other", MFD_CLOEXEC | MFD_HUGETLB));
    if (ftruncate(file.get(), kHugePageSize) != 0 || fallocate(file.get(), 0, 0, kHugePageSize) != 0) {
      break;
    }
    others.push_back(std::move(file));
  }
  const std::vector<std::byte> content = pattern_of(3);
  const PageWrite write{3, 0, content};
  const auto placed = g.pager->place(0, {&write, 1});
  ASSERT_FALSE(placed);
  EXPECT_EQ(placed.error().code, ErrorCode::kNoMemory) << placed.error().text;
  EXPECT_TRUE(g.pager->wants(3));
  // Likewise zeros for a fault that is read and cannot be answered.
  ASSERT_TRUE(g.pager->place_zero(0, {kPagesPerHugePage, kPagesPerHugePage}));
  g.guest->begin_read(kPagesPerHugePage);
  std::expected<void, Error> answered;
  while (answered) {
    answered = g.pager->read_faults(g.demanded);
  }
  EXPECT_EQ(answered.error().code, ErrorCode::kNoMemory) << answered.error().text;
  others.clear();
  g.begin_serving();
  EXPECT_TRUE(g.guest->finish());
  EXPECT_TRUE(g.guest->holds_pattern(3));
}

TEST(DemandPagerTmpfs, PartOfAPinnedHugePageIsNotTakenForMissing) {
  const auto own = OwnRam::on_huge_tmpfs(2 * kHugePageSize);
  if (!own) {
    GTEST_SKIP() << "no tmpfs of huge pages can be made here";
  }
  int pinned[2];
  ASSERT_EQ(pipe(pinned), 0);
  iovec page{own->data() + 5 * kPage, kPage};
  ASSERT_EQ(vmsplice(pinned[1], &page, 1, 0), static_cast<ssize_t>(kPage));

  PagedGuest g(TrackerKind::kHashes, false);
  auto opened = GuestRam::open(own->region_files());
  ASSERT_TRUE(opened) << opened.error().text;
  TrackerRequest tracking = own->tracker_request(*opened);
  const TrackerKind kind = TrackerKind::kHashes;
  auto chosen = choose_tracker(std::move(tracking), &kind);
  ASSERT_TRUE(chosen) << chosen.error().text;
  PagerRequest request;
  request.ram = &*opened;
  request.tracker = chosen->tracker.get();
  request.sees_kernel_accesses = true;
  request.file = g.file;
  request.of.page_count = opened->page_count();
  auto pager = DemandPager::create(std::move(request));
  ASSERT_TRUE(pager) << pager.error().text;
  pages::Bitmap missing(opened->page_count());
  missing.set(9);
  const auto taken = (*pager)->add_missing(missing);
  ASSERT_FALSE(taken) << "the page is still in the file, and no fault would come";
  EXPECT_NE(taken.error().text.find("pinned"), std::string::npos) << taken.error().text;
  close(pinned[0]);
  close(pinned[1]);
  const auto again = (*pager)->add_missing(missing);
  EXPECT_TRUE(again) << again.error().text;
  pager->reset();
}

}  // namespace
}  // namespace godwit::memory::test
