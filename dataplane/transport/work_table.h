#pragma once
// The pages and zero runs that a lane has in hand: from next_work() until every part is acknowledged. A slot's
// part is in exactly one place: unsent (its slot is queued), in one packet in flight, or acknowledged. Owner: one lane;
// its lcore; fixed capacity.

#include <bit>
#include <cstdint>
#include <memory>

#include "base/check.h"
#include "dataplane/transport/lane.h"
#include "dataplane/transport/loss_recovery.h"

namespace godwit::transport {

struct WorkSlot {
  Work work;
  std::uint32_t queue_next = kNoSlot;
  std::uint32_t chain_next = kNoSlot;  // zero runs of one packet
  std::uint8_t unacknowledged = 0;     // bits of parts
  std::uint8_t unsent = 0;             // bits of parts, a subset of unacknowledged
  std::uint8_t lost = 0;               // bits of parts that go out again
};

class WorkTable {
 public:
  static constexpr std::uint32_t kBulkSlots = 8192;

  explicit WorkTable(std::uint32_t slots);

  [[nodiscard]] bool full() const { return free_ == kNoSlot; }
  [[nodiscard]] bool empty() const { return used_ == 0; }
  [[nodiscard]] std::uint32_t used() const { return used_; }
  /// The slot whose parts go out next, kNoSlot if none.
  [[nodiscard]] std::uint32_t front() const { return queue_head_; }
  /// That part goes out again.
  [[nodiscard]] bool front_lost() const {
    return queue_head_ != kNoSlot && (slots_[queue_head_].lost & slots_[queue_head_].unsent) != 0;
  }
  [[nodiscard]] WorkSlot& at(std::uint32_t slot) { return slots_[slot]; }

  /// Where the next new work belongs, without a copy: a copy of what was just written in parts would wait for all
  /// stores before those, which are pages. Requires !full().
  [[nodiscard]] Work& next() {
    GW_ASSERT(!full());
    return slots_[free_].work = {};
  }
  /// Queues what next() has been set to.
  void add(std::uint8_t parts);
  /// The front's lowest unsent part, now in flight; returns its bit. The slot leaves the queue with its last part.
  std::uint8_t send_part();
  /// Parts of a packet that will not be acknowledged: they go out again.
  void on_lost(std::uint32_t slot, std::uint8_t parts);
  /// Nothing is in flight, and pages are cut into other parts from now on: each goes out as a whole again.
  void begin_again(std::uint8_t parts);
  /// True when these were the last: the slot is free then, and `done` is its work.
  [[nodiscard]] bool on_acknowledged(std::uint32_t slot, std::uint8_t parts, Work& done);

 private:
  void enqueue(std::uint32_t slot);

  std::unique_ptr<WorkSlot[]> slots_;
  std::uint32_t free_ = kNoSlot;  // linked by queue_next, last freed first: stays in cache
  std::uint32_t used_ = 0;
  std::uint32_t queue_head_ = kNoSlot;
  std::uint32_t queue_tail_ = kNoSlot;
};

}  // namespace godwit::transport
