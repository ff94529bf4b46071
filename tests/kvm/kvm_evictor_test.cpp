// Eviction under a vCPU of this machine's /dev/kvm that writes at random: its writes are replayed, and memory must hold
// exactly what they leave.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <vector>

#include "tests/kvm/kvm_guest.h"
#include "tests/unit/memory/own_ram.h"
#include "tests/unit/memory/split_guest.h"

namespace godwit::kvm_test {
namespace {

using memory::test::SplitGuest;

class KvmEvictor : public KvmGuest {};

const KvmCase kEvictorCases[] = {{memory::TrackerKind::kPagemapScan, false},
                                 {memory::TrackerKind::kWriteProtectEvents, false}};

INSTANTIATE_TEST_SUITE_P(All, KvmEvictor, testing::ValuesIn(kEvictorCases), name_of_kvm_case);

/// What write_at_random of guest_code.S leaves after so many writes from a fresh start.
std::vector<std::byte> replay(std::uint64_t random, std::uint64_t writes, std::uint64_t ram_bytes) {
  std::vector<std::byte> ram(ram_bytes);
  for (std::uint64_t value = 1; value <= writes; ++value) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    const std::uint64_t page = (random >> 20) & (ram_bytes / pages::kPageSize - 1);
    std::memcpy(&ram[page * pages::kPageSize + (random & 0xff8)], &value, sizeof value);
  }
  return ram;
}

TEST_P(KvmEvictor, NoWriteOfAVcpuIsLost) {
  ASSERT_NO_FATAL_FAILURE(arm({}, true));
  if (IsSkipped()) {
    return;
  }
  if (user_mode_only_) {
    GTEST_SKIP() << "the userfaultfd sees no accesses of the kernel";
  }
  const std::uint64_t budget = ram_->page_count() / 4;
  SplitGuest split(*ram_, *tracker_, {.budget_pages = budget, .high_pages = budget - 100, .low_pages = budget - 200});
  ASSERT_NO_FATAL_FAILURE(split.start());
  split.begin();
  std::vector<std::byte> copied(kRamBytes);
  vmm_->start_writing();
  // Many more than are out at a time: most have come back and left again.
  const std::uint64_t enough = 2 * ram_->page_count();
  while (split.evictor->stats().evicted_pages < enough && !HasFatalFailure()) {
    split.copy_written(copied);
  }
  ASSERT_TRUE(vmm_->stop_writing());
  split.stop();
  split.copy_written(copied);
  const std::vector<std::byte> expected = replay(88172645463325252U, vmm_->writes(), kRamBytes);
  for (pages::PageNumber page = 0; page < ram_->page_count(); ++page) {
    const auto right = std::span(expected).subspan(page * pages::kPageSize, pages::kPageSize);
    ASSERT_TRUE(std::ranges::equal(split.content(page), right)) << "page " << page;
    ASSERT_TRUE(std::ranges::equal(std::span(copied).subspan(page * pages::kPageSize, pages::kPageSize), right))
        << "page " << page << " was written and not told of";
  }
  EXPECT_LE(split.resident_most, budget + memory::LeavingPages::kBatchPagesMax);
}

// The page that comes back is protected only if it was before it left.
TEST_P(KvmEvictor, WhatWasWrittenStaysWrittenAwayAndBack) {
  const std::vector<std::uint32_t> every = every_page();
  ASSERT_TRUE(vmm_->write(every));
  ASSERT_NO_FATAL_FAILURE(arm({}, true));
  if (IsSkipped()) {
    return;
  }
  SplitGuest split(*ram_, *tracker_, {.budget_pages = ram_->page_count(), .high_pages = 0, .low_pages = 0});
  ASSERT_NO_FATAL_FAILURE(split.start());
  split.begin_serving();
  std::vector<std::uint32_t> writes;
  pages::Bitmap expected(ram_->page_count());
  for (std::uint32_t page = 0; page < every.size(); page += 7) {
    writes.push_back(page);
    expected.set(page);
  }
  ASSERT_TRUE(vmm_->write(writes));
  split.evict_all();
  EXPECT_EQ(split.pager->missing_count(), every.size());
  ASSERT_TRUE(vmm_->read(every));
  expect_written(expected);
  split.stop();
}

class KvmEvictorTmpfs : public KvmGuest {
 protected:
  void SetUp() override { start(memory::test::make_huge_tmpfs_file()); }
};

INSTANTIATE_TEST_SUITE_P(All, KvmEvictorTmpfs, testing::ValuesIn(kEvictorCases), name_of_kvm_case);

// Pinned and punched, such a page is zeroed where it is, in the file and in the pin. Its parts are tracked one by one.
TEST_P(KvmEvictorTmpfs, PagesOfAHugePageKeepTheirContent) {
  ASSERT_TRUE(vmm_->write({{0}}));
  struct stat file {};
  ASSERT_EQ(fstat(vmm_->ram_file(), &file), 0);
  if (static_cast<std::uint64_t>(file.st_blocks) * 512 < memory::kHugePageSize) {
    GTEST_SKIP() << "tmpfs gives no huge pages here";
  }
  const std::vector<std::uint32_t> every = every_page();
  ASSERT_TRUE(vmm_->write(every));
  ASSERT_NO_FATAL_FAILURE(arm({}, true));
  if (IsSkipped()) {
    return;
  }
  ASSERT_TRUE(vmm_->write({{5, 700, 701, 4000}}));
  pages::Bitmap expected(ram_->page_count());
  for (const std::uint32_t page : {5U, 700U, 701U, 4000U}) {
    expected.set(page);
  }
  expect_written(expected);
  const std::vector<std::byte> before = all_of_ram();
  SplitGuest split(*ram_, *tracker_, {.budget_pages = ram_->page_count(), .high_pages = 0, .low_pages = 0});
  ASSERT_NO_FATAL_FAILURE(split.start());
  for (int batch = 0; batch < 8; ++batch) {
    split.evict_once();
  }
  EXPECT_GE(split.evictor->stats().huge_pages, memory::LeavingPages::kBatchPagesMax);
  for (pages::PageNumber page = 0; page < ram_->page_count(); ++page) {
    const auto right = std::span(before).subspan(page * pages::kPageSize, pages::kPageSize);
    ASSERT_TRUE(std::ranges::equal(split.content(page), right)) << "page " << page;
  }
}

}  // namespace
}  // namespace godwit::kvm_test
