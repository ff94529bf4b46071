#include "tests/unit/dataplane/fake_qemu.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

namespace godwit::tests {

FakeQemu::FakeQemu(std::string path, std::uint64_t bytes) : path_(std::move(path)), bytes_(bytes) {
  file_.reset(open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file_.valid() || ftruncate(file_.get(), static_cast<off_t>(bytes)) != 0) {
    error_ = path_ + ": " + std::strerror(errno);
    return;
  }
  void* const mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
  if (mapping == MAP_FAILED) {
    error_ = std::string("mmap: ") + std::strerror(errno);
    return;
  }
  memory_ = static_cast<std::byte*>(mapping);
  userfaultfd_.reset(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!userfaultfd_.valid()) {
    error_ = std::string("userfaultfd: ") + std::strerror(errno);
    return;
  }
  pagemap_.reset(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap_.valid()) {
    error_ = std::string("/proc/self/pagemap: ") + std::strerror(errno);
  }
}

FakeQemu::~FakeQemu() {
  if (memory_ != nullptr) {
    munmap(memory_, bytes_);
  }
}

std::string FakeQemu::armed() const {
  std::ifstream smaps("/proc/self/smaps");
  bool ours = false;
  bool seen = false;
  std::string flags;
  for (std::string line; std::getline(smaps, line);) {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) == 2) {
      const auto ram = reinterpret_cast<std::uint64_t>(memory_);
      ours = begin >= ram && begin < ram + bytes_;
    } else if (ours && line.starts_with("VmFlags:")) {
      seen = true;
      for (const char* flag : {" um", " uw", " ui"}) {
        flags += line.find(flag) != std::string::npos ? flag : "";
      }
    }
  }
  return seen ? flags : "the RAM is not mapped";
}

void FakeQemu::describe(dataplane::v1::AttachGuest& request) const {
  auto& region = *request.add_regions();
  region.set_name("ram0");
  region.set_bytes(bytes_);
  region.set_page_bytes(4096);
  region.set_qemu_address(reinterpret_cast<std::uint64_t>(memory_));
  region.set_ram_path(path_);
  request.set_has_userfaultfd(true);
  request.set_has_pagemap(true);
  request.set_qemu_pid(getpid());
}

void FakeQemu::give_up_waiting() {
  uffdio_range all{.start = reinterpret_cast<std::uint64_t>(memory_), .len = bytes_};
  ioctl(userfaultfd_.get(), UFFDIO_UNREGISTER, &all);
}

}  // namespace godwit::tests
