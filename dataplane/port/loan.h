#pragma once
// Guest RAM that frames refer to instead of copying it, and who still does.
//
// Owner: the Port's Loans and whoever sends from it, by shared_ptr; the memory is let go once only Loans is left and no
// frame refers to it. Threads: lend() and end() on the control thread; a queue's count is raised on the queue's lcore,
// and lowered wherever the driver gives the buffer back. Failure: lend() says why frames must be copied.

#include <rte_mbuf.h>

#include <cstdint>
#include <expected>
#include <memory>
#include <vector>

#include "dataplane/port/port.h"

struct rte_device;

namespace godwit::port {

class LoanImpl final : public Loan {
 public:
  LoanImpl(Lent lent, std::uint16_t queues);
  ~LoanImpl() override;
  LoanImpl(const LoanImpl&) = delete;
  LoanImpl& operator=(const LoanImpl&) = delete;

  /// For the DMA of a device; undone at the end. Error: the device or the kernel refuses.
  std::expected<void, PortError> register_for(rte_device* device);
  /// Makes `buffer` refer to `bytes` of the loan. On the queue's lcore.
  void attach(rte_mbuf* buffer, std::uint16_t queue, std::span<const std::byte> bytes) const;
  /// Nothing refers to it. Only once nobody can attach any more.
  [[nodiscard]] bool idle() const;

 private:
  /// DPDK raises a count without a lock where it is 1. So each queue has its own, and we hold one of each, always.
  struct alignas(64) Count {
    rte_mbuf_ext_shared_info info;
  };
  const Lent lent_;
  const std::unique_ptr<Count[]> counts_;
  const std::uint16_t queues_;
  rte_device* device_ = nullptr;
  std::size_t registered_ = 0;  // of lent_.memory, in its order
};

/// How the frames of a driver may refer to memory.
enum class Reference : std::uint8_t {
  kNever,
  kCopied,      // the CPU reads it, in our address space
  kRegistered,  // the device does
};

class Loans {
 public:
  void set(Reference reference, rte_device* device, std::uint16_t queues) {
    reference_ = reference;
    device_ = device;
    queues_ = queues;
  }
  [[nodiscard]] bool possible() const { return reference_ != Reference::kNever; }
  std::expected<std::shared_ptr<const Loan>, PortError> lend(Lent lent);
  std::size_t end();

 private:
  Reference reference_ = Reference::kNever;
  rte_device* device_ = nullptr;
  std::uint16_t queues_ = 0;
  std::vector<std::shared_ptr<const LoanImpl>> loans_;
};

}  // namespace godwit::port
