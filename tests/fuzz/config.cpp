// Configuration files. Input: one byte (which kind of file), the text.
// Properties: a mistake is one printable line with its place, in the order of lines; reading twice says the same; a
// right file stays right with a comment behind it, and becomes wrong, by that key alone, with a key that nobody knows.

#include <algorithm>
#include <fstream>
#include <iterator>

#include "config/bridge_config.h"
#include "config/controlplane_config.h"
#include "config/ctl_config.h"
#include "config/dataplane_config.h"
#include "config/migration_plan.h"
#include "config/reader.h"
#include "config/vm_definition.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

using config::Diagnostics;

template <class T>
Diagnostics mistakes(std::string_view text) {
  const auto loaded = config::parse_text<T>(text, "file.toml");
  return loaded ? Diagnostics{} : loaded.error();
}

/// What each header promises of a loaded value, in short.
void check(const config::DataplaneConfig& config) {
  FUZZ_CHECK(!config.memory_dirs.empty() && !config.port.addresses.empty());
  FUZZ_CHECK(config.port.mtu_bytes >= config::kMtuBytesMin && config.port.mtu_bytes <= config::kMtuBytesMax);
  FUZZ_CHECK(config.port.queues >= 1 && config.transport.bulk_lanes >= 1 && config.port.udp_port != 0);
  FUZZ_CHECK(config.eal.memory_bytes % (1U << 20) == 0);
  for (const auto& lcore : config.eal.lcores) {
    FUZZ_CHECK(!lcore.cpus.empty() && std::ranges::is_sorted(lcore.cpus));
  }
}
void check(const config::VmDefinition& config) {
  FUZZ_CHECK(!config.name.empty() && config.name.find('/') == std::string::npos && config.name.front() != '.');
  FUZZ_CHECK(!config.uuid.is_nil() && !config.regions.empty() && config.vcpus > 0);
  for (const auto& region : config.regions) {
    FUZZ_CHECK(region.bytes > 0 && region.bytes % 4096 == 0 && !region.name.empty());
  }
}
void check(const config::MigrationPlan& config) { FUZZ_CHECK(!config.vm.empty() && !config.destination.empty()); }
void check(const config::ControlplaneConfig& config) { FUZZ_CHECK(!config.listen.empty()); }
void check(const config::BridgeConfig& config) { FUZZ_CHECK(!config.host.empty() && !config.controlplane.empty()); }
void check(const config::CtlConfig& config) { FUZZ_CHECK(!config.server.empty()); }

void check_diagnostics(const Diagnostics& diagnostics) {
  std::uint32_t line = 0;
  for (const auto& diagnostic : diagnostics) {
    FUZZ_CHECK(!diagnostic.message.empty() && diagnostic.file == "file.toml" && diagnostic.line >= line);
    for (const char c : diagnostic.text()) {
      FUZZ_CHECK(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
    }
    line = diagnostic.line;
  }
}

template <class T>
void check_file(std::string_view text) {
  const auto loaded = config::parse_text<T>(text, "file.toml");
  const Diagnostics again = mistakes<T>(text);
  if (!loaded) {
    FUZZ_CHECK(!loaded.error().empty());
    check_diagnostics(loaded.error());
    FUZZ_CHECK(std::ranges::equal(loaded.error(), again, {}, &config::Diagnostic::text, &config::Diagnostic::text));
    return;
  }
  check(*loaded);
  FUZZ_CHECK(again.empty());
  const std::string ended = std::string(text) + "\n";
  FUZZ_CHECK(mistakes<T>(ended + "# a comment").empty());
  const Diagnostics unknown = mistakes<T>(ended + "[godwit_has_no_such_table]\n");
  FUZZ_CHECK(unknown.size() == 1 && unknown[0].key == "godwit_has_no_such_table");
}

constexpr std::array kSamples = {"dataplane.toml", "bridge.toml", "controlplane.toml",
                                 "godwitctl.toml", "vm.toml",     "plan.toml"};

}  // namespace

void run(Bytes bytes) {
  Input input(bytes);
  const std::uint32_t kind = input.number<std::uint8_t>() % kSamples.size();
  const std::string_view text = as_text(input.rest());
  switch (kind) {
    case 0:
      return check_file<config::DataplaneConfig>(text);
    case 1:
      return check_file<config::BridgeConfig>(text);
    case 2:
      return check_file<config::ControlplaneConfig>(text);
    case 3:
      return check_file<config::CtlConfig>(text);
    case 4:
      return check_file<config::VmDefinition>(text);
    default:
      return check_file<config::MigrationPlan>(text);
  }
}

std::vector<Seed> seeds() {
  std::vector<Seed> out;
  for (std::uint8_t kind = 0; kind < kSamples.size(); ++kind) {
    std::ifstream file(std::string(GODWIT_SAMPLES) + "/" + kSamples[kind]);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    FUZZ_CHECK(!text.empty());
    out.push_back({kSamples[kind], Output().number(kind).text(text).take()});
  }
  return out;
}

}  // namespace godwit::fuzz
