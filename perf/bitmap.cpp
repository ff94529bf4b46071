// The bitmap codec against raw, varints, CRoaring and igzip: size and time, at densities of 0.01 to 50 %, random and in
// runs.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "dataplane/pages/bitmap_codec.h"
#include "perf/benchmark.h"
#include "perf/bitmap_rivals.h"

namespace godwit::perf {
namespace {

using pages::Bitmap;

constexpr double kMeanRun = 64;

/// `density` of the bits set: each for itself, or in runs of geometric length.
Bitmap make_bitmap(std::uint64_t size, double density, bool runs) {
  std::mt19937_64 random(42);
  Bitmap bitmap(size);
  const double mean_set = runs ? kMeanRun : 1 / (1 - density);
  const double mean_clear = mean_set * (1 - density) / density;
  std::geometric_distribution<std::uint64_t> set(1 / mean_set);
  std::geometric_distribution<std::uint64_t> clear(std::min(1.0, 1 / mean_clear));
  for (std::uint64_t at = clear(random); at < size; at += 1 + clear(random)) {
    const std::uint64_t count = std::min(1 + set(random), size - at);
    bitmap.set_range(at, count);
    at += count;
  }
  return bitmap;
}

using Pieces = std::vector<Bytes>;

std::size_t encode_ours(const Bitmap& bitmap, Pieces& pieces) {
  std::size_t bytes = 0;
  std::size_t used = 0;
  for (pages::PageNumber at = 0; at < bitmap.size(); ++used) {
    if (used == pieces.size()) pieces.emplace_back();
    at = pages::encode_bitmap_piece(bitmap, at, {}, pieces[used]);
    bytes += pieces[used].size();
  }
  pieces.resize(used);
  return bytes;
}

bool decode_ours(const Pieces& pieces, Bitmap& out) {
  pages::PageNumber at = 0;
  for (const auto& piece : pieces) {
    const auto next = pages::decode_bitmap_piece(piece, at, out);
    if (!next) return false;
    at = *next;
  }
  return at == out.size();
}

struct Rival {
  const char* name;
  void (*encode)(const Bitmap&, Bytes&);
};

constexpr Rival kRivals[] = {
    {"raw", encode_raw},          {"varint gaps", encode_varint_gaps},          {"varint runs", encode_varint_runs},
    {"CRoaring", encode_roaring}, {"CRoaring by runs", encode_roaring_by_runs}, {"igzip 1", encode_igzip}};

std::expected<void, std::string> measure(const std::string& name, const Bitmap& bitmap, int repetitions,
                                         Result& result) {
  Pieces pieces;
  std::size_t our_bytes = 0;
  Bitmap decoded(bitmap.size());
  bool decodes = false;
  Bytes rival_bytes[std::size(kRivals)];
  std::vector<std::function<void()>> functions{[&] { our_bytes = encode_ours(bitmap, pieces); },
                                               [&] { decodes = decode_ours(pieces, decoded); }};
  for (std::size_t i = 0; i < std::size(kRivals); ++i) {
    functions.emplace_back([&, i] { kRivals[i].encode(bitmap, rival_bytes[i]); });
  }
  const auto seconds = interleaved(repetitions, functions);
  if (!decodes || decoded != bitmap) return std::unexpected(name + ": does not decode to what was encoded");

  const auto raw_bytes = static_cast<double>(bitmap.words().size_bytes());
  const auto percent = [&](std::size_t bytes) { return 100 * static_cast<double>(bytes) / raw_bytes; };
  std::vector<std::string> row{name, fmt::format("{:.4f} {:.1f}", percent(our_bytes), seconds[0] * 1e3),
                               fmt::format("{:.1f}", seconds[1] * 1e3)};
  std::size_t best = SIZE_MAX;
  for (std::size_t i = 0; i < std::size(kRivals); ++i) {
    best = std::min(best, rival_bytes[i].size());
    row.push_back(fmt::format("{:.4f} {:.1f}", percent(rival_bytes[i].size()), seconds[i + 2] * 1e3));
  }
  result.row(std::move(row));
  // Of the two ways to build it, the one faster here.
  const double roaring_seconds = std::min(seconds[2 + 3], seconds[2 + 4]);
  result.metric("size_percent." + name, percent(our_bytes));
  result.metric("encode_ms." + name, seconds[0] * 1e3);
  result.metric("decode_ms." + name, seconds[1] * 1e3);
  result.ratio("size_vs_best." + name, static_cast<double>(our_bytes) / static_cast<double>(best));
  result.ratio("encode_speed_vs_roaring." + name, roaring_seconds / seconds[0]);
  return {};
}

std::expected<void, std::string> run(const Options& options, Result& result) {
  const std::uint64_t bits = (options.quick ? 1 : 64) << 20;
  const int repetitions = options.quick ? 1 : 5;
  constexpr std::pair<const char*, double> kDensities[] = {{"0p01", 0.0001}, {"1", 0.01}, {"10", 0.1}, {"50", 0.5}};
  std::vector<std::string> head{"% of raw, encode ms", "godwit", "decode ms"};
  for (const Rival& rival : kRivals) head.emplace_back(rival.name);
  result.row(std::move(head));
  for (const bool runs : {false, true}) {
    for (const auto& [density_name, density] : kDensities) {
      const std::string name = std::string(runs ? "runs_" : "random_") + density_name;
      if (const auto done = measure(name, make_bitmap(bits, density, runs), repetitions, result); !done) return done;
    }
  }
  return {};
}

const Registration kRegistration{"bitmap", "bitmap codec against raw, varints, CRoaring and igzip", run};

}  // namespace
}  // namespace godwit::perf
