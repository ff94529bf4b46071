#pragma once
// Copies of received frames that outlive the next receive(), for ports whose frames are not in DPDK's buffers.
// Owner: a port, one a queue; copy() on the queue's lcore, what it gives may go on any. Failure: make() without memory.

#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>

#include "dataplane/port/port.h"

struct rte_mempool;

namespace godwit::port {

class KeptFrames {
 public:
  /// None can be kept.
  KeptFrames() = default;
  /// As many as `queues` lcores may have been handed and not given back.
  static std::expected<KeptFrames, PortError> make(const std::string& name, std::uint16_t queues,
                                                   std::uint32_t frame_bytes_max);
  [[nodiscard]] ReceivedFrame copy(std::span<const std::byte> frame) const;

 private:
  struct Free {
    void operator()(rte_mempool* pool) const;
  };
  explicit KeptFrames(rte_mempool* pool) : pool_(pool) {}
  std::unique_ptr<rte_mempool, Free> pool_;
};

}  // namespace godwit::port
