#pragma once
// The command line that simulations share: how many seeds, which, how large; a seed that fails prints the command that
// replays it. Some seeds are run twice, and must leave the same trace.

#include <cstdint>
#include <string>

namespace godwit::simulation {

struct SeedResult {
  std::string broken;  // the rule and what broke it; empty: none
  std::uint64_t trace_hash = 0;
  std::uint64_t completed = 0;  // of what the simulation is about
};

using RunSeed = SeedResult (*)(std::uint64_t seed, bool large, bool trace);

/// The exit status.
int run_seeds(int argc, char** argv, const char* description, RunSeed run);

}  // namespace godwit::simulation
