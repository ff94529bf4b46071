#include "tests/kvm/kvm_guest.h"

#include <fcntl.h>

#include <algorithm>

#include "qemu-bridge/attach/inject.h"

namespace godwit::kvm_test {

using memory::TrackerKind;

void KvmGuest::SetUp() {
  if (GetParam().huge && !(huge_pages_ = memory::test::HugePages::add(kRamBytes / memory::kHugePageSize))) {
    GTEST_SKIP() << "the kernel gives no huge pages (vm.nr_hugepages)";
  }
  auto vmm = TinyVmm::start(kRamBytes, GetParam().huge ? RamPages::k2MiB : RamPages::k4KiB);
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

std::string name_of_kvm_case(const testing::TestParamInfo<KvmCase>& info) {
  std::string name(memory::name_of(info.param.kind));
  std::erase(name, '-');
  return name + (info.param.huge ? "Huge" : "Small");
}

}  // namespace godwit::kvm_test
