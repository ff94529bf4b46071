#pragma once
// What this host tells the control plane of itself. Stateless; blocks on /proc and, once, on the QEMU binary.

#include "config/bridge_config.h"
#include "controlplane.pb.h"
#include "dataplane.pb.h"

namespace godwit::bridge {

/// "QEMU emulator version 7.2.22 (Debian ...)", "" when it cannot be run.
std::string qemu_version_of(const std::filesystem::path& binary);

/// Of this host's memory, what VMs that run elsewhere were promised, and what of that is not used yet.
struct Lending {
  std::uint64_t lent_bytes = 0;
  std::uint64_t unfilled_bytes = 0;
};

/// `hello` and `images` are empty while the data plane is down. Free memory, of either kind, is the smaller of what the
/// host has and what guests and images leave of the data plane's budget: what dropping images would add, the control
/// plane adds itself.
controlplane::v1::HostInfo host_info(const config::BridgeConfig& config, const std::string& qemu_version,
                                     const std::optional<dataplane::v1::HelloResult>& hello,
                                     const std::optional<dataplane::v1::ListImagesResult>& images,
                                     const Lending& lending = {});

}  // namespace godwit::bridge
