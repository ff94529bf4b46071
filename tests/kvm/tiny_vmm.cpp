#include "tests/kvm/tiny_vmm.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>

extern "C" const char godwit_guest_code[];
extern "C" const char godwit_guest_code_end[];

namespace godwit::kvm_test {
namespace {

// Guest-physical layout: boot memory at 0, RAM at kRamAt, both identity-mapped by pages of 2 MiB.
constexpr std::uint64_t kBootBytes = 1U << 20;
constexpr std::uint64_t kCodeAt = 0x1000;
constexpr std::uint64_t kGdtAt = 0x7000;
constexpr std::uint64_t kControlAt = 0x10000;
constexpr std::uint64_t kPageTablesAt = 0x80000;
static_assert(kControlAt + sizeof(Control) <= kPageTablesAt);
static_assert(offsetof(Control, stop) == 16 && offsetof(Control, writes) == 40 && offsetof(Control, list) == 4096);

// In C++, Debian 12's <linux/kvm.h> gives kvm_cpuid2 and kvm_msrs sizes that the kernel does not know; the ioctl
// numbers are those of C.
constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, std::uint64_t);
constexpr unsigned long kSetCpuid = _IOW(KVMIO, 0x90, std::uint64_t);
constexpr unsigned long kSetRegisters = _IOW(KVMIO, 0x89, std::uint64_t);
constexpr std::uint32_t kClockRegister = 0x4b564d01;  // MSR_KVM_SYSTEM_TIME_NEW

void must(bool done) {
  if (!done) {
    _exit(3);
  }
}

void lay_out(std::byte* boot) {
  std::memcpy(boot + kCodeAt, godwit_guest_code, static_cast<std::size_t>(godwit_guest_code_end - godwit_guest_code));
  auto* gdt = reinterpret_cast<std::uint64_t*>(boot + kGdtAt);
  gdt[1] = 0x00af9b000000ffff;
  gdt[2] = 0x00cf93000000ffff;
  auto* tables = reinterpret_cast<std::uint64_t*>(boot + kPageTablesAt);
  tables[0] = (kPageTablesAt + 0x1000) | 7;
  for (std::uint64_t i = 0; i < 4; ++i) {
    tables[512 + i] = (kPageTablesAt + 0x2000 + i * 0x1000) | 7;
  }
  for (std::uint64_t i = 0; i < 2048; ++i) {
    tables[1024 + i] = i << 21 | 0x87;
  }
}

void set_long_mode(int vcpu) {
  kvm_sregs special{};
  must(ioctl(vcpu, KVM_GET_SREGS, &special) == 0);
  special.cr0 = 0x80050033;
  special.cr3 = kPageTablesAt;
  special.cr4 = 0x20;
  special.efer = 0x500;
  special.gdt.base = kGdtAt;
  special.gdt.limit = 23;
  kvm_segment code{};
  code.limit = 0xffffffff;
  code.selector = 8;
  code.type = 11;
  code.present = 1;
  code.s = 1;
  code.l = 1;
  code.g = 1;
  kvm_segment data = code;
  data.selector = 16;
  data.type = 3;
  data.l = 0;
  data.db = 1;
  special.cs = code;
  special.ds = special.es = special.fs = special.gs = special.ss = data;
  must(ioctl(vcpu, KVM_SET_SREGS, &special) == 0);
  kvm_regs registers{};
  registers.rip = kCodeAt;
  registers.rflags = 2;
  registers.rbx = kControlAt;
  registers.r8 = kRamAt;
  must(ioctl(vcpu, KVM_SET_REGS, &registers) == 0);
}

void set_clock(int vcpu, std::uint64_t address) {
  constexpr std::uint64_t kEnabled = 1;
  const struct {
    std::uint32_t count, padding;
    kvm_msr_entry clock;
  } registers{1, 0, {.index = kClockRegister, .reserved = 0, .data = address | kEnabled}};
  must(ioctl(vcpu, kSetRegisters, &registers) == 1);
}

void run_vcpu(int kvm, int vcpu, Control& control) {
  const auto run_bytes = static_cast<std::size_t>(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
  auto* run = static_cast<kvm_run*>(mmap(nullptr, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0));
  for (;;) {
    const bool ran = ioctl(vcpu, KVM_RUN, 0) == 0;
    must(ran || errno == EINTR || errno == EAGAIN);
    if (!ran || run->exit_reason == KVM_EXIT_INTR) {
      continue;
    }
    must(run->exit_reason == KVM_EXIT_IO);
    const std::uint64_t done = control.parked.fetch_add(1) + 1;
    while (control.asked < done) {
      usleep(100);
    }
    if (control.clock != 0) {
      set_clock(vcpu, control.clock);
    }
  }
}

/// In the forked process; never returns.
[[noreturn]] void vmm_main(std::byte* boot, std::byte* ram, std::uint64_t ram_bytes, uid_t user, Control& control) {
  lay_out(boot);
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  must(user == 0 || (setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0));
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a change of users takes it off
  const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  must(vm >= 0);
  kvm_userspace_memory_region boot_slot{0, 0, 0, kBootBytes, reinterpret_cast<std::uint64_t>(boot)};
  kvm_userspace_memory_region ram_slot{1, 0, kRamAt, ram_bytes, reinterpret_cast<std::uint64_t>(ram)};
  must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &boot_slot) == 0);
  must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &ram_slot) == 0);
  std::array<std::uint32_t, 2 + 256 * 10> cpuid{256};
  must(ioctl(kvm, kGetSupportedCpuid, cpuid.data()) == 0);
  const int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  must(vcpu >= 0 && ioctl(vcpu, kSetCpuid, cpuid.data()) == 0);
  control.vcpu_stats = ioctl(vcpu, KVM_GET_STATS_FD, 0);  // now, for it waits for a vCPU that runs
  set_long_mode(vcpu);
  // As in QEMU, the vCPU has a thread of its own, and the main thread waits in a system call.
  std::thread([&] { run_vcpu(kvm, vcpu, control); }).detach();
  for (;;) {
    pause();
  }
}

unsigned flags_of(RamPages pages) {
  switch (pages) {
    case RamPages::k2MiB:
      return MFD_HUGETLB | MFD_HUGE_2MB;
    case RamPages::k1GiB:
      return MFD_HUGETLB | MFD_HUGE_1GB;
    case RamPages::k4KiB:
      break;
  }
  return 0;
}

bool kvm_is_usable() {
  const UniqueFd kvm(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  return kvm.valid() && UniqueFd(ioctl(kvm.get(), KVM_CREATE_VM, 0)).valid();
}

}  // namespace

UniqueFd TinyVmm::make_ram_file(RamPages ram_pages) {
  return UniqueFd(memfd_create("guest-ram", MFD_CLOEXEC | flags_of(ram_pages)));
}

std::expected<std::unique_ptr<TinyVmm>, std::string> TinyVmm::start(std::uint64_t ram_bytes, RamPages ram_pages) {
  return start(ram_bytes, make_ram_file(ram_pages), 0);
}

std::expected<std::unique_ptr<TinyVmm>, std::string> TinyVmm::start(std::uint64_t ram_bytes, UniqueFd ram_file,
                                                                    uid_t user) {
  if (!kvm_is_usable()) {
    return std::unexpected("no usable /dev/kvm on this machine");
  }
  std::unique_ptr<TinyVmm> vmm(new TinyVmm);
  vmm->ram_bytes_ = ram_bytes;
  vmm->ram_file_ = std::move(ram_file);
  if (!vmm->ram_file_.valid() || ftruncate(vmm->ram_file_.get(), static_cast<off_t>(ram_bytes)) != 0) {
    return std::unexpected("no memory for the guest");
  }
  void* boot = mmap(nullptr, kBootBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  void* ram = mmap(nullptr, ram_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vmm->ram_file_.get(), 0);
  if (boot == MAP_FAILED || ram == MAP_FAILED) {
    return std::unexpected("no memory for the guest");
  }
  vmm->boot_ = static_cast<std::byte*>(boot);
  vmm->control_ = new (vmm->boot_ + kControlAt) Control{};
  vmm->control_->random = 88172645463325252U;
  vmm->control_->page_mask = ram_bytes / 4096 - 1;
  vmm->ram_address_ = reinterpret_cast<std::uint64_t>(ram);
  vmm->pid_ = fork();
  if (vmm->pid_ == 0) {
    vmm_main(vmm->boot_, static_cast<std::byte*>(ram), ram_bytes, user, *vmm->control_);
  }
  munmap(ram, ram_bytes);
  vmm->control_->asked = 0;
  if (vmm->pid_ < 0 || !vmm->wait_parked()) {
    return std::unexpected("this machine's /dev/kvm does not run the guest");
  }
  return vmm;
}

TinyVmm::~TinyVmm() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (boot_ != nullptr) {
    munmap(boot_, kBootBytes);
  }
}

UniqueFd TinyVmm::vcpu_stats() const {
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), control_->vcpu_stats.load(), 0)));
}

bool TinyVmm::wait_parked() const {
  while (control_->parked <= control_->asked) {
    siginfo_t ended{};
    if (waitid(P_PID, static_cast<id_t>(pid_), &ended, WEXITED | WNOHANG | WNOWAIT) != 0 || ended.si_pid != 0) {
      return false;
    }
    usleep(50);
  }
  return true;
}

bool TinyVmm::run(std::uint64_t operation, std::span<const std::uint32_t> pages) {
  std::ranges::copy(pages, control_->list);
  control_->operation = operation;
  control_->count = pages.size();
  ++control_->asked;
  return wait_parked();
}

void TinyVmm::start_writing() {
  control_->stop = 0;
  control_->operation = 3;
  ++control_->asked;
}

bool TinyVmm::stop_writing() {
  control_->stop = 1;
  return wait_parked();
}

}  // namespace godwit::kvm_test
