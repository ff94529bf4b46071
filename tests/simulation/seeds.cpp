#include "tests/simulation/seeds.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <optional>

namespace godwit::simulation {

namespace {

constexpr std::uint64_t kTwiceEvery = 100;

unsigned long long wide(std::uint64_t value) { return value; }

}  // namespace

int run_seeds(int argc, char** argv, const char* description, RunSeed run) {
  CLI::App app(description);
  std::uint64_t seeds = 1000;
  std::uint64_t first = 1;
  std::optional<std::uint64_t> seed;
  bool large = false;
  bool trace = false;
  app.add_option("--seeds", seeds, "how many");
  app.add_option("--first", first, "the first of them");
  app.add_option("--seed", seed, "only this one");
  app.add_flag("--large", large, "larger guests, more rounds, longer faults");
  app.add_flag("--trace", trace, "says what happens");
  CLI11_PARSE(app, argc, argv);
  if (seed) {
    first = *seed;
    seeds = 1;
  }
  std::uint64_t completed = 0;
  for (std::uint64_t at = first; at < first + seeds; ++at) {
    SeedResult result = run(at, large, trace);
    if (result.broken.empty() && at % kTwiceEvery == 0 && run(at, large, false).trace_hash != result.trace_hash) {
      result.broken = "repeatable: the same seed ran in two ways";
    }
    completed += result.completed;
    if (!result.broken.empty()) {
      std::printf("seed %llu: %s\nreplay: %s --seed %llu%s --trace\n", wide(at), result.broken.c_str(), argv[0],
                  wide(at), large ? " --large" : "");
      return EXIT_FAILURE;
    }
  }
  std::printf("%llu seeds, %llu completed, no rule broken\n", wide(seeds), wide(completed));
  return EXIT_SUCCESS;
}

}  // namespace godwit::simulation
