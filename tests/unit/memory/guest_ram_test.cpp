#include "dataplane/memory/guest_ram.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <random>

#include "tests/unit/memory/guest_process.h"

namespace godwit::memory::test {
namespace {

constexpr std::uint64_t kPage = pages::kPageSize;

class GuestRamTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam() && !(huge_pages_ = HugePages::add(6))) {
      GTEST_SKIP() << "the kernel gives no huge pages (vm.nr_hugepages)";
    }
    std::vector<RegionFile> files;
    for (const std::uint64_t bytes : {4U << 20, 8U << 20}) {
      UniqueFd file(GetParam() ? memfd_create("ram", MFD_CLOEXEC | MFD_HUGETLB)
                               : open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
      ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
      files.push_back({"ram" + std::to_string(files.size()), bytes, GetParam() ? kHugePageSize : 4096U,
                       0x7f0000000000U + (files.size() << 32), "", std::move(file)});
    }
    auto ram = GuestRam::open(std::move(files));
    ASSERT_TRUE(ram) << ram.error().text;
    ram_.emplace(std::move(*ram));
  }
  void TearDown() override {
    ram_.reset();
    huge_pages_.reset();
  }

  std::byte at(pages::PageNumber page) {
    std::array<std::byte, kPage> bytes;
    EXPECT_TRUE(ram_->read(page, 0, bytes));
    return bytes[77];
  }

  std::optional<HugePages> huge_pages_;
  std::optional<GuestRam> ram_;
};

INSTANTIATE_TEST_SUITE_P(Kinds, GuestRamTest, testing::Bool(),
                         [](const auto& kind) { return kind.param ? "Huge" : "Small"; });

TEST_P(GuestRamTest, PagesAreNumberedThroughTheRegions) {
  EXPECT_EQ(ram_->page_count(), 3072U);
  EXPECT_EQ(ram_->region_of(1023).name, "ram0");
  EXPECT_EQ(ram_->region_of(1024).name, "ram1");
  const PageRange at = ram_->pages_at(0x7f0100000000U + 3 * kPage + 5, 2 * kPage);
  EXPECT_EQ(at.first, 1024U + 3);
  EXPECT_EQ(at.count, 3U);
  EXPECT_EQ(ram_->pages_at(0x7f0000000000U + (4U << 20), 1).count, 0U);
  EXPECT_EQ(ram_->pages_at(0x7f0000000000U + kPage, UINT64_MAX).count, 1023U) << "clipped to the region";
}

TEST_P(GuestRamTest, WhatIsWrittenIsRead) {
  std::vector<std::byte> bytes(100 * kPage);
  std::mt19937 random(1);
  // Into holes, whatever is said of them; then over what is there, by file and by mapping.
  for (const bool present : {true, false, true}) {
    std::ranges::generate(bytes, [&random] { return static_cast<std::byte>(random()); });
    // Runs across the border of the regions, a gap, and fragments of one page; whole pages and odd lengths.
    std::vector<PageWrite> writes;
    for (pages::PageNumber page = 990; page < 1080; ++page) {
      writes.push_back({page, 0, std::span(bytes).subspan((page - 990) * kPage, kPage), present});
    }
    for (pages::PageNumber page = 2000; page < 2010; ++page) {
      writes.push_back({page, 0, std::span(bytes).subspan((page - 1910) * kPage, 1403), present});
      writes.push_back({page, 1403, std::span(bytes).subspan((page - 1910) * kPage + 1403, kPage - 1403), present});
    }
    writes.push_back({2012, 100, std::span(bytes).subspan(91 * kPage, 50), present});
    ASSERT_TRUE(ram_->write(writes));
    std::vector<std::byte> back(90 * kPage);
    ASSERT_TRUE(ram_->read_pages(990, back));
    EXPECT_TRUE(std::equal(back.begin(), back.end(), bytes.begin()));
    back.resize(10 * kPage);
    ASSERT_TRUE(ram_->read_pages(2000, back));
    EXPECT_TRUE(std::equal(back.begin(), back.end(), bytes.begin() + 90 * kPage));
    back.resize(50);
    ASSERT_TRUE(ram_->read(2012, 100, back));
    EXPECT_TRUE(std::equal(back.begin(), back.end(), bytes.begin() + 91 * kPage));
  }
}

TEST_P(GuestRamTest, HolesReadAsZeroAndStayHoles) {
  std::vector<std::byte> bytes(ram_->page_count() * kPage, std::byte{1});
  ASSERT_TRUE(ram_->read_pages(0, bytes));
  EXPECT_EQ(bytes, std::vector<std::byte>(bytes.size()));
  pages::Bitmap all(ram_->page_count());
  pages::Bitmap zero(ram_->page_count());
  all.set_all();
  ASSERT_TRUE(ram_->find_zero(all, zero));
  EXPECT_EQ(zero, all);
  EXPECT_EQ(ram_->resident_bytes().value(), 0U);
  pages::Bitmap present(ram_->page_count());
  ASSERT_TRUE(ram_->find_present(present));
  EXPECT_FALSE(present.any());
}

TEST_P(GuestRamTest, PresentAndZeroPages) {
  std::vector<std::byte> ones(kPage, std::byte{1});
  std::vector<std::byte> zeros(kPage);
  const std::vector<PageWrite> writes{{3, 0, ones}, {4, 0, zeros}, {1024, 0, ones}, {3071, 0, ones}};
  ASSERT_TRUE(ram_->write(writes));
  pages::Bitmap present(ram_->page_count());
  ASSERT_TRUE(ram_->find_present(present));
  pages::Bitmap expected(ram_->page_count());
  for (const PageWrite& write : writes) {
    expected.set(write.page);
  }
  if (!GetParam()) {
    EXPECT_EQ(present, expected);
  } else {
    EXPECT_EQ(present.count(), ram_->page_count());
  }
  pages::Bitmap among(ram_->page_count());
  pages::Bitmap zero(ram_->page_count());
  among.set_range(2, 4);
  among.set_range(1020, 10);
  ASSERT_TRUE(ram_->find_zero(among, zero));
  among.clear(3);
  among.clear(1024);
  EXPECT_EQ(zero, among);
}

TEST_P(GuestRamTest, PunchedPagesReadAsZeroAndGiveTheirMemoryBack) {
  const std::vector<std::byte> ones(kPage, std::byte{1});
  std::vector<PageWrite> writes;
  for (pages::PageNumber page = 0; page < ram_->page_count(); ++page) {
    writes.push_back({page, 0, ones});
  }
  ASSERT_TRUE(ram_->write(writes));
  EXPECT_EQ(ram_->resident_bytes().value(), ram_->page_count() * kPage);
  ASSERT_TRUE(ram_->punch(100, 1500));  // parts of huge pages, whole ones, and the border of the regions
  EXPECT_EQ(at(99), std::byte{1});
  EXPECT_EQ(at(100), std::byte{0});
  EXPECT_EQ(at(700), std::byte{0});
  EXPECT_EQ(at(1599), std::byte{0});
  EXPECT_EQ(at(1600), std::byte{1});
  const std::uint64_t freed = GetParam() ? 2 * kHugePageSize : 1500 * kPage;  // pages 512..1535 are whole
  EXPECT_EQ(ram_->resident_bytes().value(), ram_->page_count() * kPage - freed);
}

TEST_P(GuestRamTest, AFileCutShortIsAnErrorEverywhere) {
  const std::vector<std::byte> ones(kPage, std::byte{1});
  for (pages::PageNumber page = 0; page < ram_->page_count(); ++page) {
    const PageWrite write{page, 0, ones};
    ASSERT_TRUE(ram_->write({&write, 1}));
  }
  ASSERT_TRUE(ram_->check_whole());
  ASSERT_EQ(ftruncate(ram_->region_of(2000).file, 2 << 20), 0);  // region 1 begins at page 1024
  pages::Bitmap among(ram_->page_count());
  pages::Bitmap found(ram_->page_count());
  among.set(1024);
  const auto lost = [](const auto& result) { return !result && result.error().code == ErrorCode::kLost; };
  EXPECT_TRUE(lost(ram_->check_whole()));
  EXPECT_TRUE(lost(ram_->find_present(found))) << "what lies beyond the end looks like holes";
  EXPECT_TRUE(lost(ram_->find_zero(among, found)));
  std::array<std::byte, kPage> bytes;
  EXPECT_TRUE(lost(ram_->read(2000, 0, bytes)));
  EXPECT_TRUE(ram_->read(1000, 0, bytes)) << "the other region";
  EXPECT_FALSE(ram_->damaged()) << "no mapping was touched";
}

TEST_P(GuestRamTest, NoWriteMakesAFileWholeThatWasCutShort) {
  const std::vector<std::byte> ones(kPage, std::byte{1});
  ASSERT_EQ(ftruncate(ram_->region_of(2000).file, 2 << 20), 0);
  for (const pages::PageNumber page : {pages::PageNumber{2000}, ram_->page_count() - 1}) {
    const PageWrite write{page, 0, ones};
    static_cast<void>(ram_->write({&write, 1}));
  }
  const auto whole = ram_->check_whole();
  ASSERT_FALSE(whole);
  EXPECT_NE(whole.error().text.find("cut short"), std::string::npos) << whole.error().text;
  // hugetlbfs lets what was allocated beyond the end be touched.
  EXPECT_EQ(ram_->damaged(), !GetParam());
}

TEST(GuestRamOpen, RefusesWhatCannotBe) {
  const auto open_one = [](std::uint64_t bytes, std::uint32_t page_bytes, std::uint64_t address, const char* where) {
    std::vector<RegionFile> files;
    UniqueFd file(open(where, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    EXPECT_EQ(ftruncate(file.get(), 1U << 20), 0);
    files.push_back({"ram", bytes, page_bytes, address, "", std::move(file)});
    return GuestRam::open(std::move(files));
  };
  EXPECT_TRUE(open_one(1U << 20, 4096, 0x1000, "/dev/shm"));
  EXPECT_FALSE(open_one(2U << 20, 4096, 0x1000, "/dev/shm")) << "larger than its file";
  EXPECT_FALSE(open_one(5000, 4096, 0x1000, "/dev/shm")) << "no multiple of the page size";
  EXPECT_FALSE(open_one(0, 4096, 0x1000, "/dev/shm"));
  EXPECT_FALSE(open_one(1U << 20, 8192, 0x1000, "/dev/shm"));
  EXPECT_FALSE(open_one(1U << 20, 4096, 0x1001, "/dev/shm")) << "address not aligned";
  EXPECT_FALSE(open_one(1U << 20, 4096, UINT64_MAX - 4095, "/dev/shm")) << "address out of range";
  EXPECT_FALSE(open_one(2U << 20, kHugePageSize, 0, "/dev/shm")) << "not on hugetlbfs";
  EXPECT_FALSE(GuestRam::open({}));
  std::vector<RegionFile> files;
  files.push_back({"ram", 4096, 4096, 0x1000, "", UniqueFd(open("/dev/null", O_RDWR))});
  EXPECT_FALSE(GuestRam::open(std::move(files)));
}

/// A hugetlbfs of two pages, however large the pool is.
class TinyHugetlbfs {
 public:
  TinyHugetlbfs() : path_("/tmp/godwit-memory-test-XXXXXX") {
    mounted_ = mkdtemp(path_.data()) != nullptr && mount("none", path_.c_str(), "hugetlbfs", 0, "size=4M") == 0;
  }
  ~TinyHugetlbfs() {
    if (mounted_) {
      umount2(path_.c_str(), MNT_DETACH);
    }
    rmdir(path_.c_str());
  }
  [[nodiscard]] bool mounted() const { return mounted_; }
  [[nodiscard]] UniqueFd create() const {
    return UniqueFd(open((path_ + "/ram").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  }

 private:
  std::string path_;
  bool mounted_ = false;
};

TEST(GuestRamWrite, FullHugePageFileSystemIsAnErrorNotASignal) {
  const auto pool = HugePages::add(3);
  const TinyHugetlbfs system;
  if (!pool || !system.mounted()) {
    GTEST_SKIP() << "needs root: vm.nr_hugepages and mount of hugetlbfs";
  }
  std::vector<RegionFile> files;
  files.push_back({"ram", 6U << 20, kHugePageSize, 0, "", system.create()});
  ASSERT_EQ(ftruncate(files[0].file.get(), 6 << 20), 0);
  auto ram = GuestRam::open(std::move(files));
  ASSERT_TRUE(ram) << ram.error().text;
  const std::vector<std::byte> ones(kPage, std::byte{1});
  std::vector<bool> written;
  for (pages::PageNumber page = 0; page < ram->page_count(); page += kPagesPerHugePage) {
    const PageWrite write{page, 0, ones};
    const auto done = ram->write({&write, 1});
    written.push_back(done.has_value());
    EXPECT_TRUE(done || done.error().code == ErrorCode::kNoMemory) << done.error().text;
  }
  EXPECT_EQ(written, (std::vector<bool>{true, true, false}));
}

}  // namespace
}  // namespace godwit::memory::test
