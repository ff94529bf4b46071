#include <gtest/gtest.h>

#include "dataplane/port/environment.h"
#include "dataplane/port/port.h"

namespace godwit::port {
namespace {

std::uint64_t value_of(const std::string& arguments, const std::string& key) {
  const std::size_t at = arguments.find("," + key + "=");
  return at == std::string::npos ? 0 : std::stoull(arguments.substr(at + key.size() + 2));
}

TEST(DeviceArguments, PacketRingFramesFillTheirBlocksExactly) {
  for (const std::uint32_t mtu : {1500U, 4000U, 9000U, 9216U}) {
    PortOptions options;
    options.interface = "veth0";
    options.mtu = mtu;
    const auto arguments = device_arguments(options);
    ASSERT_TRUE(arguments.has_value());
    const std::uint64_t frame = value_of(*arguments, "framesz");
    const std::uint64_t block = value_of(*arguments, "blocksz");
    const std::uint64_t count = value_of(*arguments, "framecnt");
    EXPECT_GE(frame, mtu + 14 + 96) << mtu;
    EXPECT_EQ(block % frame, 0U) << mtu;
    EXPECT_EQ(block % 4096, 0U) << mtu;
    EXPECT_EQ(count % (block / frame), 0U) << mtu;
    EXPECT_GT(count, options.in_flight_max) << mtu;
  }
}

TEST(DeviceArguments, MemifNeedsNoDevice) {
  PortOptions options;
  options.driver = Driver::kMemif;
  options.socket = "/run/m.sock";
  options.mtu = 9000;
  const auto arguments = device_arguments(options);
  ASSERT_TRUE(arguments.has_value());
  EXPECT_TRUE(arguments->empty());
}

TEST(DeviceArguments, ValuesThatWouldBecomeOtherOptionsAreRefused) {
  PortOptions options;
  options.interface = "veth0,qpairs=9";
  EXPECT_FALSE(device_arguments(options).has_value());
  options.interface = "";
  EXPECT_FALSE(device_arguments(options).has_value());
  options.driver = Driver::kMemif;
  options.socket = "relative";
  EXPECT_FALSE(device_arguments(options).has_value());
}

TEST(EalArguments, RefusesWhatCannotBe) {
  EnvironmentOptions options;
  EXPECT_FALSE(eal_arguments(options).has_value()) << "no lcore";
  options.lcores = {{1, "0"}, {1, "1"}};
  EXPECT_FALSE(eal_arguments(options).has_value()) << "one lcore twice";
  options.lcores = {{1, "0 --vdev=x"}};
  EXPECT_FALSE(eal_arguments(options).has_value()) << "not a CPU list";
  options.lcores = {{1, "0"}};
  EXPECT_TRUE(eal_arguments(options).has_value());
  options.hugepages = false;
  options.pci_addresses = {"0000:01:00.0"};
  EXPECT_FALSE(eal_arguments(options).has_value()) << "PCI without hugepages";
}

}  // namespace
}  // namespace godwit::port
