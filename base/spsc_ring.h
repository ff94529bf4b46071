#pragma once
// A bounded queue from one thread to one other, without locks: push() on the one, pop() on the other. What was written
// before push() is seen after pop(). Full: push() refuses and leaves its argument as it was.

#include <atomic>
#include <bit>
#include <cstddef>
#include <utility>
#include <vector>

#include "base/check.h"

namespace godwit {

template <class T>
class SpscRing {
 public:
  /// A power of two.
  explicit SpscRing(std::size_t capacity) : mask_(capacity - 1), slots_(capacity) {
    GW_ASSERT(std::has_single_bit(capacity));
  }
  SpscRing(const SpscRing&) = delete;
  SpscRing& operator=(const SpscRing&) = delete;

  // ---- producer ----
  bool push(T&& value) {
    const std::size_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - head_seen_ > mask_) {
      head_seen_ = head_.load(std::memory_order_acquire);
      if (tail - head_seen_ > mask_) {
        return false;
      }
    }
    slots_[tail & mask_] = std::move(value);
    tail_.store(tail + 1, std::memory_order_release);
    return true;
  }

  // ---- consumer ----
  bool pop(T& value) {
    const std::size_t head = head_.load(std::memory_order_relaxed);
    if (head == tail_seen_) {
      tail_seen_ = tail_.load(std::memory_order_acquire);
      if (head == tail_seen_) {
        return false;
      }
    }
    value = std::move(slots_[head & mask_]);
    head_.store(head + 1, std::memory_order_release);
    return true;
  }

  /// Either side; of the other side's doing a moment old.
  [[nodiscard]] std::size_t size() const {
    const std::size_t head = head_.load(std::memory_order_acquire);
    return tail_.load(std::memory_order_acquire) - head;
  }

 private:
  static constexpr std::size_t kLine = 64;  // each side's words on a cache line of their own
  const std::size_t mask_;
  std::vector<T> slots_;
  alignas(kLine) std::atomic<std::size_t> tail_{0};
  std::size_t head_seen_ = 0;  // producer's
  alignas(kLine) std::atomic<std::size_t> head_{0};
  std::size_t tail_seen_ = 0;  // consumer's
};

}  // namespace godwit
