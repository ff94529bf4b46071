#include "tests/kvm/kvm_guest.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <numeric>
#include <span>

#include "dataplane/pages/page_digest.h"
#include "qemu-bridge/attach/inject.h"

namespace godwit::kvm_test {

using memory::TrackerKind;

void KvmGuest::SetUp() {
  if (GetParam().huge && !(huge_pages_ = memory::test::HugePages::add(kRamBytes / memory::kHugePageSize))) {
    GTEST_SKIP() << "the kernel gives no huge pages (vm.nr_hugepages)";
  }
  start(TinyVmm::make_ram_file(GetParam().huge ? RamPages::k2MiB : RamPages::k4KiB));
}

void KvmGuest::start(UniqueFd ram_file) {
  auto vmm = TinyVmm::start(kRamBytes, std::move(ram_file), GetParam().user);
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

void KvmGuest::TearDown() {
  tracker_.reset();
  ram_.reset();
  vmm_.reset();
  huge_pages_.reset();
}

void KvmGuest::arm(memory::TrackerRequest request, bool for_paging) {
  request.ram = &*ram_;
  if (GetParam().kind != TrackerKind::kHashes || for_paging) {
    const auto use = GetParam().kind == TrackerKind::kPagemapScan && !for_paging ? bridge::UserfaultUse::kTracking
                                                                                 : bridge::UserfaultUse::kEvents;
    auto injected = bridge::inject_userfaultfd(vmm_->pid(), use);
    ASSERT_TRUE(injected) << injected.error().text;
    user_mode_only_ = injected->user_mode_only;
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

void KvmGuest::arm_tracker(bool has_balloon) {
  memory::TrackerRequest request;
  request.learn_hashes = true;
  request.has_balloon = has_balloon;
  arm(std::move(request), false);
}

std::vector<std::uint32_t> KvmGuest::every_page() const {
  std::vector<std::uint32_t> every(ram_->page_count());
  std::iota(every.begin(), every.end(), 0U);
  return every;
}

pages::Bitmap KvmGuest::collect() {
  pages::Bitmap written(ram_->page_count());
  const auto done = tracker_->collect(written);
  EXPECT_TRUE(done) << done.error().text;
  return written;
}

void KvmGuest::expect_written(const pages::Bitmap& expected) {
  const pages::Bitmap written = collect();
  EXPECT_TRUE(written == expected) << difference(written, expected);
}

void KvmGuest::copy(const pages::Bitmap& pages, std::vector<std::byte>& to) {
  for (pages::PageNumber page = pages.next_set(0); page < pages.size(); page = pages.next_set(page + 1)) {
    const auto bytes = std::span(to).subspan(page * pages::kPageSize).first<pages::kPageSize>();
    ASSERT_TRUE(ram_->read(page, 0, bytes));
    tracker_->note_sent(page, pages::hash_page(bytes));
  }
}

std::vector<std::byte> KvmGuest::all_of_ram() {
  std::vector<std::byte> bytes(kRamBytes);
  EXPECT_TRUE(ram_->read_pages(0, bytes));
  return bytes;
}

void KvmGuest::advise(pages::PageNumber first, std::uint64_t count, int advice) {
  const memory::QemuRange range = ram_->qemu_range({first, count});
  const auto done = bridge::inject(
      vmm_->pid(), {SYS_madvise, {range.address, range.bytes, static_cast<std::uint64_t>(advice), 0, 0, 0}});
  ASSERT_TRUE(done) << done.error().text;
  ASSERT_EQ(*done, 0) << "madvise " << advice;
}

std::string difference(const pages::Bitmap& written, const pages::Bitmap& expected) {
  pages::Bitmap missed = expected;
  pages::Bitmap extra = written;
  missed.and_not(written);
  extra.and_not(expected);
  return std::to_string(missed.count()) + " pages missed, the first " + std::to_string(missed.next_set(0)) + "; " +
         std::to_string(extra.count()) + " reported and not written, the first " + std::to_string(extra.next_set(0));
}

std::string name_of_kvm_case(const testing::TestParamInfo<KvmCase>& info) {
  std::string name(memory::name_of(info.param.kind));
  std::erase(name, '-');
  return name + (info.param.huge ? "Huge" : "Small");
}

}  // namespace godwit::kvm_test
