#pragma once
// XXH3 by the widest registers that the CPU has, chosen at run time. For sources only: a header of ours that includes
// it would hand the library's macros on.

#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>
// Selects AVX-512, AVX2 or SSE2 at run time; must follow xxhash.h.
#include <xxh_x86dispatch.h>

namespace godwit::pages {

/// After each hash: Debian's libxxhash returns with the upper halves of the vector registers in use, and the next SSE
/// instruction, whosever it is, waits 180 ns for them.
inline void leave_vector_registers() {
  static const bool has_avx = __builtin_cpu_supports("avx") != 0;
  if (has_avx) {
    asm volatile("vzeroupper" ::: "memory");
  }
}

}  // namespace godwit::pages
