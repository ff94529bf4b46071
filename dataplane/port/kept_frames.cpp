#include "dataplane/port/kept_frames.h"

#include <rte_lcore.h>
#include <rte_mbuf.h>

#include <cstring>

#include "base/check.h"

namespace godwit::port {

std::expected<KeptFrames, PortError> KeptFrames::make(const std::string& name, std::uint16_t queues,
                                                      std::uint32_t frame_bytes_max) {
  if (queues == 1) {
    return KeptFrames();  // frames go from lcore to lcore, or nowhere
  }
  const auto entries = static_cast<unsigned>((queues - 1U) * (kHandOverMax + kBurst));
  rte_mempool* const pool = rte_pktmbuf_pool_create(
      name.c_str(), entries, 0, 0, static_cast<std::uint16_t>(RTE_PKTMBUF_HEADROOM + frame_bytes_max), SOCKET_ID_ANY);
  if (pool == nullptr) {
    return std::unexpected(
        PortError{"port: " + name + ": " + std::to_string(entries) + " buffers: no memory; raise [eal] memory_mb"});
  }
  return KeptFrames(pool);
}

ReceivedFrame KeptFrames::copy(std::span<const std::byte> frame) const {
  rte_mbuf* const buffer = pool_ != nullptr ? rte_pktmbuf_alloc(pool_.get()) : nullptr;
  GW_ASSERT(buffer != nullptr);
  auto* const to = rte_pktmbuf_mtod(buffer, std::byte*);
  std::memcpy(to, frame.data(), frame.size());
  return {std::unique_ptr<rte_mbuf, ReceivedFrame::Free>(buffer), {to, frame.size()}};
}

void KeptFrames::Free::operator()(rte_mempool* pool) const { rte_mempool_free(pool); }

}  // namespace godwit::port
