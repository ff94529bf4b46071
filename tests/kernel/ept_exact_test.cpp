// The accessed set is what the nested guest touched, page for page: once, again after clearing, in a thousand random
// rounds, with large mappings, with a vCPU that never stops.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <random>
#include <ranges>

#include "tests/kernel/ept_vm.h"

namespace godwit::kernel_test {
namespace {

/// By the tables, and by KVM's own aging.
class Exact : public testing::TestWithParam<bool> {
 protected:
  [[nodiscard]] bridge::EptScan scan(const EptVm& vm, bool clear) const { return vm.scan(clear, GetParam()); }
};

TEST_P(Exact, ReadsAndWrites) {
  EptVm vm;
  EXPECT_EQ(scan(vm, false).accessed_pages, 0U);
  vm.read({0, 5, 64, 4095});
  vm.write({1, 5, 700});
  const Pages touched{0, 1, 5, 64, 700, 4095};
  for (int again = 0; again < 2; ++again) {  // reading changes nothing
    const auto seen = scan(vm, false);
    EXPECT_EQ(pages_of(seen.accessed), touched);
    EXPECT_EQ(seen.accessed_pages, touched.size());
    EXPECT_TRUE(holds(pages_of(seen.dirty), {1, 5, 700}));
    EXPECT_TRUE(holds(pages_of(seen.present), touched));
  }
}

TEST_P(Exact, Clearing) {
  EptVm vm;
  vm.write({1, 2, 3, 600});
  EXPECT_EQ(pages_of(scan(vm, true).accessed), (Pages{1, 2, 3, 600}));
  const auto idle = scan(vm, true);
  EXPECT_EQ(pages_of(idle.accessed), Pages{});
  EXPECT_TRUE(holds(pages_of(idle.dirty), {1, 2, 3, 600})) << "dirty bits are KVM's";
  vm.read({2});
  vm.write({600, 9});
  EXPECT_EQ(pages_of(scan(vm, true).accessed), (Pages{2, 9, 600}));
}

TEST_P(Exact, LargePages) {
  EptVm vm(kSmallRamBytes, RamPages::k2MiB);
  vm.read({3});
  vm.write({3 * 512 + 1});
  const auto seen = scan(vm, true);
  EXPECT_EQ(seen.accessed_pages, 2 * 512U);
  EXPECT_TRUE(holds(pages_of(seen.accessed), {0, 511, 3 * 512, 4 * 512 - 1}));
  EXPECT_EQ(seen.mappings[1], GetParam() ? 0U : 2U);
  EXPECT_EQ(scan(vm, false).accessed_pages, 0U);
  vm.read({3 * 512 + 9});
  EXPECT_EQ(scan(vm, true).accessed_pages, 512U);
}

INSTANTIATE_TEST_SUITE_P(By, Exact, testing::Values(false, true),
                         [](const auto& of) { return std::string(of.param ? "KvmAging" : "Tables"); });

TEST(Tables, Info) {
  EptVm vm;
  vm.read({1});
  const auto info = vm.scanner().info();
  ASSERT_TRUE(info);
  EXPECT_EQ(info->abi, GODWIT_EPT_ABI);
  EXPECT_EQ(info->format, GODWIT_EPT_FORMAT_NPT) << "TCG has SVM only";
  EXPECT_EQ(info->state, 0U);
  EXPECT_TRUE(info->levels == 4 || info->levels == 5);
  EXPECT_EQ(info->vcpus, 1U);
  EXPECT_EQ(info->memslots, 2U);
  EXPECT_EQ(info->pid, vm.vmm().pid());
  const auto slots = vm.scanner().slots();
  ASSERT_TRUE(slots);
  ASSERT_EQ(slots->size(), 2U);
  const auto& ram = slots->at(0).start == kRamPage ? slots->at(0) : slots->at(1);
  EXPECT_EQ(ram.start, kRamPage);
  EXPECT_EQ(ram.count, vm.ram_pages());
  EXPECT_EQ(ram.address, vm.vmm().ram_address());
}

TEST(Tables, PresentFollowsTheMapping) {
  EptVm vm;
  vm.write({10, 11});
  EXPECT_EQ(pages_of(vm.scan(false).present), (Pages{10, 11}));
  ASSERT_EQ(fallocate(vm.vmm().ram_file(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10 * 4096, 4096), 0);
  EXPECT_EQ(pages_of(vm.scan(false).present), Pages{11});
}

TEST(Tables, OneGiB) {
  EptVm vm(std::uint64_t{1} << 30, RamPages::k1GiB);
  vm.write({123456});
  const auto seen = vm.scan(true);
  EXPECT_EQ(seen.mappings[2], 1U);
  EXPECT_EQ(seen.accessed_pages, vm.ram_pages());
  EXPECT_EQ(vm.scan(false).accessed_pages, 0U);
  vm.read({5});
  EXPECT_EQ(vm.scan(false).accessed_pages, vm.ram_pages());
}

TEST(Tables, ALargePageIsNotClearedInParts) {
  EptVm vm(kSmallRamBytes, RamPages::k2MiB);
  vm.read({5});
  const auto part = vm.scanner().scan({kRamPage, 256, true});
  ASSERT_TRUE(part);
  EXPECT_EQ(part->accessed_pages, 256U);
  EXPECT_NE(part->state & GODWIT_EPT_PARTIAL, 0U);
  EXPECT_EQ(vm.scan(true).accessed_pages, 512U) << "the other half would never have been told of";
}

TEST(Tables, RandomRounds) {
  constexpr int kRounds = 1000;
  EptVm vm;
  std::mt19937 random(1);
  std::uint64_t touched_in_all = 0;
  std::vector<std::uint64_t> touched(vm.ram_pages() / 64);  // words, not sets: this machine is slow
  for (int round = 0; round < kRounds; ++round) {
    Pages read;
    Pages written;
    std::ranges::fill(touched, 0);
    for (auto i = random() % 60; i > 0; --i) {
      const auto page = static_cast<std::uint32_t>(random() % vm.ram_pages());
      (random() % 2 == 0 ? read : written).insert(page);
      touched[page / 64] |= std::uint64_t{1} << page % 64;
      ++touched_in_all;
    }
    vm.read(read);
    vm.write(written);
    const auto seen = vm.scan(true);
    ASSERT_EQ(seen.accessed, touched) << "round " << round;
    for (const std::uint32_t page : written) {
      ASSERT_TRUE(seen.dirty[page / 64] >> page % 64 & 1) << "round " << round;
    }
  }
  std::printf("%d rounds, %llu accesses, none missed, none too many\n", kRounds,
              static_cast<unsigned long long>(touched_in_all));
}

/// Lets the vCPU write until it has gone over all of its few pages many times.
void wait_for_writes(TinyVmm& vmm, std::uint64_t more) {
  const std::uint64_t enough = vmm.writes() + more;
  while (vmm.writes() < enough) {
    usleep(100);
  }
}

// A vCPU that has a page in its TLB sets no bit: without a flush after clearing, its next accesses would not be seen.
TEST(Tables, AVcpuThatNeverStops) {
  constexpr std::uint64_t kPages = 64;
  constexpr std::uint64_t kWrites = kPages * 40;  // none of 64 pages is left out but once in 10^15
  EptVm vm(kPages * 4096);
  vm.vmm().start_writing();
  wait_for_writes(vm.vmm(), kWrites);
  for (int round = 0; round < 30; ++round) {
    static_cast<void>(vm.scan(true));
    wait_for_writes(vm.vmm(), kWrites);
    ASSERT_EQ(vm.scan(false).accessed_pages, kPages) << "round " << round;
  }
  EXPECT_TRUE(vm.vmm().stop_writing());
}

struct Measured {
  const char* what;
  bool clear;
  bool by_kvm_aging;
  bool all_accessed;
  double ms_per_gib = 1e9;
};

// Printed for docs/kmod.md: the best of a few rounds.
TEST(Tables, Cost) {
  constexpr std::uint64_t kBytes = 64U << 20;
  constexpr int kRounds = 5;
  EptVm vm(kBytes);
  std::array<Measured, 5> measured{{{"walk, read", false, false, true},
                                    {"page by page, read", false, true, true},
                                    {"walk, clear, all accessed", true, false, true},
                                    {"walk, clear, none accessed", true, false, false},
                                    {"page by page, clear, all accessed", true, true, true}}};
  std::uint64_t hold_max_ns = 0;
  for (int round = 0; round < kRounds; ++round) {
    for (Measured& each : measured) {
      if (each.all_accessed) {
        for (std::uint32_t first = 0; first < vm.ram_pages(); first += kvm_test::kListMax) {
          const auto all = std::views::iota(first, first + static_cast<std::uint32_t>(kvm_test::kListMax));
          vm.read(Pages(all.begin(), all.end()));
        }
      }
      const auto before = std::chrono::steady_clock::now();
      const auto seen = vm.scan(each.clear, each.by_kvm_aging);
      const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - before;
      each.ms_per_gib = std::min(each.ms_per_gib, took.count() * static_cast<double>((1U << 30) / kBytes));
      hold_max_ns = std::max(hold_max_ns, seen.lock_hold_max_ns);
      EXPECT_EQ(seen.accessed_pages, each.all_accessed ? vm.ram_pages() : 0U) << each.what;
    }
  }
  for (const Measured& each : measured) {
    std::printf("COST %-36s %7.1f ms/GiB\n", each.what, each.ms_per_gib);
  }
  std::printf("COST lock held for at most %.2f ms\n", static_cast<double>(hold_max_ns) / 1e6);
}

// Loaded as on a kernel that is newer than those tested.
TEST(Newer, OnlyAging) {
  EptVm vm;
  const auto info = vm.scanner().info();
  ASSERT_TRUE(info);
  EXPECT_EQ(info->state & GODWIT_EPT_UNTESTED, GODWIT_EPT_UNTESTED);
  vm.read({0, 4095});
  vm.write({77});
  const auto seen = vm.scan(true);
  EXPECT_EQ(seen.state, GODWIT_EPT_UNTESTED | GODWIT_EPT_KVM_AGING);
  EXPECT_EQ(pages_of(seen.accessed), (Pages{0, 77, 4095}));
  EXPECT_EQ(seen.dirty_pages, vm.ram_pages()) << "not known is dirty";
  EXPECT_EQ(vm.scan(false).accessed_pages, 0U);
}

}  // namespace
}  // namespace godwit::kernel_test
