// What the kernel does to a KVM guest's memory that could cost a write, or much time: README.md has the whole list.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "dataplane/memory/userfault_set.h"
#include "dataplane/pages/page_digest.h"
#include "tests/kvm/kvm_guest.h"

namespace godwit::kvm_test {
namespace {

constexpr int kPageOut = 21;  // MADV_PAGEOUT

class KvmTrap : public KvmGuest {
 protected:
  /// All of RAM is the vCPU's writing, and counted as sent.
  void fill_and_arm(bool has_balloon = false) {
    every_ = every_page();
    ASSERT_TRUE(vmm_->write(every_));
    ASSERT_NO_FATAL_FAILURE(arm_tracker(has_balloon));
    if (!IsSkipped()) {
      EXPECT_FALSE(collect().any());
    }
  }
  /// Pages that lose their entries together.
  [[nodiscard]] static std::uint32_t unit() { return GetParam().huge ? memory::kPagesPerHugePage : 1; }
  /// Whether the VMM has an entry of the page.
  [[nodiscard]] bool is_mapped(std::uint32_t page) const {
    const UniqueFd pagemap(open(("/proc/" + std::to_string(vmm_->pid()) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
    std::uint64_t word = 0;
    EXPECT_EQ(pread(pagemap.get(), &word, sizeof word, static_cast<off_t>(vmm_->ram_address() / 4096 + page) * 8), 8);
    return word >> 63 != 0;
  }

  std::vector<std::uint32_t> every_;
};

INSTANTIATE_TEST_SUITE_P(All, KvmTrap, testing::ValuesIn(kKvmCases), name_of_kvm_case);
INSTANTIATE_TEST_SUITE_P(OfNobody, KvmTrap, testing::ValuesIn(kCasesOfNobody), name_of_kvm_case);

// PAGEMAP_SCAN forgets such pages: on Linux 6.12 when it is asked for more than PAGE_IS_WRITTEN, and on hugetlbfs
// always.
TEST_P(KvmTrap, WrittenPagesWhoseEntriesAreGoneAreReported) {
  ASSERT_NO_FATAL_FAILURE(fill_and_arm());
  if (IsSkipped()) {
    return;
  }
  const std::uint32_t dropped = unit();
  const std::uint32_t reclaimed = 3 * unit();
  const std::uint32_t punched = 5 * unit();
  std::vector<std::uint32_t> writes{dropped, punched};
  if (!GetParam().huge) {
    writes.push_back(reclaimed);  // huge pages are not
  }
  ASSERT_TRUE(vmm_->write(writes));
  advise(dropped, unit(), MADV_DONTNEED);
  ASSERT_TRUE(ram_->punch(punched, unit()));
  if (!GetParam().huge) {
    advise(reclaimed, 1, kPageOut);
  }
  pages::Bitmap expected(ram_->page_count());
  for (const std::uint32_t page : writes) {
    // Linux 6.1 does not always reclaim it; nor does its tracker look at entries.
    if (page != reclaimed || GetParam().kind == memory::TrackerKind::kPagemapScan) {
      EXPECT_FALSE(is_mapped(page)) << "page " << page << ": nothing is tested";
    }
    expected.set(page);
  }
  expected.set_range(punched, unit());
  expect_written(expected);
  // They are armed again, entry or not.
  ASSERT_TRUE(vmm_->read(writes));
  EXPECT_FALSE(collect().any());
  ASSERT_TRUE(vmm_->write(writes));
  expected.clear_all();
  for (const std::uint32_t page : writes) {
    expected.set(page);
  }
  expect_written(expected);
}

TEST_P(KvmTrap, MemoryThatTheVmmGivesBackIsReported) {
  ASSERT_NO_FATAL_FAILURE(fill_and_arm(true));
  if (IsSkipped()) {
    return;
  }
  const std::uint32_t given = 2 * unit();
  advise(given, unit(), MADV_REMOVE);  // clean: no write tells of it
  pages::Bitmap expected(ram_->page_count());
  expected.set_range(given, unit());
  expect_written(expected);
  ASSERT_TRUE(vmm_->read({{given}}));
  EXPECT_FALSE(collect().any()) << "zeros that are read are no write";
  ASSERT_TRUE(vmm_->write({{given}}));
  expected.clear_all();
  expected.set(given);
  expect_written(expected);
}

// From the kernel: a userfaultfd for user mode only sees them as well, where it protects asynchronously.
TEST_P(KvmTrap, WritesOfKvmItselfAreReported) {
  ASSERT_NO_FATAL_FAILURE(fill_and_arm());
  if (IsSkipped()) {
    return;
  }
  if (GetParam().user != 0 && GetParam().kind == memory::TrackerKind::kPagemapScan && !user_mode_only_) {
    GTEST_SKIP() << "vm.unprivileged_userfaultfd is on";
  }
  const std::uint32_t clock = 5 * unit();
  const std::vector<std::uint32_t> other{3 * unit()};
  vmm_->keep_clock_in(clock);
  pages::Bitmap expected(ram_->page_count());
  expected.set(clock);
  std::vector<std::byte> before(pages::kPageSize);
  std::vector<std::byte> after(pages::kPageSize);
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(ram_->read(clock, 0, before));
    ASSERT_TRUE(vmm_->read(other));
    expect_written(expected);
    ASSERT_TRUE(ram_->read(clock, 0, after));
    EXPECT_FALSE(before == after) << "nothing is tested";
    tracker_->note_sent(clock, pages::hash_page(pages::PageBytes(std::span(after).first<pages::kPageSize>())));
  }
}

class KvmEventTracker : public KvmTrap {};

INSTANTIATE_TEST_SUITE_P(All, KvmEventTracker,
                         testing::Values(KvmCase{memory::TrackerKind::kWriteProtectEvents, false}), name_of_kvm_case);

// A write that is marked, but not let go on yet, while the set is taken.
TEST_P(KvmEventTracker, NoWriteGetsLostBetweenItsMarkAndItsRelease) {
  ASSERT_NO_FATAL_FAILURE(fill_and_arm());
  if (IsSkipped()) {
    return;
  }
  std::vector<std::byte> copied = all_of_ram();
  vmm_->start_writing();
  while (vmm_->writes() < 20'000) {
    copy(collect(), copied);
  }
  ASSERT_TRUE(vmm_->stop_writing());
  copy(collect(), copied);
  EXPECT_TRUE(copied == all_of_ram());
}

/// How many mappings KVM has made for the vCPU.
std::uint64_t mappings_made(const TinyVmm& vmm) {
  // In C++, Debian 12's <linux/kvm.h> gives kvm_stats_desc a wrong size.
  struct Description {
    std::uint32_t flags;
    std::int16_t exponent;
    std::uint16_t size;
    std::uint32_t offset, bucket_size;
  };
  const UniqueFd stats = vmm.vcpu_stats();
  kvm_stats_header header{};
  EXPECT_EQ(pread(stats.get(), &header, sizeof header, 0), static_cast<ssize_t>(sizeof header));
  const std::size_t step = sizeof(Description) + header.name_size;
  std::vector<char> all(step * header.num_desc);
  EXPECT_EQ(pread(stats.get(), all.data(), all.size(), header.desc_offset), static_cast<ssize_t>(all.size()));
  for (std::size_t at = 0; at < all.size(); at += step) {
    Description one{};
    std::memcpy(&one, &all[at], sizeof one);
    std::uint64_t value = 0;
    if (std::string_view(&all[at + sizeof one]) == "pf_fixed" &&
        pread(stats.get(), &value, sizeof value, header.data_offset + one.offset) == sizeof value) {
      return value;
    }
  }
  ADD_FAILURE() << "KVM does not count what it maps";
  return 0;
}

class KvmArming : public KvmTrap {};

INSTANTIATE_TEST_SUITE_P(All, KvmArming, testing::ValuesIn(std::begin(kKvmCases), std::end(kKvmCases) - 2),
                         name_of_kvm_case);

// To arm a range again makes KVM drop all that it has mapped of it, written or not.
TEST_P(KvmArming, WhatWasNotWrittenStaysMapped) {
  ASSERT_NO_FATAL_FAILURE(fill_and_arm());
  if (IsSkipped()) {
    return;
  }
  constexpr std::uint64_t kRounds = 4;
  const std::span hot = std::span(every_).first(64);
  const auto faults_of_rounds = [&](bool all) {
    EXPECT_TRUE(vmm_->read(every_));
    const std::uint64_t before = mappings_made(*vmm_);
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      EXPECT_TRUE(vmm_->write(hot));
      EXPECT_EQ(collect().count(), hot.size());
      if (all) {
        EXPECT_TRUE(tracker_->userfaults()->protect({vmm_->ram_address(), kRamBytes}));
      }
      EXPECT_TRUE(vmm_->read(every_));
    }
    return mappings_made(*vmm_) - before;
  };
  const std::uint64_t ours = faults_of_rounds(false);
  const std::uint64_t whole = faults_of_rounds(true);
  std::printf("mappings made a round: %lu, had all been armed again %lu\n", ours / kRounds, whole / kRounds);
  if (whole == 0) {
    GTEST_SKIP() << "this /dev/kvm maps nothing, but emulates";
  }
  EXPECT_LT(2 * ours, whole);
}

}  // namespace
}  // namespace godwit::kvm_test
