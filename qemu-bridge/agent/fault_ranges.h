#pragma once
// How many userfaultfds a VM gets where pages may be missing, and which pages each serves. Pure.

#include <cstdint>
#include <span>
#include <vector>

#include "qemu-bridge/agent/journal.h"

namespace godwit::bridge {

// One userfaultfd serves about 200,000 faults a second, less with many vCPUs, as all of them queue at its one wait
// queue (measured for docs/architecture.md's design). Eight vCPUs that each fault anew after a round trip of 40 us make
// that many.
inline constexpr std::uint32_t kVcpusPerUserfaultfd = 8;
// Waking and write-protecting walk a descriptor's ranges under its lock: 64 GiB are 16 Mi pages.
inline constexpr std::uint64_t kPagesPerUserfaultfd = 16ULL << 20;
// With 32 regions and the pagemap they fit into one datagram of 64 descriptors.
inline constexpr std::uint64_t kUserfaultfdsMax = 16;

/// Ascending, without gaps, all pages of the regions together; each begins at the start of a region or a multiple of
/// 2 MiB after it, so that no huge page has two. The descriptors are still to be made (in_qemu -1). One range: one
/// descriptor does for all.
[[nodiscard]] std::vector<FaultDescriptor> fault_ranges(std::span<const std::uint64_t> region_bytes,
                                                        std::uint32_t vcpus);

}  // namespace godwit::bridge
