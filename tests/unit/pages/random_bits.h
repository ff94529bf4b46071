#pragma once
// Inputs of the tests of pages: seeded, so that a failure repeats.

#include <random>

#include "dataplane/pages/bitmap.h"

namespace godwit::pages {

using Random = std::mt19937_64;

/// A number in [0, bound).
inline std::uint64_t below(Random& random, std::uint64_t bound) {
  return std::uniform_int_distribution<std::uint64_t>(0, bound - 1)(random);
}

/// Each bit set with this probability.
inline Bitmap random_bits(Random& random, std::uint64_t size, double density) {
  Bitmap bitmap(size);
  std::bernoulli_distribution set(density);
  for (std::uint64_t page = 0; page < size; ++page) {
    if (set(random)) bitmap.set(page);
  }
  return bitmap;
}

/// Runs of set and clear bits with these mean lengths.
inline Bitmap random_runs(Random& random, std::uint64_t size, double mean_set, double mean_clear) {
  Bitmap bitmap(size);
  std::geometric_distribution<std::uint64_t> set(1 / mean_set);
  std::geometric_distribution<std::uint64_t> clear(1 / mean_clear);
  for (std::uint64_t at = clear(random); at < size; at += 1 + clear(random)) {
    const std::uint64_t count = std::min(1 + set(random), size - at);
    bitmap.set_range(at, count);
    at += count;
  }
  return bitmap;
}

}  // namespace godwit::pages
