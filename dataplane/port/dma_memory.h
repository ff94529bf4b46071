#pragma once
// Memory of ours that a device may read by DMA, registered with EAL and mapped for the device as long as this object
// is. Owner: a loan (loan.h). Thread: any, one at a time; map() pins every page, holes included, which takes up to a
// second for each 64 GiB. Failure: map() says what refuses, and then nothing is registered.

#include <cstddef>
#include <expected>
#include <span>
#include <vector>

#include "dataplane/port/environment.h"

struct rte_device;

namespace godwit::port {

using MemoryPieces = std::vector<std::span<const std::byte>>;

class DmaMemory {
 public:
  explicit DmaMemory(rte_device* device) : device_(device) {}
  /// The device must be done with it.
  ~DmaMemory() { unmap(); }
  DmaMemory(const DmaMemory&) = delete;
  DmaMemory& operator=(const DmaMemory&) = delete;

  /// Once. Each piece is of whole huge pages. The device's address of a byte is ours.
  std::expected<void, PortError> map(const MemoryPieces& memory);

 private:
  std::expected<void, PortError> map(std::span<const std::byte> piece);
  void unmap();

  rte_device* const device_;
  MemoryPieces mapped_;
};

}  // namespace godwit::port
