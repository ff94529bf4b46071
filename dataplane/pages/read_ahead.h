#pragma once
// What this thread will read next, for whoever can have it fetched into the caches beside work of its own: who stores
// pages past the caches waits for memory, and meanwhile the next frames come in. The port knows what lies next in its
// ring; between it and those stores are layers that have no use for that, so each thread has one of these.
//
// A hint. Nothing here reads the memory, so a peer may write there, and it may even be unmapped by now: to prefetch it
// does nothing then. Thread: each its own. No failure.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace godwit::pages {

class ReadAhead {
 public:
  static constexpr std::size_t kPiecesMax = 32;
  static constexpr std::size_t kLineBytes = 64;

  static ReadAhead& of_this_thread() {
    static constinit thread_local ReadAhead ahead;
    return ahead;
  }
  /// What is not taken of what was known before is forgotten.
  void clear() { next_ = count_ = 0; }
  /// Will be read after what was added before. No more than kPiecesMax are remembered, and nothing empty.
  void add(std::span<const std::byte> bytes) {
    if (bytes.empty() || count_ == pieces_.size()) {
      return;
    }
    const std::size_t before = reinterpret_cast<std::uintptr_t>(bytes.data()) % kLineBytes;
    const std::size_t lines = (before + bytes.size() + kLineBytes - 1) / kLineBytes;
    pieces_[count_++] = {bytes.data() - before, lines * kLineBytes};
  }
  /// The next lines, whole ones: `bytes` at most, of one piece; each is given once. Empty: no more is known.
  std::span<const std::byte> take(std::size_t bytes) {
    if (next_ == count_) {
      return {};
    }
    std::span<const std::byte>& piece = pieces_[next_];
    const std::span<const std::byte> taken = piece.first(std::min(bytes / kLineBytes * kLineBytes, piece.size()));
    piece = piece.subspan(taken.size());
    next_ += piece.empty() ? 1U : 0U;
    return taken;
  }

 private:
  std::array<std::span<const std::byte>, kPiecesMax> pieces_{};
  std::size_t next_ = 0;
  std::size_t count_ = 0;
};

}  // namespace godwit::pages
