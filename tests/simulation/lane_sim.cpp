// Goal: whatever the network does, a lane delivers every page and message right, and finishes once the network behaves.
// Method: seeds draw faults and their rates (loss, reordering, duplicates, damage, replay, pauses, a blackhole, slow
// links); the model checks every placement and acknowledgement; after the faults stop all must finish in bounded
// virtual time. One seed: LANE_SIM_SEED=n lane-sim. Another amount: LANE_SIM_SEEDS=n lane-sim.

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tests/simulation/lane_model.h"

namespace godwit::simulation {
namespace {

constexpr std::uint64_t kSeedsDefault = 400;

std::uint64_t environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

struct Outcome {
  std::uint64_t trace_hash = 0;
  std::uint64_t key_changes = 0;
};

Outcome run_seed(std::uint64_t seed) {
  SCOPED_TRACE("replay with: LANE_SIM_SEED=" + std::to_string(seed) + " build/tests/simulation/lane-sim");
  Random random(seed);
  const Scenario scenario = draw_scenario(random);
  LaneModel model(scenario, seed);
  model.run();
  return {model.trace_hash(), model.key_changes()};
}

TEST(LaneSimulation, ManySeeds) {
  const char* const one = std::getenv("LANE_SIM_SEED");
  const std::uint64_t first = environment("LANE_SIM_SEED", 1);
  const std::uint64_t count = one != nullptr ? 1 : environment("LANE_SIM_SEEDS", kSeedsDefault);
  std::uint64_t key_changes = 0;
  for (std::uint64_t seed = first; seed < first + count && !HasFailure(); ++seed) {
    key_changes += run_seed(seed).key_changes;
  }
  EXPECT_TRUE(count < kSeedsDefault || key_changes > count) << "keys hardly ever changed";
}

TEST(LaneSimulation, SameSeedSameRun) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    EXPECT_EQ(run_seed(seed).trace_hash, run_seed(seed).trace_hash);
  }
}

}  // namespace
}  // namespace godwit::simulation
