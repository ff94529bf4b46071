// Every QEMU that godwit must not touch is refused with the option to add: by tables, and with real QEMUs.
#include <gtest/gtest.h>

#include "qemu-bridge/agent/qemu_inspection.h"
#include "qemu-bridge/agent/qemu_process.h"
#include "tests/unit/qemu-bridge/owned_qemu.h"
#include "tests/unit/qemu-bridge/temp_dir.h"

namespace godwit::bridge {
namespace {

struct DeviceRow {
  const char* type;
  bool refused;
};
class Devices : public testing::TestWithParam<DeviceRow> {};

TEST_P(Devices, ByTheirType) {
  const auto checked = check_devices({{"/machine/peripheral/d0", GetParam().type}}, "");
  EXPECT_EQ(checked.has_value(), !GetParam().refused);
  if (!checked) {
    EXPECT_EQ(checked.error().code, RefusalCode::kDevice);
    EXPECT_NE(checked.error().text.find("/machine/peripheral/d0"), std::string::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Devices,
                         testing::Values(DeviceRow{"vhost-user-blk-pci", true}, DeviceRow{"vhost-user-fs-pci", true},
                                         DeviceRow{"vfio-pci", true}, DeviceRow{"vhost-vdpa-device-pci", true},
                                         DeviceRow{"ivshmem-plain", true}, DeviceRow{"virtio-mem-pci", true},
                                         DeviceRow{"virtio-net-pci", false}, DeviceRow{"virtio-blk-pci", false},
                                         DeviceRow{"vhost-scsi-pci", false}, DeviceRow{"VGA", false}));

TEST(Network, VhostUserBackendsAreNamed) {
  const auto checked = check_devices({},
                                     "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci\r\n"
                                     " \\ net7: index=0,type=vhost-user,chardev=c0\r\n");
  ASSERT_FALSE(checked);
  EXPECT_NE(checked.error().text.find("'net7'"), std::string::npos) << checked.error().text;
  EXPECT_TRUE(check_devices({}, "hub 0\r\n \\ net0: index=0,type=tap,ifname=vnet0\r\n"));
}

TEST(Backends, AllRamMustBeCovered) {
  const MemdevInfo ram0{"ram0", "memory-backend-file", 1 << 20, true, "/dev/shm/x"};
  EXPECT_TRUE(check_backends({ram0}, 1 << 20));
  EXPECT_EQ(check_backends({ram0}, 2 << 20).error().code, RefusalCode::kUncoveredMemory);
  EXPECT_EQ(check_backends({ram0, ram0}, 1 << 20).error().code, RefusalCode::kUncoveredMemory);
  EXPECT_EQ(check_backends({}, 0).error().code, RefusalCode::kBackend);
}

struct QemuRow {
  const char* what;
  std::vector<std::string> arguments;  // DIR is replaced
  RefusalCode code;
  const char* text;  // "" = accepted
};
class RealQemu : public testing::TestWithParam<QemuRow> {};

TEST_P(RealQemu, IsInspected) {
  constexpr const char* kQemu = "/usr/bin/qemu-system-x86_64";
  if (::access(kQemu, X_OK) != 0) {
    GTEST_SKIP() << "no " << kQemu;
  }
  TempDir dir;
  Launch plan;
  plan.argv = {kQemu,  "-accel",      "tcg",
               "-S",   "-nodefaults", "-display",
               "none", "-qmp",        "unix:" + (dir.path() / "qmp.sock").string() + ",server=on,wait=off"};
  for (std::string argument : GetParam().arguments) {
    if (const auto at = argument.find("DIR"); at != std::string::npos) {
      argument.replace(at, 3, dir.path());
    }
    plan.argv.push_back(argument);
  }
  plan.log_file = dir.path() / "log";
  const auto process = launch(plan);
  ASSERT_TRUE(process) << process.error();
  const OwnedQemu owned(*process);
  auto qmp = QmpClient::connect(dir.path() / "qmp.sock", {});
  for (int i = 0; i < 500 && !qmp && is_alive(*process); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // tidy-allow(sleep): polls a bounded wait
    qmp = QmpClient::connect(dir.path() / "qmp.sock", {});
  }
  ASSERT_TRUE(qmp) << qmp.error().text << log_tail(plan.log_file);
  const auto facts = inspect_qemu(**qmp);
  if (*GetParam().text == 0) {
    ASSERT_TRUE(facts) << facts.error().text;
    EXPECT_TRUE(facts->machine_type.starts_with("pc-i440fx-"));
    EXPECT_EQ(facts->has_balloon, std::ranges::count(GetParam().arguments, "virtio-balloon-pci") > 0);
  } else {
    ASSERT_FALSE(facts);
    EXPECT_EQ(facts.error().code, GetParam().code) << facts.error().text;
    EXPECT_NE(facts.error().text.find(GetParam().text), std::string::npos) << facts.error().text;
  }
}

const std::string kShared = "memory-backend-file,id=ram0,size=32M,mem-path=DIR/ram,share=on";

INSTANTIATE_TEST_SUITE_P(
    Started, RealQemu,
    testing::Values(QemuRow{"shared file", {"-M", "pc,memory-backend=ram0", "-m", "32", "-object", kShared}, {}, ""},
                    QemuRow{"balloon and memfd",
                            {"-M", "pc,memory-backend=ram0", "-m", "32", "-object",
                             "memory-backend-memfd,id=ram0,size=32M,share=on", "-device", "virtio-balloon-pci"},
                            {},
                            ""},
                    QemuRow{"share=off",
                            {"-M", "pc,memory-backend=ram0", "-m", "32", "-object",
                             "memory-backend-file,id=ram0,size=32M,mem-path=DIR/ram,share=off"},
                            RefusalCode::kBackend,
                            "add share=on"},
                    QemuRow{"no backend", {"-M", "pc", "-m", "32"}, RefusalCode::kBackend, "memory-backend-file"},
                    QemuRow{"anonymous",
                            {"-M", "pc,memory-backend=ram0", "-m", "32", "-object",
                             "memory-backend-ram,id=ram0,size=32M,share=on"},
                            RefusalCode::kBackend,
                            "is no shared file"},
                    QemuRow{"a backend that is not RAM",
                            {"-M", "pc,memory-backend=ram0", "-m", "32", "-object", kShared, "-object",
                             "memory-backend-file,id=extra,size=32M,mem-path=DIR/extra,share=on"},
                            RefusalCode::kUncoveredMemory,
                            "memory backends 67108864"}),
    [](const auto& row) { return std::to_string(row.index); });

}  // namespace
}  // namespace godwit::bridge
