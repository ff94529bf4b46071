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
#include <span>
#include <vector>

#include "dataplane/port/port.h"

namespace godwit::port {

class LoanImpl final : public Loan {
 public:
  LoanImpl(std::shared_ptr<const void> owner, std::uint16_t queues);

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
  const std::unique_ptr<Count[]> counts_;
  const std::uint16_t queues_;
};

class Loans {
 public:
  void allow(std::uint16_t queues) { queues_ = queues; }
  [[nodiscard]] bool allowed() const { return queues_ != 0; }
  std::expected<std::shared_ptr<const Loan>, PortError> lend(std::shared_ptr<const void> owner);
  std::size_t end();

 private:
  std::uint16_t queues_ = 0;
  std::vector<std::shared_ptr<const LoanImpl>> loans_;
};

}  // namespace godwit::port
