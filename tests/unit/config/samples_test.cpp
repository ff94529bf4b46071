// The samples load, and code, samples and docs/configuration.md know the same keys.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>

#include "config/bridge_config.h"
#include "config/controlplane_config.h"
#include "config/ctl_config.h"
#include "config/dataplane_config.h"
#include "config/migration_plan.h"
#include "config/reader.h"
#include "config/vm_definition.h"

namespace godwit::config {
namespace {

using Keys = std::set<std::string>;

const std::filesystem::path kSource = GODWIT_SOURCE_DIR;

std::vector<std::string> lines_of(const std::filesystem::path& file) {
  std::ifstream stream(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(line);
  }
  return lines;
}

/// Keys of a sample, also those commented out as "#key = value".
Keys keys_of_sample(const std::string& name) {
  static const std::regex kTable(R"(^\[+([a-z_.]+)\]+$)"), kKey(R"(^#?([a-z_]+) = .*)");
  Keys keys;
  std::string prefix;
  for (const auto& line : lines_of(kSource / "config/samples" / name)) {
    std::smatch match;
    if (std::regex_match(line, match, kTable)) {
      prefix = match[1].str() + ".";
    } else if (std::regex_match(line, match, kKey)) {
      keys.insert(prefix + match[1].str());
    }
  }
  return keys;
}

/// First column of the table under "## <name>".
Keys keys_of_document(const std::string& name) {
  static const std::regex kRow(R"(^\| `([a-z_.]+)` \|.*)");
  Keys keys;
  bool inside = false;
  for (const auto& line : lines_of(kSource / "docs/configuration.md")) {
    std::smatch match;
    if (line.starts_with("## ")) {
      inside = line == "## " + name;
    } else if (inside && std::regex_match(line, match, kRow)) {
      keys.insert(match[1]);
    }
  }
  return keys;
}

template <class T>
T expect_sample(const std::string& name, Keys* asked = nullptr) {
  const auto file = kSource / "config/samples" / name;
  const auto text = internal::file_text(file);
  EXPECT_TRUE(text) << file;
  const auto loaded = parse_text<T>(text.value_or(""), name, asked);
  if (!loaded) {
    for (const auto& diagnostic : loaded.error()) {
      ADD_FAILURE() << diagnostic.text();
    }
    return T{};
  }
  return *loaded;
}

template <class T>
T expect_same_keys(const std::string& name) {
  Keys asked;
  auto loaded = expect_sample<T>(name, &asked);
  EXPECT_EQ(keys_of_sample(name), asked);
  EXPECT_EQ(keys_of_document(name), asked);
  return loaded;
}

TEST(Samples, Dataplane) {
  const auto config = expect_same_keys<DataplaneConfig>("dataplane.toml");
  EXPECT_EQ(config.port.kind, DeviceKind::kPci);
  EXPECT_EQ(config.port.mtu_bytes, 9000U);
  EXPECT_EQ(config.port.gateway_ipv4->text(), "10.0.0.254");
  EXPECT_EQ(config.eal.lcores.size(), 2U);
  EXPECT_EQ(config.eal.memory_mib(), 512U);
}

TEST(Samples, DataplaneTrial) {
  const auto config = expect_sample<DataplaneConfig>("dataplane-trial.toml");
  EXPECT_EQ(config.port.kind, DeviceKind::kAfPacket);
  EXPECT_FALSE(config.eal.hugepages);
}

TEST(Samples, DataplaneMemif) {
  const auto config = expect_sample<DataplaneConfig>("dataplane-memif.toml");
  EXPECT_EQ(config.port.kind, DeviceKind::kMemif);
  EXPECT_EQ(config.port.role, MemifRole::kServer);
}

TEST(Samples, Bridge) { EXPECT_EQ(expect_same_keys<BridgeConfig>("bridge.toml").host, "host-a"); }

TEST(Samples, Controlplane) { EXPECT_EQ(expect_same_keys<ControlplaneConfig>("controlplane.toml").listen.size(), 2U); }

TEST(Samples, Vm) {
  const auto definition = expect_same_keys<VmDefinition>("vm.toml");
  ASSERT_EQ(definition.regions.size(), 1U);
  EXPECT_EQ(definition.regions[0].bytes, 1ULL << 30);
}

TEST(Samples, Plan) { EXPECT_EQ(expect_same_keys<MigrationPlan>("plan.toml").downtime_limit, milliseconds(300)); }

TEST(Samples, Ctl) { EXPECT_EQ(expect_same_keys<CtlConfig>("godwitctl.toml").server, CtlConfig{}.server); }

TEST(Samples, EveryFileIsOneOfThese) {
  Keys names;
  for (const auto& entry : std::filesystem::directory_iterator(kSource / "config/samples")) {
    names.insert(entry.path().filename());
  }
  EXPECT_THAT(names,
              testing::ElementsAre("bridge.toml", "controlplane.toml", "dataplane-memif.toml", "dataplane-trial.toml",
                                   "dataplane.toml", "godwitctl.toml", "plan.toml", "vm.toml"));
}

TEST(Samples, OnlyTheBridgeMayPtrace) {
  for (const std::string daemon : {"dataplane", "bridge", "controlplane"}) {
    bool ptrace = false;
    const auto lines = lines_of(kSource / "config/systemd" / ("godwit-" + daemon + ".service.in"));
    EXPECT_FALSE(lines.empty());
    for (const auto& line : lines) {
      ptrace = ptrace || (!line.starts_with('#') && line.find("CAP_SYS_PTRACE") != std::string::npos);
    }
    EXPECT_EQ(ptrace, daemon == "bridge") << daemon;
  }
}

}  // namespace
}  // namespace godwit::config
