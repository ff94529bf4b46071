#pragma once
// The command line of a QEMU that this host starts for a VM. Pure: any thread, no system call. Nothing can fail: a
// config::VmDefinition is valid. Guest RAM is always one shared file a region, named by VM and region, unless a
// retained image has it elsewhere: then QEMU was started by someone else on its last visit.

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "config/bridge_config.h"
#include "config/vm_definition.h"

namespace godwit::bridge {

enum class StartKind { kBoot, kIncoming };

struct HostPaths {
  std::filesystem::path run_dir;  // of this VM
  std::filesystem::path memory_dir_tmpfs;
  std::filesystem::path memory_dir_hugetlbfs;
  std::filesystem::path qemu_binary;
  std::map<std::string, std::string> ram_files;  // by region; those not here are named by VM and region

  [[nodiscard]] std::filesystem::path qmp_socket() const { return run_dir / "qmp.sock"; }
  [[nodiscard]] std::filesystem::path pin_pipe() const { return run_dir / "pin"; }
  [[nodiscard]] std::filesystem::path log_file() const { return run_dir / "qemu.log"; }
};

HostPaths host_paths(const config::BridgeConfig& config, const Id128& uuid);

/// "<memory_dir>/<uuid>.<region>.ram", or where `paths` says that it is.
std::filesystem::path ram_path(const HostPaths& paths, const Id128& uuid, const config::RegionDefinition& region);

/// The argument of -qmp, by which the QEMU of a VM can be told from others.
std::string qmp_argument(const HostPaths& paths);

/// `accel` is decided (not kAuto); `machine` as -machine takes it: the definition's, or at a destination the source's
/// versioned type with the definition's options.
std::vector<std::string> qemu_arguments(const config::VmDefinition& definition, const HostPaths& paths,
                                        const std::string& machine, config::Accel accel, StartKind kind);

/// The machine options of `machine` ("q35,smm=off") with its type replaced by the versioned `type`; `type` "" keeps it.
std::string machine_of_type(const std::string& machine, const std::string& type);

}  // namespace godwit::bridge
