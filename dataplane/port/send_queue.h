#pragma once
// Frames that wait for the driver: urgent ones go before all others, however long those have waited; each kind in its
// own order. Owner: one queue; its lcore; fixed capacity, no failure.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"

namespace godwit::port {

/// Urgent: the priority lane (control, demand pages), ARP and ND. No bulk frame may delay them.
enum class Priority : std::uint8_t { kUrgent, kBulk };

template <class Frame, std::size_t kEach>
class SendQueue {
 public:
  [[nodiscard]] bool has_room(Priority priority) const { return waiting(priority) < kEach; }
  [[nodiscard]] std::size_t waiting(Priority priority) const {
    return priority == Priority::kUrgent ? urgent_ : count_ - urgent_;
  }
  /// Requires has_room().
  void push(Priority priority, Frame frame) {
    GW_ASSERT(has_room(priority));
    const std::size_t at = priority == Priority::kUrgent ? urgent_++ : count_;
    std::copy_backward(frames_.data() + at, frames_.data() + count_, frames_.data() + count_ + 1);
    frames_[at] = frame;
    ++count_;
  }
  /// In the order in which they are to be sent.
  [[nodiscard]] std::span<Frame> frames() { return {frames_.data(), count_}; }
  /// The first `count` of frames() are sent.
  void pop(std::size_t count) {
    GW_ASSERT(count <= count_);
    std::copy(frames_.data() + count, frames_.data() + count_, frames_.data());
    count_ -= count;
    urgent_ -= std::min(urgent_, count);
  }
  [[nodiscard]] bool empty() const { return count_ == 0; }

 private:
  std::array<Frame, 2 * kEach> frames_{};
  std::size_t count_ = 0;
  std::size_t urgent_ = 0;  // at the front
};

}  // namespace godwit::port
