// Goal: whatever the network and the other host do, a lane delivers every page and message right, and finishes once the
// faults stop. Method: each seed draws its own faults; the model checks every datagram, placement and acknowledgement;
// after the last fault all must finish in bounded virtual time. docs/evaluation.md lists the rules.
//
//   lane-sim [--seeds N] [--first S] [--seed S] [--large]

#include "tests/simulation/lane_model.h"
#include "tests/simulation/seeds.h"

namespace godwit::simulation {
namespace {

SeedResult run_seed(std::uint64_t seed, bool large, bool trace) {
  Random random(seed);
  const Scenario scenario = draw_scenario(random, large ? Size::kLarge : Size::kSmall);
  LaneModel model(scenario, seed, trace);
  SeedResult result;
  result.broken = model.run();
  result.trace_hash = model.trace_hash();
  result.completed = scenario.lives;
  return result;
}

}  // namespace
}  // namespace godwit::simulation

int main(int argc, char** argv) {
  return godwit::simulation::run_seeds(argc, argv, "Two lanes between two hosts over a faulty network.",
                                       godwit::simulation::run_seed);
}
