#include "dataplane/daemon/tracking_state.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

namespace godwit::daemon {
namespace {

class TrackingStateTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/gwd-tracking-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    directory_ = pattern;
    guest_ = {.vm_uuid = Id128::random(),
              .image_id = Id128::random(),
              .boot_id = Id128::random(),
              .qemu_pid = 7,
              .qemu_start = 99,
              .page_count = 1000,
              .shape_hash = 5};
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  [[nodiscard]] std::string file() const { return directory_ + "/" + guest_.vm_uuid.text() + ".tracking"; }
  void store() {
    auto state = TrackingState::create(directory_, guest_);
    ASSERT_TRUE(state.has_value()) << state.error();
    pages::GenerationTable table(1000);
    table.set_range(10, 5, 3);
    state->store(table, 4);
  }
  std::string directory_;
  TrackedGuest guest_;
};

TEST_F(TrackingStateTest, ARestartedDaemonFindsTheTable) {
  store();
  const auto state = TrackingState::adopt(directory_, guest_);
  ASSERT_TRUE(state.has_value()) << state.error();
  EXPECT_EQ(state->epoch(), 4U);
  EXPECT_EQ(state->table().get(12), 3U);
  EXPECT_EQ(state->table().get(15), 0U);
}

TEST_F(TrackingStateTest, WhatAScanTookIsUnknown) {
  store();
  {
    auto state = TrackingState::adopt(directory_, guest_);
    pages::Bitmap written(1000);
    written.set(12);
    written.set(999);
    state->begin_scan();
    state->end_scan(written);
  }
  const auto state = TrackingState::adopt(directory_, guest_);
  ASSERT_TRUE(state.has_value()) << state.error();
  EXPECT_EQ(state->table().get(12), pages::kUnknownGeneration);
  EXPECT_EQ(state->table().get(999), pages::kUnknownGeneration);
  EXPECT_EQ(state->table().get(11), 3U);
}

TEST_F(TrackingStateTest, ADaemonThatDiedDuringAScanHasLostTheHistoryButNotTheEpoch) {
  store();
  auto state = TrackingState::adopt(directory_, guest_);
  state->raise_epoch(77);
  state->begin_scan();
  EXPECT_FALSE(TrackingState::adopt(directory_, guest_).has_value());
  EXPECT_EQ(TrackingState::epoch_floor(directory_, guest_), 77U);
}

TEST_F(TrackingStateTest, ANewFileHasNoHistoryUntilStored) {
  ASSERT_TRUE(TrackingState::create(directory_, guest_).has_value());
  EXPECT_FALSE(TrackingState::adopt(directory_, guest_).has_value());
}

TEST_F(TrackingStateTest, FilesOfOthersAreRefused) {
  store();
  struct Row {
    const char* description;
    void (*change)(TrackedGuest&);
  };
  const Row rows[] = {
      {"other image", [](TrackedGuest& guest) { guest.image_id = Id128::random(); }},
      {"other boot", [](TrackedGuest& guest) { guest.boot_id = Id128::random(); }},
      {"other process", [](TrackedGuest& guest) { guest.qemu_pid = 8; }},
      {"pid used again", [](TrackedGuest& guest) { guest.qemu_start = 100; }},
      {"other size", [](TrackedGuest& guest) { guest.page_count = 1001; }},
      {"other regions", [](TrackedGuest& guest) { guest.shape_hash = 6; }},
  };
  for (const Row& row : rows) {
    TrackedGuest other = guest_;
    row.change(other);
    EXPECT_FALSE(TrackingState::adopt(directory_, other).has_value()) << row.description;
  }
  EXPECT_TRUE(TrackingState::adopt(directory_, guest_).has_value());
}

TEST_F(TrackingStateTest, ATruncatedOrGarbledFileIsRefused) {
  store();
  const int fd = open(file().c_str(), O_RDWR | O_CLOEXEC);
  const std::uint64_t garbage = 1;
  ASSERT_EQ(pwrite(fd, &garbage, sizeof garbage, 0), 8);
  EXPECT_FALSE(TrackingState::adopt(directory_, guest_).has_value());
  EXPECT_EQ(TrackingState::epoch_floor(directory_, guest_), 0U);
  ASSERT_EQ(ftruncate(fd, 100), 0);
  EXPECT_FALSE(TrackingState::adopt(directory_, guest_).has_value());
  close(fd);
}

}  // namespace
}  // namespace godwit::daemon
