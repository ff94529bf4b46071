// Missing pages under a vCPU of this machine's /dev/kvm, served from outside; with every tracker.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dataplane/memory/demand_pager.h"
#include "dataplane/pages/page_digest.h"
#include "qemu-bridge/attach/inject.h"
#include "tests/kvm/tiny_vmm.h"
#include "tests/unit/memory/guest_process.h"

namespace godwit::kvm_test {
namespace {

using memory::TrackerKind;
using memory::test::pattern_of;

constexpr std::uint64_t kRamBytes = 8U << 20;

struct Case {
  TrackerKind kind;
  bool huge;
};

class KvmPager : public testing::TestWithParam<Case> {
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
    hashes_ = std::make_shared<memory::KnownHashes>(ram_->page_count());
  }

  void TearDown() override {
    stop_ = true;
    if (server_.joinable()) {
      server_.join();
    }
    pager_.reset();
    tracker_.reset();
    ram_.reset();
    vmm_.reset();
    huge_pages_.reset();
    EXPECT_TRUE(memory::MissingPages::remove(file_));
  }

  /// The vCPU's RAM is there; then all of it goes, and comes on demand.
  void take_all_away() {
    auto injected = bridge::inject_userfaultfd(vmm_->pid(), bridge::UserfaultUse::kEvents);
    ASSERT_TRUE(injected) << injected.error().text;
    memory::TrackerRequest wanted;
    wanted.ram = &*ram_;
    wanted.hashes = hashes_;
    wanted.userfaultfd = std::move(injected->fd);
    wanted.pagemap.reset(open(("/proc/" + std::to_string(vmm_->pid()) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
    auto chosen = memory::choose_tracker(std::move(wanted), &GetParam().kind);
    if (!chosen) {
      GTEST_SKIP() << chosen.error().text;
    }
    tracker_ = std::move(chosen->tracker);
    ASSERT_TRUE(tracker_->arm());
    memory::PagerRequest request;
    request.ram = &*ram_;
    request.tracker = tracker_.get();
    request.sees_kernel_accesses = !injected->user_mode_only;
    request.file = file_;
    request.of.page_count = ram_->page_count();
    auto pager = memory::DemandPager::create(std::move(request));
    ASSERT_TRUE(pager) << pager.error().text;
    pager_ = std::move(*pager);
    pages::Bitmap all(ram_->page_count());
    all.set_all();
    ASSERT_TRUE(pager_->add_missing(all));
    ASSERT_TRUE(pager_->arm());
    server_ = std::thread([this] { serve(); });
  }

  void serve() {
    while (!stop_) {
      std::vector<pages::PageNumber> asked;
      ASSERT_TRUE(pager_->read_faults(asked));
      for (const pages::PageNumber page : asked) {
        const std::vector<std::byte> content = pattern_of(page);
        const memory::PageWrite write{page, 0, content};
        hashes_->set(page, pages::hash_page(pages::PageBytes(std::span(content).first<pages::kPageSize>())));
        const auto placed = pager_->place(0, {&write, 1});
        ASSERT_TRUE(placed) << placed.error().text;
      }
    }
  }

  std::vector<std::byte> content_of(pages::PageNumber page) {
    std::vector<std::byte> content(pages::kPageSize);
    EXPECT_TRUE(ram_->read(page, 0, content));
    return content;
  }

  const std::string file_ = "/dev/shm/godwit-test-kvm-missing-" + std::to_string(getpid());
  std::optional<memory::test::HugePages> huge_pages_;
  std::unique_ptr<TinyVmm> vmm_;
  std::optional<memory::GuestRam> ram_;
  std::shared_ptr<memory::KnownHashes> hashes_;
  std::unique_ptr<memory::WrittenTracker> tracker_;
  std::unique_ptr<memory::DemandPager> pager_;
  std::atomic<bool> stop_{false};
  std::thread server_;
};

INSTANTIATE_TEST_SUITE_P(All, KvmPager,
                         testing::Values(Case{TrackerKind::kPagemapScan, false}, Case{TrackerKind::kPagemapScan, true},
                                         Case{TrackerKind::kWriteProtectEvents, false},
                                         Case{TrackerKind::kWriteProtectEvents, true},
                                         Case{TrackerKind::kHashes, false}, Case{TrackerKind::kHashes, true}),
                         [](const auto& info_of) {
                           std::string name(memory::name_of(info_of.param.kind));
                           std::erase(name, '-');
                           return name + (info_of.param.huge ? "Huge" : "Small");
                         });

TEST_P(KvmPager, TheVcpuFaultsPagesInAndItsWritesAreExact) {
  std::vector<std::uint32_t> every(ram_->page_count());
  for (std::uint32_t page = 0; page < every.size(); ++page) {
    every[page] = page;
  }
  ASSERT_TRUE(vmm_->write(every));  // KVM has mapped all that is to go
  ASSERT_NO_FATAL_FAILURE(take_all_away());
  if (IsSkipped()) {
    return;
  }
  std::vector<std::uint32_t> reads;
  std::vector<std::uint32_t> writes;
  pages::Bitmap expected(ram_->page_count());
  for (std::uint32_t i = 0; i < ram_->page_count(); ++i) {
    const auto page = static_cast<std::uint32_t>(std::uint64_t{i} * 1021 % ram_->page_count());
    (i % 3 == 0 ? writes : reads).push_back(page);
    if (i % 3 == 0) {
      expected.set(page);
    }
  }
  ASSERT_TRUE(vmm_->write(writes));
  ASSERT_TRUE(vmm_->read(reads));
  EXPECT_EQ(pager_->missing_count(), 0U);
  for (const std::uint32_t page : reads) {
    ASSERT_TRUE(content_of(page) == pattern_of(page)) << page;
  }
  for (std::size_t i = 0; i < writes.size(); ++i) {
    // A write touches one line of 64 bytes, as guest_code.S chooses it.
    std::vector<std::byte> content = content_of(writes[i]);
    const std::vector<std::byte> before = pattern_of(writes[i]);
    EXPECT_FALSE(content == before) << writes[i];
    const auto line = static_cast<std::ptrdiff_t>(i * 64 % 4096);
    std::copy_n(before.begin() + line, 64, content.begin() + line);
    ASSERT_TRUE(content == before) << writes[i];
  }
  pages::Bitmap written(ram_->page_count());
  ASSERT_TRUE(tracker_->collect(written));
  EXPECT_EQ(written, expected);
  const auto ended = pager_->end();
  ASSERT_TRUE(ended) << ended.error().text;
  ASSERT_TRUE(vmm_->write(reads));
}

}  // namespace
}  // namespace godwit::kvm_test
