#define ALLOW_EXPERIMENTAL_API  // rte_dev_dma_map, as 22.11 has it; no other function does it for every bus

#include "dataplane/port/dma_memory.h"

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_memory.h>

#include <string>

#include "base/check.h"

namespace godwit::port {
namespace {

constexpr std::size_t kHugePageBytes = 2U << 20;

std::uint64_t address(std::span<const std::byte> bytes) { return reinterpret_cast<std::uint64_t>(bytes.data()); }
void* pointer(std::span<const std::byte> bytes) { return const_cast<std::byte*>(bytes.data()); }

std::unexpected<PortError> refused(const std::string& why) {
  return std::unexpected(PortError{"port: guest RAM cannot be sent in place: " + why});
}

}  // namespace

std::expected<void, PortError> DmaMemory::map(const MemoryPieces& memory) {
  GW_ASSERT(mapped_.empty());
  if (rte_eal_iova_mode() != RTE_IOVA_VA) {
    return refused("the device sees physical addresses (no IOMMU)");
  }
  for (const std::span<const std::byte> piece : memory) {
    if (auto done = map(piece); !done) {
      unmap();
      return done;
    }
  }
  return {};
}

std::expected<void, PortError> DmaMemory::map(std::span<const std::byte> piece) {
  // Small pages would be a mapping each, of which VFIO has 65,535.
  if (address(piece) % kHugePageBytes != 0 || piece.size() % kHugePageBytes != 0) {
    return refused("it is not in huge pages");
  }
  if (rte_extmem_register(pointer(piece), piece.size(), nullptr, 0, kHugePageBytes) != 0) {
    return refused(std::string("registering it: ") + rte_strerror(rte_errno));
  }
  if (rte_dev_dma_map(device_, pointer(piece), address(piece), piece.size()) != 0) {
    const int error = rte_errno;
    rte_extmem_unregister(pointer(piece), piece.size());
    return refused(std::string("mapping it for the device: ") + rte_strerror(error));
  }
  mapped_.push_back(piece);
  return {};
}

void DmaMemory::unmap() {
  for (const std::span<const std::byte> piece : mapped_) {
    rte_dev_dma_unmap(device_, pointer(piece), address(piece), piece.size());
    rte_extmem_unregister(pointer(piece), piece.size());
  }
  mapped_.clear();
}

}  // namespace godwit::port
