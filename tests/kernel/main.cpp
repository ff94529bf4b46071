// `hold`: makes a VM with a vCPU, for as long as the process that it leaves behind. Otherwise the tests.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <string_view>

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "hold") {
    const int vm = ioctl(open("/dev/kvm", O_RDWR), KVM_CREATE_VM, 0);
    if (ioctl(vm, KVM_CREATE_VCPU, 0) < 0) {
      return 1;
    }
    if (fork() == 0) {
      pause();
    }
    return 0;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
