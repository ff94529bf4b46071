// Missing pages under a vCPU of this machine's /dev/kvm, served from outside; with every tracker.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "dataplane/memory/demand_pager.h"
#include "dataplane/pages/page_digest.h"
#include "tests/kvm/kvm_guest.h"

namespace godwit::kvm_test {
namespace {

using memory::test::pattern_of;

class KvmPager : public KvmGuest {
 protected:
  void TearDown() override {
    end_serving();
    pager_.reset();
    KvmGuest::TearDown();
    EXPECT_TRUE(memory::MissingPages::remove(file_));
  }

  /// All of the vCPU's RAM goes, and comes on demand.
  void take_all_away() {
    hashes_ = std::make_shared<memory::KnownHashes>(ram_->page_count());
    memory::TrackerRequest tracking;
    tracking.hashes = hashes_;
    ASSERT_NO_FATAL_FAILURE(arm(std::move(tracking), true));
    if (IsSkipped()) {
      return;
    }
    memory::PagerRequest request;
    request.ram = &*ram_;
    request.tracker = tracker_.get();
    request.sees_kernel_accesses = !user_mode_only_;
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

  /// What has been placed is counted, too.
  void end_serving() {
    stop_ = true;
    if (server_.joinable()) {
      server_.join();
    }
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
  std::shared_ptr<memory::KnownHashes> hashes_;
  std::unique_ptr<memory::DemandPager> pager_;
  std::atomic<bool> stop_{false};
  std::thread server_;
};

INSTANTIATE_TEST_SUITE_P(All, KvmPager, testing::ValuesIn(kKvmCases), name_of_kvm_case);
INSTANTIATE_TEST_SUITE_P(OfNobody, KvmPager, testing::ValuesIn(kCasesOfNobody), name_of_kvm_case);

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
  end_serving();
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
  EXPECT_TRUE(written == expected) << difference(written, expected);
  const auto ended = pager_->end();
  ASSERT_TRUE(ended) << ended.error().text;
  ASSERT_TRUE(vmm_->write(reads));
}

}  // namespace
}  // namespace godwit::kvm_test
