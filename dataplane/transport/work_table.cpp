#include "dataplane/transport/work_table.h"

namespace godwit::transport {

WorkTable::WorkTable(std::uint32_t slots) : slots_(std::make_unique<WorkSlot[]>(slots)) {
  for (std::uint32_t slot = slots; slot-- > 0;) {
    slots_[slot].queue_next = free_;
    free_ = slot;
  }
}

void WorkTable::add(std::uint8_t parts) {
  GW_ASSERT(!full() && parts != 0);
  const std::uint32_t slot = free_;
  WorkSlot& added = slots_[slot];
  free_ = added.queue_next;
  ++used_;
  added.chain_next = kNoSlot;
  added.unacknowledged = added.unsent = parts;
  added.lost = 0;
  enqueue(slot);
}

void WorkTable::enqueue(std::uint32_t slot) {
  slots_[slot].queue_next = kNoSlot;
  if (queue_head_ == kNoSlot) {
    queue_head_ = slot;
  } else {
    slots_[queue_tail_].queue_next = slot;
  }
  queue_tail_ = slot;
}

std::uint8_t WorkTable::send_part() {
  GW_ASSERT(queue_head_ != kNoSlot);
  WorkSlot& slot = slots_[queue_head_];
  const auto part = static_cast<std::uint8_t>(1U << std::countr_zero(slot.unsent));
  slot.unsent = static_cast<std::uint8_t>(slot.unsent & ~part);
  if (slot.unsent == 0) {
    queue_head_ = slot.queue_next;
  }
  return part;
}

void WorkTable::on_lost(std::uint32_t slot, std::uint8_t parts) {
  WorkSlot& lost = slots_[slot];
  GW_ASSERT((lost.unacknowledged & parts) == parts && (lost.unsent & parts) == 0);
  const bool queued = lost.unsent != 0;
  lost.unsent = static_cast<std::uint8_t>(lost.unsent | parts);
  lost.lost = static_cast<std::uint8_t>(lost.lost | parts);
  if (!queued) {
    enqueue(slot);
  }
}

void WorkTable::begin_again(std::uint8_t parts) {
  std::uint32_t count = 0;
  for (std::uint32_t at = queue_head_; at != kNoSlot; at = slots_[at].queue_next, ++count) {
    WorkSlot& slot = slots_[at];
    if (!slot.work.zero) {
      slot.unacknowledged = slot.unsent = parts;
      slot.lost = slot.lost != 0 ? parts : std::uint8_t{0};
    }
  }
  GW_ASSERT(count == used_);
}

bool WorkTable::on_acknowledged(std::uint32_t slot, std::uint8_t parts, Work& done) {
  WorkSlot& acknowledged = slots_[slot];
  GW_ASSERT((acknowledged.unacknowledged & parts) == parts && (acknowledged.unsent & parts) == 0);
  acknowledged.unacknowledged = static_cast<std::uint8_t>(acknowledged.unacknowledged & ~parts);
  if (acknowledged.unacknowledged != 0) {
    return false;
  }
  done = acknowledged.work;
  acknowledged.queue_next = free_;
  free_ = slot;
  --used_;
  return true;
}

}  // namespace godwit::transport
