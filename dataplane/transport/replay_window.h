#pragma once
// Which packet numbers of the peer have been received: refuses every number the second time (RFC 6479: a ring of words
// that moves with the largest number, no shifting). Owner: one lane; its lcore; no failure. check() before the tag is
// verified, set() only after.

#include <array>
#include <cstdint>

#include "base/check.h"

namespace godwit::transport {

class ReplayWindow {
 public:
  static constexpr std::uint64_t kWords = 32;
  /// At least so many numbers below the largest are remembered.
  static constexpr std::uint64_t kPacketsMin = (kWords - 1) * 64;

  enum class Verdict : std::uint8_t { kNew, kDuplicate, kTooOld };

  [[nodiscard]] Verdict check(std::uint64_t packet_number) const {
    const std::uint64_t index = packet_number / 64;
    if (index > top_) {
      return Verdict::kNew;
    }
    if (top_ - index >= kWords) {
      return Verdict::kTooOld;
    }
    return (words_[index % kWords] >> (packet_number % 64) & 1) != 0 ? Verdict::kDuplicate : Verdict::kNew;
  }

  void set(std::uint64_t packet_number) {
    GW_ASSERT(check(packet_number) == Verdict::kNew);
    const std::uint64_t index = packet_number / 64;
    if (index > top_) {
      if (index - top_ >= kWords) {
        words_.fill(0);
      } else {
        for (std::uint64_t i = top_ + 1; i <= index; ++i) {
          words_[i % kWords] = 0;
        }
      }
      top_ = index;
    }
    words_[index % kWords] |= std::uint64_t{1} << (packet_number % 64);
    if (!any_ || packet_number > largest_) {
      largest_ = packet_number;
      any_ = true;
    }
  }

  [[nodiscard]] bool any() const { return any_; }
  [[nodiscard]] std::uint64_t largest() const { return largest_; }
  /// Numbers 64 * index .. + 63 as bits; index is at most largest() / 64 and in_window().
  [[nodiscard]] std::uint64_t word(std::uint64_t index) const { return words_[index % kWords]; }
  [[nodiscard]] bool in_window(std::uint64_t index) const { return index <= top_ && top_ - index < kWords; }

 private:
  std::array<std::uint64_t, kWords> words_{};
  std::uint64_t top_ = 0;  // index of the newest word
  std::uint64_t largest_ = 0;
  bool any_ = false;
};

}  // namespace godwit::transport
