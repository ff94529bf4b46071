#pragma once
// The RAM files of a VM on this host, and whether there is room for them. Stateless; blocking; any thread, one caller a
// VM. Sizes in bytes. A refusal is one line: what is short, how much, what to do.

#include <expected>
#include <string>

#include "config/vm_definition.h"
#include "qemu-bridge/agent/qemu_arguments.h"
#include "qemu-bridge/agent/qemu_process.h"

namespace godwit::bridge {

struct HostMemory {
  std::uint64_t total_bytes = 0;  // that guests on tmpfs may use
  std::uint64_t free_bytes = 0;
  std::uint64_t hugepages_free_bytes = 0;
};
HostMemory host_memory(const HostPaths& paths, std::uint64_t promised_bytes);

/// Room that is looked for.
struct RoomQuestion {
  const config::VmDefinition& definition;
  const HostPaths& paths;
  std::uint64_t budget_bytes = 0;    // of a VM that is split from its first moment here; 0: all of it is to be here
  std::uint64_t promised_bytes = 0;  // of the free memory, what is lent to others and not used yet
};
/// What the regions still need beyond what their present files hold, and this host has not free. 0: all fits.
std::uint64_t bytes_short(const RoomQuestion& question);

/// The same as a refusal.
std::expected<void, std::string> check_room(const RoomQuestion& question);

/// kKeep: a file of the right size stays as it is (a retained image); others are made anew.
enum class OldFiles { kKeep, kReplace };

/// Makes every region's file, of its size, for QEMU's user alone.
std::expected<void, std::string> make_ram_files(const config::VmDefinition& definition, const HostPaths& paths,
                                                const std::optional<UserIds>& user, OldFiles old_files);
void remove_ram_files(const config::VmDefinition& definition, const HostPaths& paths);

/// The VM's run directory, for QEMU's user alone.
std::expected<void, std::string> make_run_dir(const HostPaths& paths, const std::optional<UserIds>& user);

}  // namespace godwit::bridge
