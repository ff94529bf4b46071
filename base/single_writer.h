#pragma once
// A number that one thread changes and any thread reads, possibly a moment old. Costs the writer no more than a plain
// one.

#include <atomic>

namespace godwit {

template <class T>
class SingleWriter {
 public:
  SingleWriter(T value = {}) : value_(value) {}  // implicit both ways: it stands where a plain number would
  SingleWriter(const SingleWriter& other) : value_(other.get()) {}
  SingleWriter& operator=(const SingleWriter& other) {
    set(other.get());
    return *this;
  }
  ~SingleWriter() = default;
  operator T() const { return get(); }

  [[nodiscard]] T get() const { return value_.load(std::memory_order_relaxed); }
  void set(T value) { value_.store(value, std::memory_order_relaxed); }
  SingleWriter& operator+=(T more) {
    set(get() + more);
    return *this;
  }
  SingleWriter& operator++() { return *this += 1; }

 private:
  std::atomic<T> value_;
  static_assert(std::atomic<T>::is_always_lock_free);
};

}  // namespace godwit
