#pragma once
// The fixture of tests under KVM: a vCPU whose RAM is attached from outside as the bridge does it, with each tracker,
// on tmpfs and on hugetlbfs. Skips where there is no KVM, or no huge pages.
//
// One test at a time; failures are gtest's.

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dataplane/memory/written_tracker.h"
#include "tests/kvm/tiny_vmm.h"
#include "tests/unit/memory/guest_process.h"

namespace godwit::kvm_test {

struct KvmCase {
  memory::TrackerKind kind;
  bool huge;
  uid_t user = 0;  // who runs the VMM
};
inline constexpr uid_t kNobody = 65534;

class KvmGuest : public testing::TestWithParam<KvmCase> {
 protected:
  static constexpr std::uint64_t kRamBytes = 16U << 20;

  void SetUp() override;
  void TearDown() override;
  /// With RAM in this file, or skips the test.
  void start(UniqueFd ram_file);

  /// Arms the tracker of the case, or skips the test. Injects a userfaultfd if the tracker needs one, or paging does.
  void arm(memory::TrackerRequest request, bool for_paging);
  /// For a test of the tracker by itself.
  void arm_tracker(bool has_balloon = false);

  [[nodiscard]] std::vector<std::uint32_t> every_page() const;
  pages::Bitmap collect();
  /// These and no others.
  void expect_written(const pages::Bitmap& expected);
  /// Copies the pages as a transfer does, telling the tracker.
  void copy(const pages::Bitmap& pages, std::vector<std::byte>& to);
  std::vector<std::byte> all_of_ram();
  /// madvise() by the VMM.
  void advise(pages::PageNumber first, std::uint64_t count, int advice);

  std::optional<memory::test::HugePages> huge_pages_;
  std::unique_ptr<TinyVmm> vmm_;
  std::optional<memory::GuestRam> ram_;
  std::unique_ptr<memory::WrittenTracker> tracker_;
  bool user_mode_only_ = false;  // of the userfaultfd
};

/// Every tracker, on both kinds of memory; those that arm QEMU's memory first.
inline const KvmCase kKvmCases[] = {{memory::TrackerKind::kPagemapScan, false},
                                    {memory::TrackerKind::kPagemapScan, true},
                                    {memory::TrackerKind::kWriteProtectEvents, false},
                                    {memory::TrackerKind::kWriteProtectEvents, true},
                                    {memory::TrackerKind::kHashes, false},
                                    {memory::TrackerKind::kHashes, true}};
/// A VMM that is not root.
inline const KvmCase kCasesOfNobody[] = {{memory::TrackerKind::kPagemapScan, false, kNobody},
                                         {memory::TrackerKind::kWriteProtectEvents, false, kNobody}};
/// Which pages were missed, and which were reported without a write: for messages.
std::string difference(const pages::Bitmap& written, const pages::Bitmap& expected);
std::string name_of_kvm_case(const testing::TestParamInfo<KvmCase>& info);

}  // namespace godwit::kvm_test
