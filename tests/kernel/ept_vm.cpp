#include "tests/kernel/ept_vm.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace godwit::kernel_test {
namespace {

/// Without guest or module no test of this machine means anything.
[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "cannot test here: %s\n", why.c_str());
  std::exit(2);
}

std::vector<std::uint32_t> list_of(const Pages& pages) { return {pages.begin(), pages.end()}; }

}  // namespace

EptVm::EptVm(std::uint64_t ram_bytes, RamPages ram_pages) : ram_bytes_(ram_bytes) {
  auto vmm = TinyVmm::start(ram_bytes, ram_pages);
  if (!vmm) {
    give_up(vmm.error());
  }
  vmm_ = std::move(*vmm);
  auto scanner = bridge::EptScanner::attach(vmm_->pid());
  if (!scanner) {
    give_up(scanner.error().text);
  }
  scanner_.emplace(std::move(*scanner));
}

void EptVm::read(const Pages& pages) { EXPECT_TRUE(vmm_->read(list_of(pages))); }
void EptVm::write(const Pages& pages) { EXPECT_TRUE(vmm_->write(list_of(pages))); }

bridge::EptScan EptVm::scan(bool clear, bool by_kvm_aging) const {
  auto scan = scanner_->scan({kRamPage, ram_pages(), clear, by_kvm_aging});
  EXPECT_TRUE(scan) << scan.error().text;
  EXPECT_TRUE(!scan || scan->pages == ram_pages());
  return scan ? std::move(*scan) : bridge::EptScan{};
}

Pages pages_of(std::span<const std::uint64_t> words) {
  Pages pages;
  for (std::size_t j = 0; j < words.size(); ++j) {
    for (std::uint64_t word = words[j]; word != 0; word &= word - 1) {
      pages.insert(pages.end(), static_cast<std::uint32_t>(j * 64 + static_cast<std::size_t>(std::countr_zero(word))));
    }
  }
  return pages;
}

bool holds(const Pages& whole, const Pages& part) { return std::ranges::includes(whole, part); }

}  // namespace godwit::kernel_test
