#include "dataplane/memory/missing_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/unique_fd.h"

namespace godwit::memory {
namespace {

class MissingPagesTest : public testing::Test {
 protected:
  MissingPagesTest() {
    of_.vm_uuid[3] = std::byte{5};
    of_.epoch = 9;
    of_.qemu_pid = 77;
    of_.page_count = 1000;
    of_.shape_hash = 42;
  }
  ~MissingPagesTest() override { EXPECT_TRUE(MissingPages::remove(path_)); }

  /// A file that may be taken over, with pages 60 to 69 and 999 missing.
  void leave_one() {
    auto missing = MissingPages::create(path_, of_);
    ASSERT_TRUE(missing) << missing.error().text;
    missing->add(60, 10);
    missing->add(999, 1);
    missing->let_take_over();
  }

  void expect_refused(const MissingOf& of, const std::string& why) {
    const auto missing = MissingPages::adopt(path_, of);
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code, ErrorCode::kBadArgument);
    EXPECT_NE(missing.error().text.find(why), std::string::npos) << missing.error().text;
  }

  void overwrite(off_t offset, unsigned char value) {
    const UniqueFd file(open(path_.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(pwrite(file.get(), &value, 1, offset), 1);
  }

  const std::string path_ = "/dev/shm/godwit-test-set-" + std::to_string(getpid());
  MissingOf of_;
};

TEST_F(MissingPagesTest, WhatNobodyCanTakeOverIsSweptOut) {
  leave_one();
  const std::string unfinished = path_ + ".unfinished", empty = path_ + ".empty";
  ASSERT_TRUE(MissingPages::create(unfinished, of_));
  ASSERT_TRUE(UniqueFd(open(empty.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)).valid());
  const auto there = [](const std::string& path) { return std::filesystem::exists(path); };
  const std::string name = std::filesystem::path(path_).filename();
  for (const std::string& ending : {name + ".unfinishe", name + ".other"}) {
    GuestStateFile::remove_unfinished("/dev/shm", ending);
    EXPECT_TRUE(there(path_) && there(unfinished) && there(empty));
  }
  for (const std::string& ending : {name, name + ".unfinished", name + ".empty"}) {
    GuestStateFile::remove_unfinished("/dev/shm", ending);
  }
  EXPECT_TRUE(there(path_)) << "a running guest lacks what is in it";
  EXPECT_FALSE(there(unfinished));
  EXPECT_FALSE(there(empty));
}

TEST_F(MissingPagesTest, CountsAndTellsWhatItHolds) {
  auto missing = MissingPages::create(path_, of_);
  ASSERT_TRUE(missing) << missing.error().text;
  EXPECT_EQ(missing->count(), 0U);
  missing->add(10, 200);
  missing->add(100, 500);
  EXPECT_EQ(missing->count(), 590U);
  EXPECT_TRUE(missing->clear(10));
  EXPECT_FALSE(missing->clear(10));
  EXPECT_EQ(missing->count(), 589U);
  EXPECT_FALSE(missing->test(9));
  EXPECT_FALSE(missing->test(10));
  EXPECT_TRUE(missing->test(599));
  EXPECT_FALSE(missing->test(600));
  pages::Bitmap expected(of_.page_count);
  expected.set_range(11, 589);
  EXPECT_EQ(missing->all(), expected);
}

TEST_F(MissingPagesTest, OutlivesAProcessThatIsKilled) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    leave_one();
    auto missing = MissingPages::adopt(path_, of_);
    missing->clear(61);
    kill(getpid(), SIGKILL);
  }
  waitpid(child, nullptr, 0);
  const auto missing = MissingPages::adopt(path_, of_);
  ASSERT_TRUE(missing) << missing.error().text;
  EXPECT_EQ(missing->count(), 10U);
  EXPECT_TRUE(missing->test(60));
  EXPECT_FALSE(missing->test(61));
  EXPECT_TRUE(missing->test(999));
}

TEST_F(MissingPagesTest, OfAnythingElseIsRefused) {
  leave_one();
  const auto with = [&](auto change) {
    MissingOf other = of_;
    change(other);
    return other;
  };
  expect_refused(with([](MissingOf& of) { of.vm_uuid[0] = std::byte{1}; }), "another VM");
  expect_refused(with([](MissingOf& of) { of.image_id[0] = std::byte{1}; }), "another cold boot");
  expect_refused(with([](MissingOf& of) { of.epoch = 10; }), "another migration");
  expect_refused(with([](MissingOf& of) { of.boot_id[0] = std::byte{1}; }), "another QEMU");
  expect_refused(with([](MissingOf& of) { of.qemu_pid = 78; }), "another QEMU");
  expect_refused(with([](MissingOf& of) { of.qemu_start = 1; }), "another QEMU");
  expect_refused(with([](MissingOf& of) { of.shape_hash = 1; }), "regions differ");
  expect_refused(with([](MissingOf& of) { of.page_count = 999; }), "regions differ");
  expect_refused(with([](MissingOf& of) { of.page_count = 2000; }), "its size");
  EXPECT_TRUE(MissingPages::adopt(path_, of_));
}

TEST_F(MissingPagesTest, DamagedOrUnfinishedIsRefused) {
  leave_one();
  overwrite(4096 + 1000 / 8 + 2, 0xff);
  expect_refused(of_, "does not have");
  leave_one();
  overwrite(17, 0xff);
  expect_refused(of_, "damaged");
  ASSERT_TRUE(MissingPages::create(path_, of_));
  expect_refused(of_, "died before");
  std::filesystem::resize_file(path_, 100);
  expect_refused(of_, "its size");
  ASSERT_TRUE(MissingPages::remove(path_));
  EXPECT_FALSE(MissingPages::adopt(path_, of_));
}

TEST_F(MissingPagesTest, MustBeOnTmpfs) {
  EXPECT_FALSE(MissingPages::create("/proc/self/no-such-place", of_));
  const std::string elsewhere = std::filesystem::current_path() / "missing-elsewhere";
  struct statfs system {};
  if (statfs(std::filesystem::current_path().c_str(), &system) != 0 || system.f_type == TMPFS_MAGIC) {
    GTEST_SKIP() << "the build folder is on tmpfs itself";
  }
  const auto refused = MissingPages::create(elsewhere, of_);
  EXPECT_FALSE(std::filesystem::exists(elsewhere));
  static_cast<void>(MissingPages::remove(elsewhere));
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().text.find("not on tmpfs"), std::string::npos) << refused.error().text;
}

}  // namespace
}  // namespace godwit::memory
