#pragma once
// The smallest VMM that can stand for QEMU: a process of its own with one vCPU under /dev/kvm, whose guest reads and
// writes the pages that it is told. It knows nothing of tracking.
//
// Owned by one test; the destructor ends the process by pid. Failures end the process, which every wait notices.

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>

#include "base/unique_fd.h"

namespace godwit::kvm_test {

inline constexpr std::uint64_t kListMax = 8192;

/// In memory that test, VMM and guest see. The first fields are named by their offsets in guest_code.S.
struct Control {
  std::uint64_t operation;            // 0
  std::uint64_t count;                // 8
  std::atomic<std::uint64_t> stop;    // 16
  std::uint64_t page_mask;            // 24
  std::uint64_t random;               // 32
  std::atomic<std::uint64_t> writes;  // 40
  std::atomic<std::uint64_t> asked;   // of the VMM: operations asked for
  std::atomic<std::uint64_t> parked;  // operations done
  std::atomic<std::uint64_t> clock;   // where KVM is to keep its clock, guest-physical; 0: nowhere
  std::atomic<int> vcpu_stats;        // number of the descriptor in the VMM
  alignas(4096) std::uint32_t list[kListMax];
};

/// What backs the guest's RAM.
enum class RamPages : std::uint8_t { k4KiB, k2MiB, k1GiB };

/// Where its RAM is, guest-physical, in bytes.
inline constexpr std::uint64_t kRamAt = std::uint64_t{1} << 30;

class TinyVmm {
 public:
  /// Why there cannot be one here, or the VMM with its guest parked. ram_bytes: a power of two.
  static std::expected<std::unique_ptr<TinyVmm>, std::string> start(std::uint64_t ram_bytes, RamPages ram_pages);
  /// With RAM in this file, as this user.
  static std::expected<std::unique_ptr<TinyVmm>, std::string> start(std::uint64_t ram_bytes, UniqueFd ram_file,
                                                                    uid_t user);
  static UniqueFd make_ram_file(RamPages ram_pages);
  ~TinyVmm();

  [[nodiscard]] bool write(std::span<const std::uint32_t> pages) { return run(1, pages); }
  [[nodiscard]] bool read(std::span<const std::uint32_t> pages) { return run(2, pages); }
  void start_writing();
  [[nodiscard]] bool stop_writing();
  [[nodiscard]] std::uint64_t writes() const { return control_->writes; }
  /// From the next operation on, KVM writes its clock there whenever the vCPU enters the guest.
  void keep_clock_in(std::uint32_t page) { control_->clock = kRamAt + std::uint64_t{page} * 4096; }
  /// KVM's statistics of the vCPU: kvm_stats_header and what it says.
  [[nodiscard]] UniqueFd vcpu_stats() const;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int ram_file() const { return ram_file_.get(); }
  [[nodiscard]] std::uint64_t ram_address() const { return ram_address_; }  // in the VMM

 private:
  TinyVmm() = default;
  bool run(std::uint64_t operation, std::span<const std::uint32_t> pages);
  bool wait_parked() const;

  pid_t pid_ = -1;
  UniqueFd ram_file_;
  std::uint64_t ram_bytes_ = 0;
  std::uint64_t ram_address_ = 0;
  std::byte* boot_ = nullptr;
  Control* control_ = nullptr;
};

}  // namespace godwit::kvm_test
