#pragma once
// Which pages a VM has accessed, from the kernel module godwit-ept (kmod-ept/, docs/kmod.md). The VM's descriptor is
// taken from QEMU with pidfd_getfd: neither QEMU nor libvirt tells it.
//
// An EptScanner has one VM, and is the only one that has it (kInUse otherwise). One thread at a time. It keeps neither
// QEMU nor the guest's memory: a VM whose process has ended says kVmGone. Failure: EptError. Pages are of 4 KiB and
// numbered by guest-physical address; slots() says where they are in QEMU's address space.

#include <sys/types.h>

#include <cstdint>
#include <expected>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "kmod-ept/godwit_ept.h"

namespace godwit::bridge {

enum class EptFailure : std::uint8_t {
  kNotLoaded,        // no /dev/godwit-ept, or no device of this ABI
  kNotPermitted,     // CAP_SYS_ADMIN, or CAP_SYS_PTRACE for the descriptor
  kNotKvm,           // the process has no VM of KVM's (TCG), or several
  kInUse,            // somebody else scans this VM
  kUnsupported,      // a VM that the module cannot read (TDX)
  kAccessedBitsOff,  // KVM runs without accessed bits: only EptRequest::by_kvm_aging
  kOutsideMemory,    // the range is not all guest memory
  kVmGone,
  kKernel,
};

struct EptError {
  EptFailure failure = EptFailure::kKernel;
  int error_number = 0;
  std::string text;  // one line for a person
};

struct EptRequest {
  std::uint64_t first_page = 0;  // a multiple of 64
  std::uint64_t pages = 0;
  bool clear = false;         // the next scan tells of accesses since this one
  bool by_kvm_aging = false;  // slow; no dirty bits; works without accessed bits in hardware
};

/// Bit i of word j is page first_page + 64 j + i.
struct EptScan {
  std::uint64_t pages =
      0;  // of those asked for, from the first: fewer if the rest failed, and a scan of the rest says why
  std::vector<std::uint64_t> accessed;
  std::vector<std::uint64_t> dirty;    // may have been written since it was mapped
  std::vector<std::uint64_t> present;  // mapped for the guest
  std::uint64_t accessed_pages = 0;
  std::uint64_t dirty_pages = 0;
  std::uint64_t present_pages = 0;
  std::uint64_t mappings[3] = {};  // of 4 KiB, 2 MiB, 1 GiB
  std::uint64_t lock_hold_max_ns = 0;
  std::uint32_t state = 0;  // GODWIT_EPT_*
};

class EptScanner {
 public:
  /// Of the one VM that the process has.
  static std::expected<EptScanner, EptError> attach(pid_t pid);
  static std::expected<EptScanner, EptError> attach(const UniqueFd& vm, const char* device = GODWIT_EPT_DEVICE);

  [[nodiscard]] std::expected<godwit_ept_info, EptError> info() const;
  [[nodiscard]] std::expected<std::vector<godwit_ept_slot>, EptError> slots() const;
  [[nodiscard]] std::expected<EptScan, EptError> scan(const EptRequest& request) const;

 private:
  explicit EptScanner(UniqueFd device) : device_(std::move(device)) {}

  UniqueFd device_;
};

/// The descriptor of the one VM that the process has: kNotKvm, kNotPermitted, kVmGone.
std::expected<UniqueFd, EptError> fetch_vm(pid_t pid);

/// What an errno of the device means: of open(), of attaching, and of every other call.
enum class EptStep : std::uint8_t { kOpen, kAttach, kCall };
EptError ept_error(EptStep step, int error_number);

}  // namespace godwit::bridge
