#pragma once
// Looks at a QEMU over QMP before anything is touched: what it is, whether godwit can move it, and, if not, the exact
// option to add. Stateless; any thread that may call QmpClient::execute(). Every refusal is one line.

#include <expected>
#include <string>
#include <vector>

#include "config/vm_definition.h"
#include "qemu-bridge/attach/ram_discovery.h"
#include "qemu-bridge/qmp/commands.h"

namespace godwit::bridge {

enum class RefusalCode {
  kQmp,              // QEMU does not answer as it should
  kNoIgnoreShared,   // no x-ignore-shared
  kBackend,          // a RAM backend that godwit cannot map: not share=on, or no file
  kUncoveredMemory,  // guest RAM that is in no backend
  kDevice,           // a device that writes guest RAM behind QEMU's page tables
  kBlocked,          // QEMU itself says that it cannot migrate
  kState,            // not in a run state in which it can be moved
  kMismatch,         // not the VM of the definition
};

struct Refusal {
  RefusalCode code = RefusalCode::kQmp;
  std::string text;
};

struct QemuFacts {
  QemuVersion version;
  std::string machine_type;  // versioned: "pc-i440fx-7.2"
  std::string run_state;
  std::string uuid;  // "" when QEMU was started without one
  bool kvm = false;
  bool has_balloon = false;
  std::uint32_t vcpus = 0;
  std::vector<MemoryBackend> backends;
  /// A block node with cache.direct=on, "" if none. Its reads reach guest RAM by DMA into pages that were pinned before
  /// and may have been armed again since: write protection does not see them, only hashes do.
  std::string direct_io_node;
};

/// How the data plane was told to track the guest, which devices plugged in later may not contradict.
struct AttachedAs {
  bool has_balloon = false;
  bool by_hashes = false;
};

/// Facts of a QEMU that can be moved, or why it cannot.
std::expected<QemuFacts, Refusal> inspect_qemu(QmpClient& qmp);

/// What may have changed since inspect_qemu(): devices, blockers, run state. Before each migration.
std::expected<void, Refusal> check_still_movable(QmpClient& qmp, const AttachedAs& attached);

/// The running QEMU is the VM that the definition describes. `machines`: to resolve aliases ("pc").
std::expected<void, Refusal> compare_with_definition(const QemuFacts& facts, const config::VmDefinition& definition,
                                                     const std::vector<MachineType>& machines);

/// The capabilities that a godwit migration needs on, and those off that would change the stream.
std::expected<void, QmpError> set_migration_capabilities(QmpClient& qmp);

/// What to do about such a node, one line.
std::string direct_io_advice(const std::string& node);

// The rules by themselves, for tables of tests.
std::expected<void, Refusal> check_backends(const std::vector<MemdevInfo>& backends, std::uint64_t guest_bytes);
std::expected<void, Refusal> check_devices(const std::vector<QomDevice>& devices, const std::string& network_info);

}  // namespace godwit::bridge
