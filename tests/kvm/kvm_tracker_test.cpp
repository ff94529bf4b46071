// Every tracker against a writing vCPU under this machine's /dev/kvm, attached from outside as the bridge does it.

#include <gtest/gtest.h>
#include <unistd.h>

#include <random>
#include <vector>

#include "tests/kvm/kvm_guest.h"

namespace godwit::kvm_test {
namespace {

class KvmTracker : public KvmGuest {};

INSTANTIATE_TEST_SUITE_P(All, KvmTracker, testing::ValuesIn(kKvmCases), name_of_kvm_case);

TEST_P(KvmTracker, WrittenSetIsExactPageForPage) {
  std::vector<std::uint32_t> half(ram_->page_count() / 2);
  for (std::uint32_t i = 0; i < half.size(); ++i) {
    half[i] = i;  // the rest are holes
  }
  ASSERT_TRUE(vmm_->write(half));
  ASSERT_NO_FATAL_FAILURE(arm_tracker());
  if (IsSkipped()) {
    return;
  }
  EXPECT_FALSE(collect().any());
  std::mt19937 source(12345);
  const auto random = [&](std::uint64_t below) { return static_cast<std::uint32_t>(source() % below); };
  std::vector<std::byte> copied = all_of_ram();
  for (int round = 0; round < 25; ++round) {
    pages::Bitmap expected(ram_->page_count());
    std::vector<std::uint32_t> reads;
    std::vector<std::uint32_t> writes;
    for (std::uint32_t i = random(400); i > 0; --i) {
      reads.push_back(random(ram_->page_count()));
      writes.push_back(random(ram_->page_count()));
      expected.set(writes.back());
    }
    ASSERT_TRUE(vmm_->read(reads));
    ASSERT_TRUE(vmm_->write(writes));
    const pages::Bitmap written = collect();
    ASSERT_TRUE(written == expected) << "round " << round << ": " << difference(written, expected);
    copy(written, copied);
  }
  EXPECT_TRUE(copied == all_of_ram());
}

TEST_P(KvmTracker, CopyKeptWhileTheVcpuWritesEqualsRam) {
  ASSERT_NO_FATAL_FAILURE(arm_tracker());
  if (IsSkipped()) {
    return;
  }
  std::vector<std::byte> copied = all_of_ram();
  vmm_->start_writing();
  std::uint64_t reported = 0;
  for (int round = 0; round < 30 || vmm_->writes() < 5000; ++round) {
    const pages::Bitmap written = collect();
    reported += written.count();
    copy(written, copied);
    usleep(2000);
  }
  ASSERT_TRUE(vmm_->stop_writing());
  copy(collect(), copied);
  EXPECT_GT(reported, 0U);
  EXPECT_TRUE(copied == all_of_ram());
  EXPECT_FALSE(collect().any());
}

}  // namespace
}  // namespace godwit::kvm_test
