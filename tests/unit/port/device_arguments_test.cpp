#include <gtest/gtest.h>

#include "dataplane/port/environment.h"
#include "dataplane/port/port.h"

namespace godwit::port {
namespace {

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
