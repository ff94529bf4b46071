#include "dataplane/port/loan.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/check.h"

namespace godwit::port {
namespace {

/// The count never falls to zero while the loan exists.
void never_called(void* /*address*/, void* /*opaque*/) {}

}  // namespace

LoanImpl::LoanImpl(std::shared_ptr<const void> owner, std::uint16_t queues)
    : owner_(std::move(owner)), counts_(std::make_unique<Count[]>(queues)), queues_(queues) {
  for (std::uint16_t queue = 0; queue < queues; ++queue) {
    counts_[queue].info.free_cb = never_called;
    counts_[queue].info.fcb_opaque = nullptr;
    rte_mbuf_ext_refcnt_set(&counts_[queue].info, 1);
  }
}

void LoanImpl::attach(rte_mbuf* buffer, std::uint16_t queue, std::span<const std::byte> bytes) const {
  GW_ASSERT(queue < queues_ && bytes.size() <= UINT16_MAX);
  rte_mbuf_ext_shared_info* const info = &counts_[queue].info;
  rte_mbuf_ext_refcnt_update(info, 1);
  rte_pktmbuf_attach_extbuf(buffer, const_cast<std::byte*>(bytes.data()), RTE_BAD_IOVA,
                            static_cast<std::uint16_t>(bytes.size()), info);
  buffer->data_len = static_cast<std::uint16_t>(bytes.size());
}

bool LoanImpl::idle() const {
  const bool idle = std::all_of(counts_.get(), counts_.get() + queues_,
                                [](const Count& count) { return rte_mbuf_ext_refcnt_read(&count.info) == 1; });
  std::atomic_thread_fence(std::memory_order_acquire);
  return idle;
}

std::expected<std::shared_ptr<const Loan>, PortError> Loans::lend(std::shared_ptr<const void> owner) {
  end();
  if (!allowed()) {
    return std::unexpected(PortError{"port: this driver is given copies of guest RAM"});
  }
  return loans_.emplace_back(std::make_shared<LoanImpl>(std::move(owner), queues_));
}

std::size_t Loans::end() {
  std::erase_if(loans_, [](const std::shared_ptr<const LoanImpl>& loan) {
    // Nobody else can come by it again: we are the only ones to copy it from.
    return loan.use_count() == 1 && loan->idle();
  });
  return loans_.size();
}

}  // namespace godwit::port
