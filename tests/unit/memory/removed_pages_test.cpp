// The kernel tells of a removal before it happens: what is reported at which point in between.

#include "dataplane/memory/removed_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

namespace godwit::memory::test {
namespace {

constexpr std::uint64_t kAddress = 0x7f0000000000;
constexpr std::uint64_t kPage = pages::kPageSize;

class RemovedPagesTest : public testing::Test {
 protected:
  void SetUp() override {
    UniqueFd file(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    ASSERT_EQ(ftruncate(file.get(), 1 << 20), 0);
    std::vector<RegionFile> files;
    files.push_back({"ram0", 1 << 20, 4096, kAddress, "", std::move(file)});
    auto ram = GuestRam::open(std::move(files));
    ASSERT_TRUE(ram) << ram.error().text;
    ram_.emplace(std::move(*ram));
    const std::vector<std::byte> ones(kPage, std::byte{1});
    for (pages::PageNumber page = 0; page < ram_->page_count(); ++page) {
      const PageWrite write{page, 0, ones};
      ASSERT_TRUE(ram_->write({&write, 1}));
    }
    removed_.emplace(*ram_);
  }

  void tell(pages::PageNumber first, std::uint64_t count) {
    removed_->on_removed({kAddress + first * kPage, count * kPage});
  }
  pages::Bitmap collect() {
    pages::Bitmap out(ram_->page_count());
    EXPECT_TRUE(removed_->collect(out));
    return out;
  }
  pages::Bitmap range(pages::PageNumber first, std::uint64_t count) {
    pages::Bitmap pages(ram_->page_count());
    pages.set_range(first, count);
    return pages;
  }

  std::optional<GuestRam> ram_;
  std::optional<RemovedPages> removed_;
};

TEST_F(RemovedPagesTest, ReportedUntilTheRemovalHasHappened) {
  tell(10, 3);
  EXPECT_EQ(collect(), range(10, 3));
  EXPECT_EQ(collect(), range(10, 3)) << "QEMU has not removed them yet";
  ASSERT_TRUE(ram_->punch(10, 2));
  EXPECT_EQ(collect(), range(10, 3)) << "one is left";
  ASSERT_TRUE(ram_->punch(12, 1));
  EXPECT_EQ(collect(), range(10, 3)) << "after it has happened";
  EXPECT_FALSE(collect().any());
}

TEST_F(RemovedPagesTest, TheNextRemovalProvesTheOneBefore) {
  tell(10, 3);
  EXPECT_EQ(collect(), range(10, 3));
  tell(20, 1);
  pages::Bitmap both = range(10, 3);
  both.set(20);
  EXPECT_EQ(collect(), both) << "filled anew in between, it may look as if not removed";
  EXPECT_EQ(collect(), range(20, 1));
}

TEST_F(RemovedPagesTest, ToldTwiceOfTheSame) {
  tell(10, 1);
  tell(10, 1);
  ASSERT_TRUE(ram_->punch(10, 1));
  EXPECT_EQ(collect(), range(10, 1));
  EXPECT_FALSE(collect().any());
}

TEST_F(RemovedPagesTest, OutsideOfRamIsNothing) {
  removed_->on_removed({kAddress + (1 << 20), kPage});
  removed_->on_removed({0, UINT64_MAX});
  EXPECT_FALSE(collect().any());
}

TEST_F(RemovedPagesTest, ZeroPagesAreSuspectAfterSilence) {
  ASSERT_TRUE(ram_->punch(30, 4));
  const std::vector<std::byte> zeros(kPage);
  const PageWrite write{40, 0, zeros};
  ASSERT_TRUE(ram_->write({&write, 1}));
  ASSERT_TRUE(removed_->suspect_zero_pages());
  pages::Bitmap expected = range(30, 4);
  expected.set(40);
  EXPECT_EQ(collect(), expected);
  EXPECT_FALSE(collect().any());
}

}  // namespace
}  // namespace godwit::memory::test
