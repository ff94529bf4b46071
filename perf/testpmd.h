#pragma once
// DPDK's own testpmd as the yardstick of a path: two processes, one forwarding core each, frames of one size that
// nobody looks into. Whatever happens, the processes end here. Failure: why there is no figure.

#include <array>
#include <cstdint>
#include <expected>
#include <string>

namespace godwit::perf {

/// Rate of frames in Gbit/s: median of one-second periods at the receiver. `directory` is for the memif socket.
std::expected<double, std::string> testpmd_memif_gbps(const std::string& directory, std::uint32_t frame_bytes,
                                                      const std::array<std::string, 2>& cpus);

class VethPair;

/// The same over net_af_packet, with as many frames in its ring as our port may have waiting, between the pair's
/// namespaces.
std::expected<double, std::string> testpmd_packet_gbps(const std::string& directory, std::uint32_t frame_bytes,
                                                       const std::array<std::string, 2>& cpus, const VethPair& network,
                                                       std::uint32_t mtu);

}  // namespace godwit::perf
