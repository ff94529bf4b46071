// Eviction under a vCPU of this machine's /dev/kvm that writes at random: its writes are replayed, and memory must hold
// exactly what they leave.

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <vector>

#include "tests/kvm/kvm_guest.h"
#include "tests/unit/memory/split_guest.h"

namespace godwit::kvm_test {
namespace {

using memory::test::SplitGuest;

class KvmEvictor : public KvmGuest {};

INSTANTIATE_TEST_SUITE_P(All, KvmEvictor,
                         testing::Values(KvmCase{memory::TrackerKind::kPagemapScan, false},
                                         KvmCase{memory::TrackerKind::kWriteProtectEvents, false}),
                         name_of_kvm_case);

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
  // Until all of RAM has left once and come back, and a good deal more.
  const std::uint64_t enough = 3 * ram_->page_count();
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

}  // namespace
}  // namespace godwit::kvm_test
