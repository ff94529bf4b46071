#pragma once
// Which pages a host that kept an old image still needs: the comparison of two generation tables.
//
// Pure. Bound by memory bandwidth: AVX-512, AVX2 or plain, chosen at run time; large tables are cut into blocks for
// oneTBB's threads, small ones stay on the caller's. Both tables and the result have the same size (ours to ensure:
// asserted).

#include <cstdint>

#include "dataplane/pages/bitmap.h"
#include "dataplane/pages/generation_table.h"

namespace godwit::pages {

/// The instructions that a kernel uses, in rising order of demand.
enum class Isa : std::uint8_t { kPlain, kAvx2, kAvx512 };

[[nodiscard]] bool isa_supported(Isa isa);
/// The best that this CPU has.
[[nodiscard]] Isa isa_best();

/// A page is reusable if its generation is the same in both tables and known. One rule, in one place.
[[nodiscard]] constexpr bool reusable(Generation retained, Generation current) {
  return retained == current && retained != kUnknownGeneration;
}

/// Sets in `out` exactly the pages that are not reusable: those to send (or, at the destination, those that are
/// missing).
void find_not_reusable(const GenerationTable& retained, const GenerationTable& current, Bitmap& out);
/// The same by given instructions (tests, benchmarks); isa_supported(isa) is required.
void find_not_reusable(const GenerationTable& retained, const GenerationTable& current, Bitmap& out, Isa isa);

}  // namespace godwit::pages
