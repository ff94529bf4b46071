#include "qemu-bridge/agent/host_info.h"

#include <gtest/gtest.h>

#include "qemu-bridge/agent/ram_files.h"

namespace godwit::bridge {
namespace {

controlplane::v1::HostInfo info(const std::optional<dataplane::v1::ListImagesResult>& images) {
  config::BridgeConfig config;
  config.memory_dir_tmpfs = "/dev/shm";
  config.memory_dir_hugetlbfs = "/dev/hugepages";
  return host_info(config, "", std::nullopt, images);
}

dataplane::v1::ListImagesResult budget(std::uint64_t budget_bytes, std::uint64_t used_bytes) {
  dataplane::v1::ListImagesResult images;
  images.set_budget_bytes(budget_bytes);
  images.set_used_bytes(used_bytes);
  return images;
}

TEST(HostInfo, FreeMemoryIsWhatTheBudgetLeavesIfThatIsLess) {
  const auto host = info(budget(3 << 20, 1 << 20));
  EXPECT_EQ(host.memory_total_bytes(), 3U << 20);
  EXPECT_EQ(host.memory_free_bytes(), 2U << 20);
  EXPECT_LE(host.hugepages_free_bytes(), 2U << 20);
}

TEST(HostInfo, NothingIsFreeBeyondTheBudget) {
  const auto host = info(budget(1 << 20, 3 << 20));
  EXPECT_EQ(host.memory_free_bytes(), 0U);
  EXPECT_EQ(host.hugepages_free_bytes(), 0U);
}

TEST(HostInfo, ALargeBudgetAddsNothingToWhatTheHostHas) {
  const auto host = info(budget(UINT64_MAX, 0));
  EXPECT_GT(host.memory_free_bytes(), 0U);
  EXPECT_LT(host.memory_free_bytes(), std::uint64_t{1} << 50);
  EXPECT_LE(host.memory_free_bytes(), host.memory_total_bytes());
}

TEST(HostInfo, WhetherPagesMayBeMissingHereIsTheDataPlanesWord) {
  dataplane::v1::HelloResult hello;
  hello.set_postcopy_refusal("the kernel is too old");
  const config::BridgeConfig config;
  EXPECT_FALSE(host_info(config, "", hello, std::nullopt).postcopy());
  EXPECT_EQ(host_info(config, "", hello, std::nullopt).postcopy_refusal(), "the kernel is too old");
  hello.set_postcopy(true);
  EXPECT_TRUE(host_info(config, "", hello, std::nullopt).postcopy());
  EXPECT_FALSE(host_info(config, "", std::nullopt, std::nullopt).postcopy()) << "down";
}

TEST(HostInfo, NoBudgetIsNoLimit) {
  EXPECT_GT(info(budget(0, 5 << 20)).memory_free_bytes(), 5U << 20);
  EXPECT_GT(info(std::nullopt).memory_free_bytes(), 5U << 20);
}

TEST(Room, OnlyOfAVmThatIsSplitFromItsFirstMomentHereTheBudgetIsEnough) {
  config::VmDefinition definition;
  definition.uuid = Id128::random();
  definition.regions = {{"ram0", std::uint64_t{1} << 45, config::Backing::kTmpfs}};
  definition.resident_budget_bytes = 16 << 20;  // as it was started; it may be whole by now
  const HostPaths paths{"/run/vm", "/dev/shm", "", ""};
  EXPECT_TRUE(check_room({definition, paths, 16 << 20, 0}));
  EXPECT_EQ(bytes_short({definition, paths, 16 << 20, 0}), 0U);
  EXPECT_FALSE(check_room({definition, paths, 0, 0}));
  EXPECT_GT(bytes_short({definition, paths, 0, 0}), 0U);
}

}  // namespace
}  // namespace godwit::bridge
