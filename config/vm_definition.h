#pragma once
// The definition of a VM, as in config/samples/vm.toml: what any host needs to start its QEMU. Mirrors VmDefinition of
// controlplane.proto. Sizes in bytes. Loading blocks on the file; any thread. On failure every mistake of the file
// comes back.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/uuid.h"
#include "config/diagnostic.h"

namespace godwit::config {

class Reader;

enum class Backing : std::uint8_t { kTmpfs, kHugetlbfs };
enum class Accel : std::uint8_t { kAuto, kTcg, kKvm };

struct RegionDefinition {
  std::string name;         // QOM id, distinct within the VM
  std::uint64_t bytes = 0;  // multiple of the backing's page size, not 0
  Backing backing = Backing::kTmpfs;
};

struct VmDefinition {
  std::string name;  // a file name too: letters, digits, '.', '_', '-'
  Id128 uuid;        // not nil
  std::string machine;
  Accel accel = Accel::kAuto;
  std::string cpu;  // "" = QEMU's default
  std::uint32_t vcpus = 1;
  std::vector<RegionDefinition> regions;  // at least one
  std::vector<std::string> arguments;     // only ${run_dir}, ${name}, ${uuid} occur as variables
  std::string user;                       // "" = the bridge's
  std::string qemu_binary;                // "" = the host's default
  /// How much of its RAM the host that runs it may hold; sub hosts hold the rest. 0 = all of it.
  std::uint64_t resident_budget_bytes = 0;
  std::vector<std::string> sub_hosts;  // distinct; empty: the control plane chooses
};

/// QEMU and kernel touch some pages all the time: with less the guest would do little but wait.
inline constexpr std::uint64_t kResidentBudgetBytesMin = 16ULL << 20;

[[nodiscard]] Loaded<VmDefinition> load_vm_definition(const std::filesystem::path& file);
void read(Reader& reader, VmDefinition& definition);
/// resident_budget and sub_hosts, which a plan has too. Whether there is a budget.
bool read_split(Reader& reader, std::uint64_t& budget_bytes, std::vector<std::string>& sub_hosts);

[[nodiscard]] std::string_view backing_name(Backing backing);  // "tmpfs", "hugetlbfs"
[[nodiscard]] std::string_view accel_name(Accel accel);        // "auto", "tcg", "kvm"

/// Replaces ${name} by variables["name"]. A variable that is not there is left as it is: arguments of a loaded
/// definition name only known ones.
[[nodiscard]] std::string expand(std::string_view argument, const std::map<std::string, std::string>& variables);

}  // namespace godwit::config
