#include "qemu-bridge/attach/ept_scanner.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "qemu-bridge/attach/descriptors.h"

namespace godwit::bridge {
namespace {

constexpr std::string_view kVm = "anon_inode:kvm-vm";

static_assert(sizeof(godwit_ept_attach) == 16 && sizeof(godwit_ept_info) == 40 && sizeof(godwit_ept_slot) == 32 &&
              sizeof(godwit_ept_slots) == 24 && sizeof(godwit_ept_scan) == 120);

EptError error_of(const InjectError& error) {
  const EptFailure failure = error.failure == InjectFailure::kProcessGone    ? EptFailure::kVmGone
                             : error.failure == InjectFailure::kNotPermitted ? EptFailure::kNotPermitted
                                                                             : EptFailure::kKernel;
  return {failure, error.error_number, error.text};
}

EptFailure failure_of_open(int error_number) {
  switch (error_number) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return EptFailure::kNotLoaded;
    case EPERM:
    case EACCES:
      return EptFailure::kNotPermitted;
    default:
      return EptFailure::kKernel;
  }
}

EptFailure failure_of_attach(int error_number) {
  switch (error_number) {
    case ENOTTY:  // some other device
      return EptFailure::kNotLoaded;
    case EBADF:
    case EINVAL:
      return EptFailure::kNotKvm;
    case EBUSY:
      return EptFailure::kInUse;
    case EOPNOTSUPP:
      return EptFailure::kUnsupported;
    default:
      return EptFailure::kKernel;
  }
}

EptFailure failure_of_call(int error_number) {
  switch (error_number) {
    case ESRCH:
      return EptFailure::kVmGone;
    case ERANGE:
      return EptFailure::kOutsideMemory;
    case EOPNOTSUPP:
      return EptFailure::kAccessedBitsOff;
    case EBUSY:
      return EptFailure::kInUse;
    default:
      return EptFailure::kKernel;
  }
}

const char* text_of(EptFailure failure) {
  switch (failure) {
    case EptFailure::kNotLoaded:
      return "no " GODWIT_EPT_DEVICE " of this version: install and load the module godwit-ept (docs/kmod.md)";
    case EptFailure::kNotPermitted:
      return GODWIT_EPT_DEVICE " needs CAP_SYS_ADMIN";
    case EptFailure::kNotKvm:
      return "not a VM of KVM's, or a module of another version";
    case EptFailure::kInUse:
      return "another scanner has this VM";
    case EptFailure::kUnsupported:
      return "this kind of VM hides its page tables";
    case EptFailure::kAccessedBitsOff:
      return "KVM runs without accessed bits here (kvm_intel.eptad, or an old processor)";
    case EptFailure::kOutsideMemory:
      return "the range is not all guest memory";
    case EptFailure::kVmGone:
      return "the VM's process has ended";
    case EptFailure::kKernel:
      break;
  }
  return GODWIT_EPT_DEVICE " failed";
}

std::uint64_t address_of(std::vector<std::uint64_t>& words, std::uint64_t done_pages) {
  return reinterpret_cast<std::uint64_t>(words.data() + done_pages / 64);
}

void add(EptScan& scan, const godwit_ept_scan& part) {
  scan.accessed_pages += part.accessed_count;
  scan.dirty_pages += part.dirty_count;
  scan.present_pages += part.present_count;
  for (std::size_t i = 0; i < 3; ++i) {
    scan.mappings[i] += part.leaves[i];
  }
  scan.lock_hold_max_ns = std::max<std::uint64_t>(scan.lock_hold_max_ns, part.hold_max_ns);
  scan.state |= part.state;
}

}  // namespace

EptError ept_error(EptStep step, int error_number) {
  const EptFailure failure = step == EptStep::kOpen     ? failure_of_open(error_number)
                             : step == EptStep::kAttach ? failure_of_attach(error_number)
                                                        : failure_of_call(error_number);
  return {failure, error_number, std::string(text_of(failure)) + ": " + std::strerror(error_number)};
}

std::expected<UniqueFd, EptError> fetch_vm(pid_t pid) {
  const auto numbers = find_descriptors(pid, kVm);
  if (!numbers) {
    return std::unexpected(error_of(numbers.error()));
  }
  if (numbers->empty()) {
    return std::unexpected(EptError{EptFailure::kNotKvm, 0, process_name(pid) + " has no VM of KVM's (TCG?)"});
  }
  if (numbers->size() > 1) {
    return std::unexpected(EptError{EptFailure::kNotKvm, 0,
                                    process_name(pid) + " has " + std::to_string(numbers->size()) +
                                        " descriptors of VMs: which one is meant is not known"});
  }
  auto vm = fetch_descriptor(pid, numbers->front(), kVm);
  if (!vm) {
    return std::unexpected(error_of(vm.error()));
  }
  return std::move(*vm);
}

std::expected<EptScanner, EptError> EptScanner::attach(pid_t pid) {
  const auto vm = fetch_vm(pid);
  if (!vm) {
    return std::unexpected(vm.error());
  }
  return attach(*vm);
}

std::expected<EptScanner, EptError> EptScanner::attach(const UniqueFd& vm, const char* device) {
  EptScanner scanner(UniqueFd(open(device, O_RDWR | O_CLOEXEC)));
  if (!scanner.device_.valid()) {
    return std::unexpected(ept_error(EptStep::kOpen, errno));
  }
  godwit_ept_attach request{sizeof request, GODWIT_EPT_ABI, vm.get(), 0};
  if (ioctl(scanner.device_.get(), GODWIT_EPT_IOC_ATTACH, &request) != 0) {
    return std::unexpected(ept_error(EptStep::kAttach, errno));
  }
  return scanner;
}

std::expected<godwit_ept_info, EptError> EptScanner::info() const {
  godwit_ept_info info{};
  info.size = sizeof info;
  if (ioctl(device_.get(), GODWIT_EPT_IOC_INFO, &info) != 0) {
    return std::unexpected(ept_error(EptStep::kCall, errno));
  }
  return info;
}

std::expected<std::vector<godwit_ept_slot>, EptError> EptScanner::slots() const {
  std::vector<godwit_ept_slot> slots(64);
  for (;;) {
    godwit_ept_slots request{};
    request.size = sizeof request;
    request.room = static_cast<std::uint32_t>(slots.size());
    request.slots = reinterpret_cast<std::uint64_t>(slots.data());
    if (ioctl(device_.get(), GODWIT_EPT_IOC_SLOTS, &request) != 0) {
      return std::unexpected(ept_error(EptStep::kCall, errno));
    }
    const bool all = request.count <= slots.size();
    slots.resize(request.count);
    if (all) {
      return slots;
    }
  }
}

std::expected<EptScan, EptError> EptScanner::scan(const EptRequest& request) const {
  const std::size_t words = (request.pages + 63) / 64;
  EptScan scan;
  scan.accessed.resize(words);
  scan.dirty.resize(words);
  scan.present.resize(words);
  do {
    godwit_ept_scan part{};
    part.size = sizeof part;
    part.flags = (request.clear ? GODWIT_EPT_CLEAR : 0) | (request.by_kvm_aging ? GODWIT_EPT_USE_KVM_AGING : 0);
    part.start = request.first_page + scan.pages;
    part.count = request.pages - scan.pages;
    part.accessed = address_of(scan.accessed, scan.pages);
    part.dirty = address_of(scan.dirty, scan.pages);
    part.present = address_of(scan.present, scan.pages);
    if (ioctl(device_.get(), GODWIT_EPT_IOC_SCAN, &part) != 0) {
      if (scan.pages > 0) {
        break;  // what was cleared must not be lost
      }
      return std::unexpected(ept_error(EptStep::kCall, errno));
    }
    add(scan, part);
    scan.pages = part.next - request.first_page;
  } while (scan.pages < request.pages);
  return scan;
}

}  // namespace godwit::bridge
