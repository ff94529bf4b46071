// What counts as left behind by a crash, and what is never touched.
#include "qemu-bridge/agent/leftovers.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>

#include "tests/unit/qemu-bridge/temp_dir.h"

namespace godwit::bridge {
namespace {

constexpr std::int32_t kNoSuchPid = 0x7fffffff;  // above the kernel's largest

class Leftovers : public testing::Test {
 protected:
  Leftovers() { config_.memory_dir_tmpfs = dir_.path(); }

  std::filesystem::path make_ram(const Id128& vm) {
    const auto path = dir_.path() / (vm.text() + ".ram0.ram");
    std::ofstream(path) << "memory";
    return path;
  }
  void add_image(const Id128& vm, bool in_use) {
    auto& image = *images_.add_images();
    image.mutable_id()->set_vm_uuid(vm.to_bytes());
    image.set_in_use(in_use);
  }
  void add_guest(const Id128& vm, std::int32_t pid) {
    auto& guest = *status_.add_guests();
    guest.set_vm_uuid(vm.to_bytes());
    guest.set_qemu_pid(pid);
  }
  std::map<Id128, Leftover> find(const std::set<Id128>& here = {}) {
    return find_leftovers(status_, images_, config_, here);
  }

  TempDir dir_{"/dev/shm"};
  config::BridgeConfig config_;
  dataplane::v1::Status status_;
  dataplane::v1::ListImagesResult images_;
};

TEST_F(Leftovers, MemoryThatAGuestElsewhereNeedsIsNone) {
  const Id128 by_status = Id128::random();
  const Id128 by_image = Id128::random();
  make_ram(by_status);
  make_ram(by_image);
  add_guest(by_status, kNoSuchPid);
  status_.add_paging()->set_vm_uuid(by_status.to_bytes());
  status_.mutable_paging(0)->set_role(dataplane::v1::ROLE_SOURCE);
  add_image(by_image, true);
  images_.mutable_images(0)->set_serving_migration_id(Id128::random().to_bytes());
  EXPECT_TRUE(find().empty());
}

TEST_F(Leftovers, MemoryOfAVmHereOfAnImageOrOfALivingGuestIsNone) {
  const Id128 running = Id128::random();
  const Id128 retained = Id128::random();
  const Id128 alive = Id128::random();
  make_ram(running);
  make_ram(retained);
  make_ram(alive);
  add_image(running, true);
  add_image(retained, false);
  add_guest(running, kNoSuchPid);
  add_guest(alive, ::getpid());
  std::ofstream(dir_.path() / "somebody-elses.ram") << "memory";
  EXPECT_TRUE(find({running}).empty());
}

TEST_F(Leftovers, FilesAndImagesOfNobody) {
  const Id128 interrupted = Id128::random();
  const Id128 stray = Id128::random();
  make_ram(interrupted);
  make_ram(stray);
  add_image(interrupted, true);
  const auto found = find();
  ASSERT_EQ(found.size(), 2U);
  EXPECT_TRUE(found.at(interrupted).interrupted);
  EXPECT_EQ(found.at(interrupted).ram_files.size(), 1U);
  EXPECT_FALSE(found.at(stray).interrupted);
  EXPECT_EQ(found.at(stray).ram_files.size(), 1U);
}

TEST_F(Leftovers, AGuestWithoutQemuIsLetGoBeforeItsMemory) {
  const Id128 vm = Id128::random();
  make_ram(vm);
  add_guest(vm, kNoSuchPid);
  const auto found = find();
  ASSERT_TRUE(found.at(vm).guest);
  EXPECT_TRUE(found.at(vm).ram_files.empty());
}

TEST_F(Leftovers, WhatAProcessHasMappedStays) {
  DataplaneClient dataplane("/nowhere", {});
  const Id128 vm = Id128::random();
  const auto path = make_ram(vm);
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  void* const mapping = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ASSERT_NE(mapping, MAP_FAILED);
  ::close(file);
  clear_leftover(dataplane, vm, find().at(vm));
  EXPECT_TRUE(std::filesystem::exists(path));
  ::munmap(mapping, 4096);
  clear_leftover(dataplane, vm, find().at(vm));
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace godwit::bridge
