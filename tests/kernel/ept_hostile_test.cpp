// What comes from outside, and what happens at the same time: errors, nothing lost, never a crash. The runner looks at
// the kernel's log afterwards.

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <thread>

#include "tests/kernel/ept_vm.h"

namespace godwit::kernel_test {
namespace {

using bridge::EptFailure;
using bridge::EptScanner;

UniqueFd open_device() { return UniqueFd(open(GODWIT_EPT_DEVICE, O_RDWR | O_CLOEXEC)); }

/// 0 or the errno.
int attach(const UniqueFd& device, int vm, std::uint32_t size = sizeof(godwit_ept_attach),
           std::uint32_t abi = GODWIT_EPT_ABI, std::uint32_t flags = 0) {
  godwit_ept_attach request{size, abi, vm, flags};
  return ioctl(device.get(), GODWIT_EPT_IOC_ATTACH, &request) == 0 ? 0 : errno;
}

godwit_ept_scan request_for(std::uint64_t first_page, std::uint64_t pages) {
  godwit_ept_scan request{};
  request.size = sizeof request;
  request.start = first_page;
  request.count = pages;
  return request;
}

int scan(const UniqueFd& device, godwit_ept_scan& request) {
  return ioctl(device.get(), GODWIT_EPT_IOC_SCAN, &request) == 0 ? 0 : errno;
}

/// A VM without a vCPU, with 128 pages of memory from page 64 on.
struct IdleVm {
  UniqueFd kvm{open("/dev/kvm", O_RDWR | O_CLOEXEC)};
  UniqueFd vm{ioctl(kvm.get(), KVM_CREATE_VM, 0)};
  void* memory = mmap(nullptr, 128 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  IdleVm() {
    kvm_userspace_memory_region slot{0, 0, std::uint64_t{64} * 4096, std::uint64_t{128} * 4096,
                                     reinterpret_cast<std::uint64_t>(memory)};
    EXPECT_EQ(ioctl(vm.get(), KVM_SET_USER_MEMORY_REGION, &slot), 0);
  }
  ~IdleVm() { munmap(memory, 128 * 4096); }
  IdleVm(const IdleVm&) = delete;
  IdleVm& operator=(const IdleVm&) = delete;
};

TEST(Refusals, Descriptors) {
  const IdleVm vm;
  const UniqueFd vcpu(ioctl(vm.vm.get(), KVM_CREATE_VCPU, 0));
  const UniqueFd memory(memfd_create("kvm-vm", MFD_CLOEXEC));
  const UniqueFd file(open("/kvm-vm", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  const UniqueFd device = open_device();
  for (const int other : {vm.kvm.get(), vcpu.get(), memory.get(), file.get(), reader.get(), device.get()}) {
    EXPECT_EQ(attach(device, other), EINVAL) << other;
  }
  EXPECT_EQ(attach(device, -1), EBADF);
  EXPECT_EQ(attach(device, 12345), EBADF);
  EXPECT_EQ(attach(device, vm.vm.get()), 0);
}

TEST(Refusals, Attaching) {
  const IdleVm vm;
  const UniqueFd device = open_device();
  const int fd = vm.vm.get();
  EXPECT_EQ(attach(device, fd, sizeof(godwit_ept_attach) - 4), EINVAL);
  EXPECT_EQ(attach(device, fd, sizeof(godwit_ept_attach), GODWIT_EPT_ABI + 1), EINVAL);
  EXPECT_EQ(attach(device, fd, sizeof(godwit_ept_attach), GODWIT_EPT_ABI, 1), EINVAL);
  auto request = request_for(64, 64);
  EXPECT_EQ(scan(device, request), ENOTCONN);
  EXPECT_EQ(attach(device, fd), 0);
  EXPECT_EQ(attach(device, fd), EBUSY) << "this descriptor has a VM";
  const UniqueFd second = open_device();
  EXPECT_EQ(attach(second, fd), EBUSY) << "this VM has a scanner";
}

TEST(Refusals, Scans) {
  const IdleVm vm;
  const UniqueFd device = open_device();
  ASSERT_EQ(attach(device, vm.vm.get()), 0);
  auto good = request_for(64, 128);
  EXPECT_EQ(scan(device, good), 0);
  EXPECT_EQ(good.state, GODWIT_EPT_NO_TABLES) << "no vCPU has run";
  EXPECT_EQ(good.next, 192U);
  const auto refused = [&](const std::function<void(godwit_ept_scan&)>& change, int error) {
    auto request = request_for(64, 128);
    change(request);
    EXPECT_EQ(scan(device, request), error);
  };
  refused([](auto& request) { request.size -= 8; }, EINVAL);
  refused([](auto& request) { request.flags = 1U << 2; }, EINVAL);
  refused([](auto& request) { request.reserved = 1; }, EINVAL);
  refused([](auto& request) { request.start = 65; }, EINVAL);
  refused([](auto& request) { request.count = 0; }, EINVAL);
  refused([](auto& request) { request.count = ~0ULL; }, EINVAL);
  refused([](auto& request) { request.start = ~63ULL; }, EINVAL);
  refused([](auto& request) { request.start = 0; }, ERANGE);
  refused([](auto& request) { request.count = 129; }, ERANGE);
  refused([](auto& request) { request.start = 1ULL << 39; }, ERANGE);
  refused([](auto& request) { request.accessed = 8; }, EFAULT);
  refused([](auto& request) { request.dirty = ~7ULL; }, EFAULT);
  EXPECT_EQ(ioctl(device.get(), GODWIT_EPT_IOC_SCAN, nullptr), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(ioctl(device.get(), _IO(GODWIT_EPT_IOC, 77), nullptr), -1);
  EXPECT_EQ(errno, ENOTTY);
}

TEST(Refusals, WithoutThePrivilege) {
  ASSERT_EQ(chmod(GODWIT_EPT_DEVICE, 0666), 0);
  const pid_t child = fork();
  if (child == 0) {
    const bool dropped = setuid(65534) == 0;
    _exit(dropped && open(GODWIT_EPT_DEVICE, O_RDWR | O_CLOEXEC) == -1 && errno == EPERM ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ASSERT_EQ(chmod(GODWIT_EPT_DEVICE, 0600), 0);
}

// A scan that cannot say what it found must not have forgotten it.
TEST(Faults, LoseNothing) {
  EptVm vm;
  vm.detach();
  auto fd = bridge::fetch_vm(vm.vmm().pid());
  ASSERT_TRUE(fd);
  const UniqueFd device = open_device();
  ASSERT_EQ(attach(device, fd->get()), 0);
  const Pages touched{1, 2, 3, 4000};
  vm.write(touched);
  const std::size_t words = vm.ram_pages() / 64;
  std::vector<std::uint64_t> good(words);
  void* half = mmap(nullptr, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_EQ(munmap(static_cast<std::byte*>(half) + 4096, 4096), 0);
  auto request = request_for(kRamPage, vm.ram_pages());
  request.flags = GODWIT_EPT_CLEAR;
  const auto at = [](const void* where) { return reinterpret_cast<std::uint64_t>(where); };
  request.accessed = at(half) + 4096 - 64;  // the first 512 pages are told of, the rest is not
  EXPECT_EQ(scan(device, request), EFAULT);
  request.accessed = at(good.data());
  request.dirty = 8;
  EXPECT_EQ(scan(device, request), EFAULT);
  // The request itself cannot be written to.
  request.dirty = 0;
  void* read_only = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  std::memcpy(read_only, &request, sizeof request);
  ASSERT_EQ(mprotect(read_only, 4096, PROT_READ), 0);
  EXPECT_EQ(ioctl(device.get(), GODWIT_EPT_IOC_SCAN, read_only), -1);
  EXPECT_EQ(errno, EFAULT);
  ASSERT_EQ(scan(device, request), 0);
  EXPECT_EQ(pages_of(good), touched);
  munmap(half, 4096);
  munmap(read_only, 4096);
}

TEST(AtOnce, TwoThreadsOfOneScanner) {
  EptVm vm;
  std::atomic<unsigned> done = 0;
  std::atomic<unsigned> others = 0;
  const auto scan_often = [&] {
    for (int i = 0; i < 300; ++i) {
      const auto seen = vm.scanner().scan({kRamPage, vm.ram_pages(), true});
      done += seen.has_value() ? 1 : 0;
      others += !seen && seen.error().failure != EptFailure::kInUse ? 1 : 0;
    }
  };
  std::thread second(scan_often);
  scan_often();
  second.join();
  EXPECT_GT(done, 0U);
  EXPECT_EQ(others, 0U);
}

TEST(AtOnce, TwoVms) {
  EptVm first;
  EptVm second;
  first.write({1});
  second.write({2});
  std::thread other([&] {
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(pages_of(second.scan(false).accessed), Pages{2});
    }
  });
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(pages_of(first.scan(false).accessed), Pages{1});
  }
  other.join();
}

TEST(AtOnce, AScannerEndsAndAnotherBegins) {
  EptVm vm;
  const auto refused = EptScanner::attach(vm.vmm().pid());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().failure, EptFailure::kInUse);
  vm.detach();
  EXPECT_TRUE(EptScanner::attach(vm.vmm().pid()));
}

TEST(AtOnce, MemoryComesAndGoes) {
  EptVm vm;
  vm.vmm().start_writing();
  std::atomic<bool> stop = false;
  std::thread puncher([&] {
    for (off_t at = 0; !stop; at = (at + 4096) % static_cast<off_t>(kSmallRamBytes)) {
      EXPECT_EQ(fallocate(vm.vmm().ram_file(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, 4096), 0);
    }
  });
  for (int i = 0; i < 200; ++i) {
    static_cast<void>(vm.scan(true, i % 5 == 0));
  }
  stop = true;
  puncher.join();
  EXPECT_TRUE(vm.vmm().stop_writing());
}

// Slots of an idle VM, in this process: each scan finds all of its range there, or says that it is not.
TEST(AtOnce, SlotsComeAndGo) {
  const IdleVm vm;
  const UniqueFd device = open_device();
  ASSERT_EQ(attach(device, vm.vm.get()), 0);
  std::atomic<bool> stop = false;
  std::thread changer([&] {
    kvm_userspace_memory_region slot{1, 0, std::uint64_t{192} * 4096, std::uint64_t{64} * 4096,
                                     reinterpret_cast<std::uint64_t>(vm.memory)};
    while (!stop) {
      for (const std::uint64_t bytes : {std::uint64_t{64} * 4096, std::uint64_t{0}}) {
        slot.memory_size = bytes;
        EXPECT_EQ(ioctl(vm.vm.get(), KVM_SET_USER_MEMORY_REGION, &slot), 0);
      }
    }
  });
  for (int i = 0; i < 300; ++i) {
    auto request = request_for(64, 192);
    request.flags = i % 2 == 0 ? GODWIT_EPT_CLEAR : GODWIT_EPT_USE_KVM_AGING;
    const int error = scan(device, request);
    EXPECT_TRUE(error == 0 || error == ERANGE) << error;
  }
  stop = true;
  changer.join();
}

TEST(AtOnce, TheVmDies) {
  for (int round = 0; round < 10; ++round) {
    EptVm vm;
    vm.vmm().start_writing();
    std::atomic<int> scans = 0;
    std::atomic<bool> ended = false;
    std::optional<bridge::EptError> end;
    std::thread scanner([&] {
      for (;;) {
        const auto seen = vm.scanner().scan({kRamPage, vm.ram_pages(), true, round % 2 == 1});
        if (!seen) {
          end = seen.error();
          ended = true;
          return;
        }
        ++scans;
      }
    });
    while (scans < round && !ended) {
      usleep(100);
    }
    ASSERT_EQ(kill(vm.vmm().pid(), SIGKILL), 0);
    scanner.join();
    ASSERT_TRUE(end);
    EXPECT_EQ(end->failure, EptFailure::kVmGone) << end->text;
    const auto info = vm.scanner().info();
    ASSERT_FALSE(info);
    EXPECT_EQ(info.error().failure, EptFailure::kVmGone);
  }
}

// The descriptor goes, the VM stays as long as its scanner.
TEST(AtOnce, TheDescriptorGoes) {
  IdleVm vm;
  const UniqueFd device = open_device();
  ASSERT_EQ(attach(device, vm.vm.get()), 0);
  vm.vm.reset();
  auto request = request_for(64, 128);
  EXPECT_EQ(scan(device, request), 0);
}

}  // namespace
}  // namespace godwit::kernel_test
