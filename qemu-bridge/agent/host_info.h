#pragma once
// What this host tells the control plane of itself. Stateless; blocks on /proc and, once, on the QEMU binary.

#include "config/bridge_config.h"
#include "controlplane.pb.h"
#include "dataplane.pb.h"

namespace godwit::bridge {

/// "QEMU emulator version 7.2.22 (Debian ...)", "" when it cannot be run.
std::string qemu_version_of(const std::filesystem::path& binary);

/// `hello` is empty while the data plane is down; `budget_free_bytes` what its memory budget still allows.
controlplane::v1::HostInfo host_info(const config::BridgeConfig& config, const std::string& qemu_version,
                                     const std::optional<dataplane::v1::HelloResult>& hello,
                                     const std::optional<dataplane::v1::ListImagesResult>& images);

}  // namespace godwit::bridge
