#pragma once
// A model of VMs that travel between hosts which keep what they had, run against an oracle that knows every page's
// content.
//
// What decides is real: GenerationTable, find_not_reusable, the table codec. What is modelled: RAM (a version number a
// page), the tracker (a set of written pages), the two ends of a migration following docs/architecture.md
// ("Generations, exactly"). One seed is one life of a VM; the same seed is the same life. Pure.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace godwit::simulation {

/// A rule left out. The simulation must find a seed that each of them breaks.
enum class Mutation : std::uint8_t {
  kNone,
  kWithoutEpochRaise,     // every scan of a visit gives the visit's epoch, attempts and rounds alike
  kWithoutRoundRaise,     // an attempt raises the epoch, its rounds do not
  kUnknownIsEqual,        // two unknown generations are taken for the same
  kBalloonNotCounted,     // memory given back is not in the written set
  kGenerationWhenNamed,   // the destination sets a page's generation when it is announced, not when it is placed
  kImageIdIgnored,        // an image of before a cold boot is reused
  kStrayWriteTakesEpoch,  // what the source's QEMU writes after its last scan gets the next epoch, which the next visit
                          // uses too
  kHistoryLostIgnored,    // after a crash that lost the written set, tracking just goes on
  kCount,
};

[[nodiscard]] std::string_view name_of(Mutation mutation);
[[nodiscard]] std::optional<Mutation> mutation_named(std::string_view name);

struct Totals {
  std::uint64_t moves = 0, aborts = 0, pages_sent = 0, pages_reused = 0;
};

/// Lives one life. What was violated, or nullopt. Adds to `totals`.
[[nodiscard]] std::optional<std::string> simulate(std::uint64_t seed, Mutation mutation, Totals& totals);

}  // namespace godwit::simulation
