// Comparison of two generation tables against the bandwidth of merely reading both, in the same run on the same two
// threads.

#include <fmt/core.h>
#include <immintrin.h>
#include <tbb/blocked_range.h>
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>

#include <algorithm>
#include <thread>

#include "dataplane/pages/compare.h"
#include "perf/benchmark.h"

namespace godwit::perf {
namespace {

using pages::Bitmap;
using pages::Generation;
using pages::GenerationTable;
using pages::Isa;

constexpr std::size_t kThreads = 2;

/// Reads both streams and nothing else; 64 entries a step.
[[gnu::target("avx512f")]] void read_avx512(const Generation* a, const Generation* b, std::size_t entries) {
  __m512i or_a = _mm512_set1_epi32(0);
  __m512i or_b = or_a;
  for (std::size_t i = 0; i < entries; i += 32) {
    or_a = _mm512_or_si512(or_a, _mm512_or_si512(_mm512_load_si512(a + i), _mm512_load_si512(a + i + 16)));
    or_b = _mm512_or_si512(or_b, _mm512_or_si512(_mm512_load_si512(b + i), _mm512_load_si512(b + i + 16)));
  }
  const __m512i both = _mm512_or_si512(or_a, or_b);
  consume(both);
}

[[gnu::target("avx2")]] void read_avx2(const Generation* a, const Generation* b, std::size_t entries) {
  __m256i or_a = _mm256_setzero_si256();
  __m256i or_b = or_a;
  for (std::size_t i = 0; i < entries; i += 8) {
    or_a = _mm256_or_si256(or_a, _mm256_load_si256(reinterpret_cast<const __m256i*>(a + i)));
    or_b = _mm256_or_si256(or_b, _mm256_load_si256(reinterpret_cast<const __m256i*>(b + i)));
  }
  const __m256i both = _mm256_or_si256(or_a, or_b);
  consume(both);
}

void read_plain(const Generation* a, const Generation* b, std::size_t entries) {
  Generation all = 0;
  for (std::size_t i = 0; i < entries; ++i) all |= a[i] | b[i];
  consume(all);
}

void read_streams(const Generation* a, const Generation* b, std::size_t entries) {
  switch (pages::isa_best()) {
    case Isa::kAvx512:
      return read_avx512(a, b, entries);
    case Isa::kAvx2:
      return read_avx2(a, b, entries);
    case Isa::kPlain:
      return read_plain(a, b, entries);
  }
}

/// Half of each table a thread.
void read_in_halves(const GenerationTable& a, const GenerationTable& b) {
  const std::size_t half = a.size() / kThreads;
  std::thread other([&] { read_streams(a.entries().data(), b.entries().data(), half); });
  read_streams(a.entries().data() + half, b.entries().data() + half, half);
  other.join();
}

/// Cut as the comparison is cut: whichever of the two readers is faster is the measure.
void read_in_blocks(const GenerationTable& a, const GenerationTable& b) {
  tbb::parallel_for(tbb::blocked_range<std::size_t>(0, a.size() / 64, 4096), [&](const auto& block) {
    const std::size_t first = block.begin() * 64;
    read_streams(a.entries().data() + first, b.entries().data() + first, block.size() * 64);
  });
}

std::expected<void, std::string> run(const Options& options, Result& result) {
  const std::uint64_t entries = (options.quick ? 1 : 64) << 20;
  const int repetitions = options.quick ? 3 : 15;
  const tbb::global_control threads(tbb::global_control::max_allowed_parallelism, kThreads);
  GenerationTable retained(entries, 3);
  const GenerationTable current(entries, 3);
  for (std::uint64_t page = 0; page < entries; page += 97) retained.set(page, 2);
  Bitmap to_send(entries);

  std::vector<std::function<void()>> functions{[&] { read_in_halves(retained, current); },
                                               [&] { read_in_blocks(retained, current); },
                                               [&] { pages::find_not_reusable(retained, current, to_send); }};
  std::vector<std::string> names{"read both, halves", "read both, blocks", "compare"};
  constexpr const char* kIsaNames[] = {"plain", "AVX2", "AVX-512"};
  for (const Isa isa : {Isa::kPlain, Isa::kAvx2, Isa::kAvx512}) {
    if (!pages::isa_supported(isa)) continue;
    functions.emplace_back([&, isa] { pages::find_not_reusable(retained, current, to_send, isa); });
    names.push_back(fmt::format("compare, {}", kIsaNames[static_cast<std::size_t>(isa)]));
  }
  const auto seconds = interleaved(repetitions, functions);
  if (to_send.count() != (entries + 96) / 97) return std::unexpected("the comparison is wrong");

  const auto bytes = static_cast<double>(entries * 2 * sizeof(Generation));
  result.row({"64 Mi entries, 2 threads", "ms", "GB/s"});
  for (std::size_t i = 0; i < names.size(); ++i) {
    result.row({names[i], fmt::format("{:.2f}", seconds[i] * 1e3), fmt::format("{:.1f}", bytes / seconds[i] / 1e9)});
  }
  const double read_seconds = std::min(seconds[0], seconds[1]);
  result.metric("entries", static_cast<double>(entries));
  result.metric("compare_ms", seconds[2] * 1e3);
  result.metric("compare_gbytes_per_s", bytes / seconds[2] / 1e9);
  result.metric("read_gbytes_per_s", bytes / read_seconds / 1e9);
  result.ratio("vs_read_bandwidth", read_seconds / seconds[2]);
  return {};
}

const Registration kRegistration{"generation", "comparison of generation tables against read bandwidth", run};

}  // namespace
}  // namespace godwit::perf
