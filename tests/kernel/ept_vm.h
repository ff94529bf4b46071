#pragma once
// A nested KVM guest and the module that scans it, as the tests of tests/kernel use them. In a machine of their own,
// whose kernel they may hurt. Failures are gtest's.

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "qemu-bridge/attach/ept_scanner.h"
#include "tests/kvm/tiny_vmm.h"

namespace godwit::kernel_test {

using kvm_test::RamPages;
using kvm_test::TinyVmm;

/// First page of the guest's RAM.
inline constexpr std::uint64_t kRamPage = kvm_test::kRamAt / 4096;
inline constexpr std::uint64_t kSmallRamBytes = 16U << 20;

using Pages = std::set<std::uint32_t>;  // of RAM, from 0

class EptVm {
 public:
  /// The guest runs and is attached; ends the test otherwise.
  explicit EptVm(std::uint64_t ram_bytes = kSmallRamBytes, RamPages ram_pages = RamPages::k4KiB);

  [[nodiscard]] TinyVmm& vmm() { return *vmm_; }
  [[nodiscard]] const bridge::EptScanner& scanner() const { return *scanner_; }
  void detach() { scanner_.reset(); }
  [[nodiscard]] std::uint64_t ram_pages() const { return ram_bytes_ / 4096; }

  void read(const Pages& pages);
  void write(const Pages& pages);
  /// All of RAM; must succeed.
  bridge::EptScan scan(bool clear, bool by_kvm_aging = false) const;

 private:
  std::uint64_t ram_bytes_;
  std::unique_ptr<TinyVmm> vmm_;
  std::optional<bridge::EptScanner> scanner_;
};

Pages pages_of(std::span<const std::uint64_t> words);
/// All of `part` is in `whole`.
[[nodiscard]] bool holds(const Pages& whole, const Pages& part);

}  // namespace godwit::kernel_test
