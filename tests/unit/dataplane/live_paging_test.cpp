// Goal: what LivePaging promises to transfer beyond DemandPager: it says which pages it placed, never arms for another
// set than was taken away, and what came so is read again when the guest leaves. Method: a RAM file, mapped and guarded
// by a userfaultfd of this process; pages come from the test.

#include "dataplane/daemon/live_paging.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>

#include "tests/unit/dataplane/fake_qemu.h"

namespace godwit::daemon {
namespace {

constexpr std::uint64_t kPages = 64;
constexpr std::uint64_t kPage = pages::kPageSize;
using Page = std::array<std::byte, kPage>;

Page page_of(std::byte value) {
  Page page;
  page.fill(value);
  return page;
}

class LivePagingTest : public testing::TestWithParam<memory::TrackerKind> {
 protected:
  void SetUp() override {
    char name[] = "/dev/shm/gwd-paging-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
    qemu_.emplace(directory_ + "/vm.ram", kPages * kPage);
    if (!qemu_->valid()) {
      GTEST_SKIP() << qemu_->error();
    }
    std::memset(qemu_->data().data(), 1, kPages * kPage);
    std::vector<UniqueFd> descriptors;
    for (const int descriptor : qemu_->descriptors()) {
      descriptors.emplace_back(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
    }
    std::vector<memory::RegionFile> files;
    files.push_back({"ram0", kPages * kPage, 4096, reinterpret_cast<std::uint64_t>(qemu_->data().data()),
                     directory_ + "/vm.ram", std::move(descriptors[0])});
    auto ram = memory::GuestRam::open(std::move(files));
    ASSERT_TRUE(ram) << ram.error().text;
    auto owned = std::make_unique<memory::GuestRam>(std::move(*ram));
    auto hashes = std::make_shared<memory::KnownHashes>(kPages);
    memory::TrackerRequest request;
    request.ram = owned.get();
    request.hashes = hashes;
    request.userfaultfd = std::move(descriptors[1]);
    request.pagemap = std::move(descriptors[2]);
    request.has_balloon = true;
    if (std::ranges::count(memory::trackers_offered(), GetParam()) == 0) {
      GTEST_SKIP() << "this kernel does not offer it";
    }
    const memory::TrackerKind kind = GetParam();
    auto chosen = memory::choose_tracker(std::move(request), &kind);
    ASSERT_TRUE(chosen) << chosen.error().text;
    guest_ = std::make_unique<LiveGuest>(std::move(owned), std::move(chosen->tracker), std::move(hashes), std::nullopt,
                                         false);
    ASSERT_TRUE(guest_->arm());
    ASSERT_TRUE(guest_->refresh_present());
    memory::MissingOf of;
    of.page_count = kPages;
    auto paging = LivePaging::create(*guest_, directory_ + "/vm.missing", of, 2);
    ASSERT_TRUE(paging) << paging.error().text;
    paging_ = std::move(*paging);
  }
  void TearDown() override {
    paging_.reset();
    if (guest_) {
      EXPECT_TRUE(guest_->disarm());
    }
    guest_.reset();
    qemu_.reset();
    std::filesystem::remove_all(directory_);
  }

  static pages::Bitmap first(std::uint64_t count) {
    pages::Bitmap pages(kPages);
    pages.set_range(0, count);
    return pages;
  }
  void place(std::vector<transfer::PageWrite>& writes) {
    const auto placed = paging_->place(0, writes);
    ASSERT_TRUE(placed) << placed.error().text;
  }

  /// The guest does this; its faults are read meanwhile.
  template <class F>
  void guest_does(F f) {
    std::atomic<bool> done{false};
    std::thread guest([&] {
      f();
      done = true;
    });
    while (!done) {
      paging_->poll();
    }
    guest.join();
  }

  std::string directory_;
  std::optional<tests::FakeQemu> qemu_;
  std::unique_ptr<LiveGuest> guest_;
  std::shared_ptr<LivePaging> paging_;
};

TEST_P(LivePagingTest, SaysWhichPagesItPlaced) {
  ASSERT_TRUE(paging_->punch(first(10), pages::Bitmap(kPages)));
  ASSERT_TRUE(paging_->arm(first(10)));
  const Page mine = page_of(std::byte{7});
  // One that is not missing, two in a row, one twice.
  std::vector<transfer::PageWrite> writes{{20, mine}, {3, mine}, {4, mine}, {8, mine}, {8, mine}};
  place(writes);
  std::vector<bool> said;
  for (const transfer::PageWrite& write : writes) {
    said.push_back(write.placed);
  }
  EXPECT_EQ(said, (std::vector<bool>{false, true, true, true, false}));
  EXPECT_EQ(qemu_->data()[3 * kPage], std::byte{7});
  EXPECT_EQ(qemu_->data()[20 * kPage], std::byte{1}) << "a page of the running guest was overwritten";
  std::vector<transfer::PageRun> zeroed;
  ASSERT_TRUE(paging_->place_zero(1, 2, 4, zeroed));
  ASSERT_EQ(zeroed.size(), 2U);
  EXPECT_EQ(zeroed[0].first, 2U);
  EXPECT_EQ(zeroed[0].count, 1U);
  EXPECT_EQ(zeroed[1].first, 5U);
  EXPECT_EQ(paging_->missing_count(), 5U);
}

TEST_P(LivePagingTest, ArmsForNoOtherSetThanWasTakenAway) {
  ASSERT_TRUE(paging_->punch(first(10), pages::Bitmap(kPages)));
  EXPECT_FALSE(paging_->arm(first(11))) << "page 10 would come as it was before";
  EXPECT_FALSE(paging_->arm(first(9))) << "page 9 would never come";
  pages::Bitmap other = first(10);
  other.clear(0);
  other.set(20);
  EXPECT_FALSE(paging_->arm(other));
  EXPECT_FALSE(paging_->armed());
  EXPECT_TRUE(paging_->arm(first(10)));
}

TEST_P(LivePagingTest, AThreadThatWaitsIsToldOfOnceAndGoesOn) {
  ASSERT_TRUE(paging_->punch(first(10), pages::Bitmap(kPages)));
  ASSERT_TRUE(paging_->arm(first(10)));
  std::byte seen{};
  std::thread guest([&] { seen = qemu_->data()[5 * kPage]; });
  transfer::PagingEvents events;
  while (events.faults.empty()) {
    paging_->poll();
    ASSERT_TRUE(paging_->read_events(events));
  }
  EXPECT_EQ(events.faults, std::vector<pages::PageNumber>{5});
  const Page mine = page_of(std::byte{9});
  std::vector<transfer::PageWrite> writes{{5, mine}};
  place(writes);
  guest.join();
  EXPECT_EQ(seen, std::byte{9});
  events.faults.clear();
  EXPECT_FALSE(paging_->poll());
  ASSERT_TRUE(paging_->read_events(events));
  EXPECT_TRUE(events.faults.empty());
}

TEST_P(LivePagingTest, WhatCameIsReadWhenTheGuestLeaves) {
  ASSERT_TRUE(paging_->punch(first(2), pages::Bitmap(kPages)));
  ASSERT_TRUE(paging_->arm(first(2)));
  EXPECT_FALSE(paging_->disarm()) << "pages are missing";
  const Page mine = page_of(std::byte{9});
  std::vector<transfer::PageWrite> writes{{0, mine}, {1, mine}};
  place(writes);
  ASSERT_TRUE(paging_->disarm());
  ASSERT_TRUE(paging_->disarm()) << "asked again";
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/vm.missing")) << "the proof that nothing is missing";
  EXPECT_EQ(qemu_->armed().find(" um"), std::string::npos);
  Page read{};
  guest_->read_page(1, 0, read);
  EXPECT_EQ(read, mine) << "a page that came after the guest is taken for a hole";
}

TEST_P(LivePagingTest, OfWhatCameOnlyWhatIsWrittenCountsAsWritten) {
  ASSERT_TRUE(paging_->punch(first(4), pages::Bitmap(kPages)));
  ASSERT_TRUE(paging_->arm(first(4)));
  const Page mine = page_of(std::byte{9});
  std::vector<transfer::PageWrite> writes{{0, mine}, {1, mine}, {2, mine}};
  place(writes);
  std::vector<transfer::PageRun> zeroed;
  ASSERT_TRUE(paging_->place_zero(1, 3, 1, zeroed));
  guest_does([&] {
    qemu_->data()[1 * kPage] = std::byte{8};   // one that came
    qemu_->data()[30 * kPage] = std::byte{8};  // one that was here
  });
  ASSERT_TRUE(paging_->disarm());
  qemu_->data()[2 * kPage + 5] = std::byte{8};  // after the end
  pages::Bitmap written(kPages);
  ASSERT_TRUE(guest_->collect_written(written));
  pages::Bitmap expected(kPages);
  for (const pages::PageNumber page : {1U, 2U, 30U}) {
    expected.set(page);
  }
  EXPECT_EQ(written, expected);
}

/// A page that was given back while somebody waits for it, in a RAM file that is cut short for a while.
TEST_P(LivePagingTest, AFaultThatCannotBeAnsweredIsTriedAgain) {
  ASSERT_TRUE(paging_->punch(first(10), pages::Bitmap(kPages)));
  ASSERT_TRUE(paging_->arm(first(10)));
  std::byte* const page = qemu_->data().data() + 5 * kPage;
  const auto seen = std::make_shared<std::atomic<int>>(-1);
  std::thread guest([seen, page] { *seen = static_cast<int>(*page); });
  pollfd faulted{paging_->descriptors().at(0), POLLIN, 0};
  ASSERT_EQ(poll(&faulted, 1, -1), 1);
  const std::string file = directory_ + "/vm.ram";
  ASSERT_EQ(truncate(file.c_str(), 0), 0);
  std::thread balloon([page] { madvise(page, kPage, MADV_REMOVE); });
  transfer::PagingEvents events;
  while (paging_->read_events(events)) {
    paging_->poll();
  }
  balloon.join();
  EXPECT_FALSE(paging_->missing(5));
  ASSERT_EQ(truncate(file.c_str(), kPages * kPage), 0);
  paging_->poll();
  if (!paging_->read_events(events)) {
    guest.detach();
    FAIL() << "what was wrong is over, and faults are read no more";
  }
  guest.join();
  EXPECT_EQ(*seen, 0);
}

INSTANTIATE_TEST_SUITE_P(Trackers, LivePagingTest,
                         testing::Values(memory::TrackerKind::kPagemapScan, memory::TrackerKind::kWriteProtectEvents,
                                         memory::TrackerKind::kHashes),
                         [](const auto& tested) {
                           std::string name(memory::name_of(tested.param));
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace godwit::daemon
