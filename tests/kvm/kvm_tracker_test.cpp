// Every tracker against a writing vCPU under this machine's /dev/kvm, attached from outside as the bridge does it.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "dataplane/memory/written_tracker.h"
#include "qemu-bridge/attach/inject.h"
#include "tests/kvm/tiny_vmm.h"
#include "tests/unit/memory/guest_process.h"

namespace godwit::kvm_test {
namespace {

using memory::TrackerKind;

constexpr std::uint64_t kRamBytes = 16U << 20;

struct Case {
  TrackerKind kind;
  bool huge;
};

class KvmTracker : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().huge && !(huge_pages_ = memory::test::HugePages::add(kRamBytes / memory::kHugePageSize))) {
      GTEST_SKIP() << "the kernel gives no huge pages (vm.nr_hugepages)";
    }
    auto vmm = TinyVmm::start(kRamBytes, GetParam().huge);
    if (!vmm) {
      GTEST_SKIP() << vmm.error();
    }
    vmm_ = std::move(*vmm);
    std::vector<memory::RegionFile> files;
    files.push_back({"ram0", kRamBytes, GetParam().huge ? memory::kHugePageSize : 4096U, vmm_->ram_address(), "",
                     UniqueFd(fcntl(vmm_->ram_file(), F_DUPFD_CLOEXEC, 0))});
    auto ram = memory::GuestRam::open(std::move(files));
    ASSERT_TRUE(ram) << ram.error().text;
    ram_.emplace(std::move(*ram));
  }

  void TearDown() override {
    tracker_.reset();
    ram_.reset();
    vmm_.reset();
    huge_pages_.reset();
  }

  void arm() {
    memory::TrackerRequest request;
    request.ram = &*ram_;
    request.learn_hashes = true;
    if (GetParam().kind != TrackerKind::kHashes) {
      const auto use = GetParam().kind == TrackerKind::kPagemapScan ? bridge::UserfaultUse::kTracking
                                                                    : bridge::UserfaultUse::kEvents;
      auto injected = bridge::inject_userfaultfd(vmm_->pid(), use);
      ASSERT_TRUE(injected) << injected.error().text;
      request.userfaultfd = std::move(injected->fd);
      request.pagemap.reset(open(("/proc/" + std::to_string(vmm_->pid()) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
    }
    auto chosen = memory::choose_tracker(std::move(request), &GetParam().kind);
    if (!chosen) {
      GTEST_SKIP() << chosen.error().text;
    }
    tracker_ = std::move(chosen->tracker);
    const auto armed = tracker_->arm();
    ASSERT_TRUE(armed) << armed.error().text;
  }

  pages::Bitmap collect() {
    pages::Bitmap written(ram_->page_count());
    const auto done = tracker_->collect(written);
    EXPECT_TRUE(done) << done.error().text;
    return written;
  }

  void copy(const pages::Bitmap& pages, std::vector<std::byte>& to) {
    for (pages::PageNumber page = pages.next_set(0); page < pages.size(); page = pages.next_set(page + 1)) {
      const auto bytes = std::span(to).subspan(page * pages::kPageSize).first<pages::kPageSize>();
      ASSERT_TRUE(ram_->read(page, 0, bytes));
      tracker_->note_copied(page, bytes);
    }
  }

  std::vector<std::byte> all_of_ram() {
    std::vector<std::byte> bytes(kRamBytes);
    EXPECT_TRUE(ram_->read_pages(0, bytes));
    return bytes;
  }

  std::optional<memory::test::HugePages> huge_pages_;
  std::unique_ptr<TinyVmm> vmm_;
  std::optional<memory::GuestRam> ram_;
  std::unique_ptr<memory::WrittenTracker> tracker_;
};

INSTANTIATE_TEST_SUITE_P(All, KvmTracker,
                         testing::Values(Case{TrackerKind::kPagemapScan, false}, Case{TrackerKind::kPagemapScan, true},
                                         Case{TrackerKind::kWriteProtectEvents, false},
                                         Case{TrackerKind::kWriteProtectEvents, true},
                                         Case{TrackerKind::kHashes, false}, Case{TrackerKind::kHashes, true}),
                         [](const auto& info_of) {
                           std::string name(memory::name_of(info_of.param.kind));
                           std::erase(name, '-');
                           return name + (info_of.param.huge ? "Huge" : "Small");
                         });

TEST_P(KvmTracker, WrittenSetIsExactPageForPage) {
  std::vector<std::uint32_t> half(ram_->page_count() / 2);
  for (std::uint32_t i = 0; i < half.size(); ++i) {
    half[i] = i;  // the rest are holes
  }
  ASSERT_TRUE(vmm_->write(half));
  ASSERT_NO_FATAL_FAILURE(arm());
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
    ASSERT_EQ(written, expected) << "round " << round;
    copy(written, copied);
  }
  EXPECT_TRUE(copied == all_of_ram());
}

TEST_P(KvmTracker, CopyKeptWhileTheVcpuWritesEqualsRam) {
  ASSERT_NO_FATAL_FAILURE(arm());
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
