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

LoanImpl::LoanImpl(std::shared_ptr<const void> owner, MemoryPieces memory, std::uint16_t queues, rte_device* device)
    : owner_(std::move(owner)),
      memory_(std::move(memory)),
      counts_(std::make_unique<Count[]>(queues)),
      queues_(queues) {
  if (device != nullptr) {
    dma_.emplace(device);
  }
  for (std::uint16_t queue = 0; queue < queues; ++queue) {
    counts_[queue].info.free_cb = never_called;
    counts_[queue].info.fcb_opaque = nullptr;
    rte_mbuf_ext_refcnt_set(&counts_[queue].info, 1);
  }
}

std::expected<void, PortError> LoanImpl::make_usable() {
  if (dma_) {
    if (auto mapped = dma_->map(memory_); !mapped) {
      return mapped;
    }
  }
  usable_.store(true, std::memory_order_release);
  return {};
}

void LoanImpl::attach(rte_mbuf* buffer, std::uint16_t queue, std::span<const std::byte> bytes) const {
  GW_ASSERT(queue < queues_ && bytes.size() <= UINT16_MAX && usable());
  rte_mbuf_ext_shared_info* const info = &counts_[queue].info;
  rte_mbuf_ext_refcnt_update(info, 1);
  rte_pktmbuf_attach_extbuf(buffer, const_cast<std::byte*>(bytes.data()), reinterpret_cast<rte_iova_t>(bytes.data()),
                            static_cast<std::uint16_t>(bytes.size()), info);
  buffer->data_len = static_cast<std::uint16_t>(bytes.size());
}

bool LoanImpl::idle() const {
  const bool idle = std::all_of(counts_.get(), counts_.get() + queues_,
                                [](const Count& count) { return rte_mbuf_ext_refcnt_read(&count.info) == 1; });
  std::atomic_thread_fence(std::memory_order_acquire);
  return idle;
}

std::expected<std::shared_ptr<Loan>, PortError> Loans::lend(std::shared_ptr<const void> owner, MemoryPieces memory) {
  end();
  if (!allowed()) {
    return std::unexpected(PortError{"port: this driver is given copies of guest RAM"});
  }
  return loans_.emplace_back(std::make_shared<LoanImpl>(std::move(owner), std::move(memory), queues_, device_));
}

std::size_t Loans::end() {
  // Nobody else can come by one again that only we have: we are the only ones to copy it from.
  std::erase_if(loans_, [](const auto& loan) { return loan.use_count() == 1 && loan->idle(); });
  wanted_back_ = device_ != nullptr && std::ranges::any_of(loans_, [](const auto& l) { return l.use_count() == 1; });
  return loans_.size();
}

}  // namespace godwit::port
