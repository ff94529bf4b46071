#pragma once
// One migration attempt in simulation: real Source, Destination and Lanes over the faulty network, a guest that writes
// meanwhile, and a script drawn from the seed that stops it, cancels, kills an end, cuts the network or damages memory.
// Single thread, virtual time.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/transfer/destination.h"
#include "dataplane/transfer/source.h"
#include "tests/simulation/transfer_model.h"

namespace godwit::simulation {

/// What may happen in an attempt.
struct Script {
  enum class Disturbance : std::uint8_t {
    kNone,
    kCancelSource,
    kCancelDestination,
    kKillSource,
    kKillDestination,
    kCutNetwork,
    kGuestErrorSource,
    kGuestErrorDestination
  };
  Disturbance disturbance = Disturbance::kNone;
  Duration disturbance_after{};
  bool damage = false;  // one placement is wrong in RAM
  bool rot = false;     // one reusable page of the retained image is not what its table says
  transfer::Policy policy;
  Duration write_interval{};
  std::uint32_t bulk_lanes = 1;
  std::uint32_t lcores = 1;  // the lanes have these in turn, the first is the home lcore
  std::uint32_t datagram_bytes_max = 1472;
  LinkConfig link;
};

struct AttemptInput {
  transfer::MigrationConfig config;
  Image& source;
  std::uint32_t epoch_now = 0;
  Image& destination;
  bool has_retained = false;
};

struct AttemptResult {
  bool memory_ready = false, source_done = false;
  bool source_killed = false, destination_killed = false;
  std::string source_failure, destination_failure;
  transfer::Stats stats;
  std::uint32_t epoch_next = 0;
  pages::GenerationTable destination_table;
  std::string violation;  // of an invariant: the simulation has found a bug
};

[[nodiscard]] AttemptResult run_attempt(AttemptInput input, const Script& script, Random& random, bool trace);

}  // namespace godwit::simulation
