// LiveGuest over real RAM files that are cut short by whoever owns them.

#include "dataplane/daemon/live_guest.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "tests/unit/memory/guest_process.h"

namespace godwit::daemon {
namespace {

constexpr std::uint64_t kPages = 64;
constexpr std::uint64_t kPage = pages::kPageSize;
using Page = std::array<std::byte, kPage>;

/// What is read by mapping, and what by pread (a guest with a balloon).
class CutShort : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    std::vector<memory::RegionFile> files;
    UniqueFd file(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    owner_.reset(fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
    ASSERT_EQ(ftruncate(owner_.get(), kPages * kPage), 0);
    const std::vector<std::byte> ones(kPages * kPage, std::byte{1});
    ASSERT_EQ(pwrite(owner_.get(), ones.data(), ones.size(), 0), static_cast<ssize_t>(ones.size()));
    files.push_back({"ram0", kPages * kPage, 4096, 0x7f0000000000, "/dev/shm/vm.ram", std::move(file)});
    auto ram = memory::GuestRam::open(std::move(files));
    ASSERT_TRUE(ram) << ram.error().text;
    auto owned = std::make_unique<memory::GuestRam>(std::move(*ram));
    auto hashes = std::make_shared<memory::KnownHashes>(kPages);
    memory::TrackerRequest request;
    request.ram = owned.get();
    request.hashes = hashes;
    auto chosen = memory::choose_tracker(std::move(request));
    ASSERT_TRUE(chosen) << chosen.error().text;
    guest_ = std::make_unique<LiveGuest>(std::move(owned), std::move(chosen->tracker), std::move(hashes), std::nullopt,
                                         GetParam());
    ASSERT_TRUE(guest_->arm());
    ASSERT_TRUE(guest_->refresh_present());
  }

  void cut(std::uint64_t pages) { ASSERT_EQ(ftruncate(owner_.get(), static_cast<off_t>(pages * kPage)), 0); }
  std::byte read(pages::PageNumber page) {
    Page bytes;
    bytes.fill(std::byte{0xee});
    guest_->read_page(page, 0, bytes);
    EXPECT_TRUE(std::ranges::all_of(bytes, [&](std::byte byte) { return byte == bytes[0]; }));
    return bytes[0];
  }
  void expect_lost() {
    const auto whole = guest_->check_whole();
    ASSERT_FALSE(whole);
    EXPECT_NE(whole.error().text.find("/dev/shm/vm.ram"), std::string::npos) << whole.error().text;
    pages::Bitmap written(kPages);
    EXPECT_FALSE(guest_->collect_written(written)) << "no later migration may begin";
  }

  UniqueFd owner_;  // what QEMU's user holds
  std::unique_ptr<LiveGuest> guest_;
};

INSTANTIATE_TEST_SUITE_P(Reads, CutShort, testing::Bool(),
                         [](const auto& kind) { return kind.param ? "ByPread" : "ByMapping"; });

TEST_P(CutShort, AReadGivesZerosAndIsNotBelieved) {
  cut(40);
  EXPECT_EQ(read(39), std::byte{1});
  EXPECT_FALSE(guest_->damaged());
  EXPECT_EQ(read(40), std::byte{0});
  EXPECT_TRUE(guest_->damaged());
  expect_lost();
}

TEST_P(CutShort, AReadThatFailedIsNotForgottenWhenTheFileGrowsAgain) {
  cut(40);
  read(50);
  cut(kPages);
  EXPECT_TRUE(guest_->damaged());
  EXPECT_FALSE(guest_->check_whole());
  pages::Bitmap written(kPages);
  EXPECT_FALSE(guest_->collect_written(written));
}

TEST_P(CutShort, WhatIsGoneIsNotTakenForZeroPages) {
  cut(40);
  pages::Bitmap among(kPages);
  pages::Bitmap zero(kPages);
  among.set_all();
  EXPECT_FALSE(guest_->find_zero(among, zero));
  EXPECT_FALSE(guest_->refresh_present());
  expect_lost();
}

TEST_P(CutShort, PlacingDoesNotMakeItWholeAgain) {
  cut(0);
  Page bytes;
  bytes.fill(std::byte{2});
  for (pages::PageNumber page = 0; page < kPages; ++page) {
    const transfer::Arrival arrival{page, 0, bytes};
    const auto placed = guest_->place_pages({&arrival, 1});
    EXPECT_EQ(placed.has_value(), page != kPages - 1);
  }
  EXPECT_TRUE(guest_->damaged());
  expect_lost();
}

TEST_P(CutShort, AGuestThatIsWholeIsBelieved) {
  EXPECT_EQ(read(kPages - 1), std::byte{1});
  Page bytes;
  bytes.fill(std::byte{2});
  const transfer::Arrival arrival{kPages - 1, 0, bytes};
  EXPECT_TRUE(guest_->place_pages({&arrival, 1}));
  EXPECT_EQ(read(kPages - 1), std::byte{2});
  EXPECT_TRUE(guest_->check_whole());
  EXPECT_FALSE(guest_->damaged());
  pages::Bitmap written(kPages);
  EXPECT_TRUE(guest_->collect_written(written));
}

/// Of a guest whose pages are found by the kernel, or by comparing what is sent.
class Tracker final : public memory::WrittenTracker {
 public:
  explicit Tracker(bool compares) : compares_(compares) {}
  [[nodiscard]] memory::TrackerKind kind() const override {
    return compares_ ? memory::TrackerKind::kHashes : memory::TrackerKind::kPagemapScan;
  }
  std::expected<void, memory::Error> arm() override { return {}; }
  std::expected<void, memory::Error> collect(pages::Bitmap&) override { return {}; }
  [[nodiscard]] bool compares_content() const override { return compares_; }
  [[nodiscard]] std::shared_ptr<memory::UserfaultSet> userfaults() const override { return nullptr; }
  std::expected<void, memory::Error> end_paging() override { return {}; }

 private:
  const bool compares_;
};

struct OpenGuest {
  explicit OpenGuest(bool compares = false, bool may_vanish = false) {
    UniqueFd file(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    owner.reset(fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
    EXPECT_EQ(ftruncate(owner.get(), kPages * kPage), 0);
    Page ones;
    ones.fill(std::byte{1});
    EXPECT_EQ(pwrite(owner.get(), ones.data(), kPage, 2 * kPage), static_cast<ssize_t>(kPage));
    std::vector<memory::RegionFile> files;
    files.push_back({"ram0", kPages * kPage, 4096, 0x7f0000000000, "/dev/shm/vm.ram", std::move(file)});
    auto ram = memory::GuestRam::open(std::move(files));
    EXPECT_TRUE(ram) << ram.error().text;
    guest = std::make_unique<LiveGuest>(std::make_unique<memory::GuestRam>(std::move(*ram)),
                                        std::make_unique<Tracker>(compares),
                                        std::make_shared<memory::KnownHashes>(kPages), std::nullopt, may_vanish);
    EXPECT_TRUE(guest->refresh_present());
  }
  [[nodiscard]] std::uint64_t bytes_in_file() const {
    struct stat status {};
    EXPECT_EQ(fstat(owner.get(), &status), 0);
    return static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  UniqueFd owner;
  std::unique_ptr<LiveGuest> guest;
};

TEST(InPlace, IsThePageItselfAndNeverAHole) {
  OpenGuest open;
  const std::span<const std::byte> page = open.guest->page_in_place(2, true);
  ASSERT_EQ(page.size(), kPage);
  const std::byte written{7};
  ASSERT_EQ(pwrite(open.owner.get(), &written, 1, 2 * kPage + 5), 1);
  EXPECT_EQ(page[5], written);
  for (pages::PageNumber hole = 3; hole < kPages; ++hole) {
    EXPECT_TRUE(open.guest->page_in_place(hole, true).empty());
  }
  EXPECT_EQ(open.bytes_in_file(), kPage);
}

TEST(InPlace, NotWhereMemoryVanishes) { EXPECT_TRUE(OpenGuest(false, true).guest->page_in_place(2, true).empty()); }

TEST(InPlace, OfContentThatIsComparedOnlyWithItsHashInTheTag) {
  OpenGuest open(true, false);
  EXPECT_TRUE(open.guest->page_in_place(2, false).empty());
  EXPECT_EQ(open.guest->page_in_place(2, true).size(), kPage);
  EXPECT_EQ(OpenGuest(false, false).guest->page_in_place(2, false).size(), kPage);
}

TEST(InPlace, OfHugePagesOnlyWhatHasContent) {
  const auto pool = memory::test::HugePages::add(2);
  if (!pool) {
    GTEST_SKIP() << "the kernel gives no huge pages (vm.nr_hugepages)";
  }
  constexpr std::uint64_t kHuge = memory::kPagesPerHugePage;
  UniqueFd file(memfd_create("guest-ram", MFD_CLOEXEC | MFD_HUGETLB));
  const UniqueFd owner(fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
  ASSERT_EQ(ftruncate(owner.get(), 2 * kHuge * kPage), 0);
  auto* const ram =
      static_cast<std::byte*>(mmap(nullptr, kHuge * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, owner.get(), 0));
  ASSERT_NE(ram, MAP_FAILED);
  ram[5 * kPage] = std::byte{7};
  munmap(ram, kHuge * kPage);
  std::vector<memory::RegionFile> files;
  files.push_back({"ram0", 2 * kHuge * kPage, memory::kHugePageSize, 0x7f0000000000, "", std::move(file)});
  auto opened = memory::GuestRam::open(std::move(files));
  ASSERT_TRUE(opened) << opened.error().text;
  LiveGuest guest(std::make_unique<memory::GuestRam>(std::move(*opened)), std::make_unique<Tracker>(true),
                  std::make_shared<memory::KnownHashes>(2 * kHuge), std::nullopt, false);
  ASSERT_TRUE(guest.refresh_present());
  EXPECT_TRUE(guest.page_in_place(5, true).empty()) << "nobody has looked at it";
  pages::Bitmap among(2 * kHuge), zero(2 * kHuge);
  among.set_all();
  ASSERT_TRUE(guest.find_zero(among, zero));
  EXPECT_EQ(zero.count(), 2 * kHuge - 1);
  ASSERT_EQ(guest.page_in_place(5, true).size(), kPage);
  EXPECT_EQ(guest.page_in_place(5, true)[0], std::byte{7});
  Page bytes;
  for (const pages::PageNumber page : {pages::PageNumber{6}, kHuge, 2 * kHuge - 1}) {
    EXPECT_TRUE(guest.page_in_place(page, true).empty());
    bytes.fill(std::byte{0xee});
    guest.read_page(page, 0, bytes);
    EXPECT_EQ(bytes[0], std::byte{0});
  }
  EXPECT_EQ(guest.ram().resident_bytes().value_or(0), memory::kHugePageSize) << "a hole stays one";
  ASSERT_TRUE(guest.zero_pages(0, kHuge));
  EXPECT_TRUE(guest.page_in_place(5, true).empty());
  EXPECT_FALSE(guest.damaged());
}

TEST(InPlace, AFileThatIsCutShortGivesZerosAndIsNoticed) {
  OpenGuest open;
  const std::span<const std::byte> page = open.guest->page_in_place(2, true);
  ASSERT_EQ(ftruncate(open.owner.get(), 0), 0);
  EXPECT_EQ(page[5], std::byte{0});
  EXPECT_TRUE(open.guest->damaged());
  EXPECT_FALSE(open.guest->check_whole());
}

TEST(InPlace, TheMappingOutlivesTheGuest) {
  OpenGuest open;
  const std::shared_ptr<const memory::GuestRam> kept = open.guest->shared_ram();
  const std::span<const std::byte> page = open.guest->page_in_place(2, true);
  open.guest.reset();
  EXPECT_EQ(page[5], std::byte{1});
}

}  // namespace
}  // namespace godwit::daemon
