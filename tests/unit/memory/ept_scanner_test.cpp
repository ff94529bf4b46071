// The client of the kernel module where there is no module: what it says then, and how it finds a VM. What the device
// does is tested in tests/kernel.

#include "qemu-bridge/attach/ept_scanner.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace godwit::bridge {
namespace {

TEST(EptScanner, NoModule) {
  const auto scanner = EptScanner::attach(UniqueFd(), "/dev/no-such-device");
  ASSERT_FALSE(scanner);
  EXPECT_EQ(scanner.error().failure, EptFailure::kNotLoaded);
  EXPECT_NE(scanner.error().text.find("godwit-ept"), std::string::npos);
}

TEST(EptScanner, AnotherDevice) {
  const auto scanner = EptScanner::attach(UniqueFd(), "/dev/null");
  ASSERT_FALSE(scanner);
  EXPECT_EQ(scanner.error().failure, EptFailure::kNotLoaded);
}

TEST(EptScanner, ErrnoOfEachStep) {
  const auto failure = [](EptStep step, int error_number) { return ept_error(step, error_number).failure; };
  EXPECT_EQ(failure(EptStep::kOpen, EPERM), EptFailure::kNotPermitted);
  EXPECT_EQ(failure(EptStep::kOpen, EMFILE), EptFailure::kKernel);
  EXPECT_EQ(failure(EptStep::kAttach, EINVAL), EptFailure::kNotKvm);
  EXPECT_EQ(failure(EptStep::kAttach, EBUSY), EptFailure::kInUse);
  EXPECT_EQ(failure(EptStep::kAttach, EOPNOTSUPP), EptFailure::kUnsupported);
  EXPECT_EQ(failure(EptStep::kCall, EOPNOTSUPP), EptFailure::kAccessedBitsOff);
  EXPECT_EQ(failure(EptStep::kCall, ESRCH), EptFailure::kVmGone);
  EXPECT_EQ(failure(EptStep::kCall, ERANGE), EptFailure::kOutsideMemory);
  EXPECT_EQ(failure(EptStep::kCall, EFAULT), EptFailure::kKernel);
  EXPECT_EQ(ept_error(EptStep::kCall, ESRCH).error_number, ESRCH);
}

TEST(EptScanner, AProcessWithoutVm) {
  const auto vm = fetch_vm(getpid());
  ASSERT_FALSE(vm);
  EXPECT_EQ(vm.error().failure, EptFailure::kNotKvm);
}

TEST(EptScanner, AProcessThatIsGone) {
  const pid_t child = fork();
  if (child == 0) {
    _exit(0);
  }
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  const auto vm = fetch_vm(child);
  ASSERT_FALSE(vm);
  EXPECT_EQ(vm.error().failure, EptFailure::kVmGone);
}

TEST(EptScanner, TheOneVmOfAProcess) {
  const UniqueFd kvm(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  const UniqueFd vm(kvm.valid() ? ioctl(kvm.get(), KVM_CREATE_VM, 0) : -1);
  if (!vm.valid()) {
    GTEST_SKIP() << "no usable /dev/kvm on this machine";
  }
  const auto fetched = fetch_vm(getpid());
  ASSERT_TRUE(fetched) << fetched.error().text;
  EXPECT_EQ(ioctl(fetched->get(), KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
  // Ours and the fetched one now: which is meant is not known.
  const auto several = fetch_vm(getpid());
  ASSERT_FALSE(several);
  EXPECT_EQ(several.error().failure, EptFailure::kNotKvm);
}

}  // namespace
}  // namespace godwit::bridge
