#pragma once
// Guest RAM that frames refer to instead of copying it, and who still does.
//
// Owner: the Port's Loans and whoever sends from it, by shared_ptr; the memory is let go once only Loans is left and no
// frame refers to it. Threads: lend() and end() on the control thread; a queue's count is raised on the queue's lcore,
// and lowered wherever the driver gives the buffer back; make_usable() anywhere. Failure: lend() and make_usable() say
// why frames must be copied.

#include <rte_mbuf.h>

#include <atomic>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "dataplane/port/port.h"

namespace godwit::port {

class LoanImpl final : public Loan {
 public:
  /// `device` reads the memory by DMA; null: the CPU does, in this process.
  LoanImpl(std::shared_ptr<const void> owner, MemoryPieces memory, std::uint16_t queues, rte_device* device);

  [[nodiscard]] bool usable() const override { return usable_.load(std::memory_order_acquire); }
  std::expected<void, PortError> make_usable() override;

  /// Makes `buffer` refer to `bytes`. On the queue's lcore.
  void attach(rte_mbuf* buffer, std::uint16_t queue, std::span<const std::byte> bytes) const;
  /// Nothing refers to it. Only once nobody can attach any more.
  [[nodiscard]] bool idle() const;

 private:
  /// DPDK raises a count without a lock where it is 1. So each queue has its own, and we hold one of each, always.
  struct alignas(64) Count {
    rte_mbuf_ext_shared_info info;
  };
  const std::shared_ptr<const void> owner_;
  const MemoryPieces memory_;
  const std::unique_ptr<Count[]> counts_;
  const std::uint16_t queues_;
  std::optional<DmaMemory> dma_;  // goes before the owner
  std::atomic<bool> usable_{false};
};

class Loans {
 public:
  /// `device` as of LoanImpl.
  void allow(std::uint16_t queues, rte_device* device) {
    queues_ = queues;
    device_ = device;
  }
  [[nodiscard]] bool allowed() const { return queues_ != 0; }
  std::expected<std::shared_ptr<Loan>, PortError> lend(std::shared_ptr<const void> owner, MemoryPieces memory);
  std::size_t end();
  /// Nobody sends from some memory any more, and a device has frames yet that refer to it. Any thread.
  [[nodiscard]] bool wanted_back() const { return wanted_back_.load(std::memory_order_relaxed); }

 private:
  std::uint16_t queues_ = 0;
  rte_device* device_ = nullptr;
  std::vector<std::shared_ptr<LoanImpl>> loans_;
  std::atomic<bool> wanted_back_{false};
};

}  // namespace godwit::port
