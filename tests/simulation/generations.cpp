// Runs the model of generations over many seeds. Exit 0: as expected; 1: a seed broke a rule (or, with a mutation and
// --expect-caught, none did); the line printed replays it.

#include <fmt/core.h>

#include <CLI/CLI.hpp>

#include "tests/simulation/generations_model.h"

namespace {

using godwit::simulation::Mutation;

struct Arguments {
  std::uint64_t first = 1;
  std::uint64_t count = 1000;
  Mutation mutation = Mutation::kNone;
  bool expect_caught = false;
};

int run(const Arguments& arguments) {
  godwit::simulation::Totals totals;
  for (std::uint64_t seed = arguments.first; seed - arguments.first < arguments.count; ++seed) {
    const auto violation = godwit::simulation::simulate(seed, arguments.mutation, totals);
    if (!violation) continue;
    fmt::print("seed {}: {}\n", seed, *violation);
    fmt::print("replay: generations --seed {}", seed);
    if (arguments.mutation != Mutation::kNone) fmt::print(" --mutation {}", name_of(arguments.mutation));
    fmt::print("\n");
    return arguments.expect_caught ? 0 : 1;
  }
  fmt::print("{} seeds, {} moves, {} aborts, {} pages sent, {} reused: every content right\n", arguments.count,
             totals.moves, totals.aborts, totals.pages_sent, totals.pages_reused);
  if (!arguments.expect_caught) return 0;
  fmt::print("but `{}` should have been caught\n", name_of(arguments.mutation));
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  std::uint64_t one_seed = 0;
  std::string mutation;
  bool without_epoch_raise = false;
  CLI::App app("Simulates VMs that travel between hosts, against an oracle that knows every page's content.");
  const auto* seed = app.add_option("--seed", one_seed, "this seed only");
  app.add_option("--first-seed", arguments.first, "the first of --seeds");
  app.add_option("--seeds", arguments.count, "how many seeds")->excludes("--seed");
  app.add_option("--mutation", mutation, "leave out one rule, by name");
  app.add_flag("--without-epoch-raise", without_epoch_raise, "the same as --mutation without-epoch-raise")
      ->excludes("--mutation");
  app.add_flag("--expect-caught", arguments.expect_caught, "succeed if some seed finds the mutation");
  CLI11_PARSE(app, argc, argv);

  if (seed->count() != 0) {
    arguments.first = one_seed;
    arguments.count = 1;
  }
  if (without_epoch_raise) mutation = name_of(Mutation::kWithoutEpochRaise);
  if (!mutation.empty()) {
    const auto named = godwit::simulation::mutation_named(mutation);
    if (!named) {
      fmt::print(stderr, "generations: no mutation `{}`\n", mutation);
      return 2;
    }
    arguments.mutation = *named;
  }
  return run(arguments);
}
