#pragma once
// Bytes that begin with a cache line, for frames: what is aligned in them stays so in memory. Owned by one queue;
// thread: its. Throws std::bad_alloc, as any `new`.

#include <cstddef>
#include <memory>
#include <new>

namespace godwit::port {

inline constexpr std::size_t kLineBytes = 64;

struct FreeAligned {
  void operator()(std::byte* bytes) const { ::operator delete[](bytes, std::align_val_t{kLineBytes}); }
};
using AlignedBytes = std::unique_ptr<std::byte[], FreeAligned>;

[[nodiscard]] inline AlignedBytes make_aligned(std::size_t bytes) {
  return AlignedBytes(new (std::align_val_t{kLineBytes}) std::byte[bytes]);
}

}  // namespace godwit::port
