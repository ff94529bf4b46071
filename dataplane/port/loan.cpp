#define ALLOW_EXPERIMENTAL_API  // rte_dev_dma_map, as 22.11 has it; no other function does it for every bus

#include "dataplane/port/loan.h"

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_memory.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/check.h"

namespace godwit::port {
namespace {

constexpr std::size_t kHugePageBytes = 2U << 20;

/// The count never falls to zero while the loan exists.
void never_called(void* /*address*/, void* /*opaque*/) {}

std::uint64_t iova(std::span<const std::byte> bytes) { return reinterpret_cast<std::uint64_t>(bytes.data()); }

PortError refused(const std::string& why) { return {"port: guest RAM cannot be sent in place: " + why}; }

}  // namespace

LoanImpl::LoanImpl(Lent lent, std::uint16_t queues)
    : lent_(std::move(lent)), counts_(std::make_unique<Count[]>(queues)), queues_(queues) {
  for (std::uint16_t queue = 0; queue < queues; ++queue) {
    counts_[queue].info.free_cb = never_called;
    counts_[queue].info.fcb_opaque = nullptr;
    rte_mbuf_ext_refcnt_set(&counts_[queue].info, 1);
  }
}

LoanImpl::~LoanImpl() {
  for (std::size_t i = 0; i < registered_; ++i) {
    const std::span<std::byte> memory = lent_.memory[i];
    rte_dev_dma_unmap(device_, memory.data(), iova(memory), memory.size());
    rte_extmem_unregister(memory.data(), memory.size());
  }
}

std::expected<void, PortError> LoanImpl::register_for(rte_device* device) {
  device_ = device;
  if (rte_eal_iova_mode() != RTE_IOVA_VA) {
    return std::unexpected(refused("the device sees physical addresses (no IOMMU)"));
  }
  for (const std::span<std::byte> memory : lent_.memory) {
    // Small pages would be a mapping each, of which VFIO has 65,535.
    if (iova(memory) % kHugePageBytes != 0 || memory.size() % kHugePageBytes != 0) {
      return std::unexpected(refused("it is not in huge pages"));
    }
    if (rte_extmem_register(memory.data(), memory.size(), nullptr, 0, kHugePageBytes) != 0) {
      return std::unexpected(refused(std::string("registering it: ") + rte_strerror(rte_errno)));
    }
    if (rte_dev_dma_map(device, memory.data(), iova(memory), memory.size()) != 0) {
      const int error = rte_errno;
      rte_extmem_unregister(memory.data(), memory.size());
      return std::unexpected(refused(std::string("mapping it for the device: ") + rte_strerror(error)));
    }
    ++registered_;
  }
  return {};
}

void LoanImpl::attach(rte_mbuf* buffer, std::uint16_t queue, std::span<const std::byte> bytes) const {
  GW_ASSERT(queue < queues_ && bytes.size() <= UINT16_MAX);
  rte_mbuf_ext_shared_info* const info = &counts_[queue].info;
  rte_mbuf_ext_refcnt_update(info, 1);
  rte_pktmbuf_attach_extbuf(buffer, const_cast<std::byte*>(bytes.data()), iova(bytes),
                            static_cast<std::uint16_t>(bytes.size()), info);
  buffer->data_len = static_cast<std::uint16_t>(bytes.size());
}

bool LoanImpl::idle() const {
  const bool idle = std::all_of(counts_.get(), counts_.get() + queues_,
                                [](const Count& count) { return rte_mbuf_ext_refcnt_read(&count.info) == 1; });
  std::atomic_thread_fence(std::memory_order_acquire);
  return idle;
}

std::expected<std::shared_ptr<const Loan>, PortError> Loans::lend(Lent lent) {
  end();
  if (reference_ == Reference::kNever) {
    return std::unexpected(refused("the driver takes no frames in pieces, or is not known to read them at once"));
  }
  auto loan = std::make_shared<LoanImpl>(std::move(lent), queues_);
  if (reference_ == Reference::kRegistered) {
    if (auto registered = loan->register_for(device_); !registered) {
      return std::unexpected(registered.error());
    }
  }
  loans_.push_back(loan);
  return loan;
}

std::size_t Loans::end() {
  std::erase_if(loans_, [](const std::shared_ptr<const LoanImpl>& loan) {
    // Nobody else can come by it again: we are the only ones to copy it from.
    return loan.use_count() == 1 && loan->idle();
  });
  return loans_.size();
}

}  // namespace godwit::port
