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
#include "tests/simulation/faults.h"
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
  transport::Cipher cipher = transport::Cipher::kAes128Gcm;
  std::uint32_t tear_ppm = 0;       // of packets in clear text: the guest writes between tag and sending
  std::array<LinkConfig, 2> links;  // of every lane, from the source and back
  // ---- faults beside those of the links, until faults_end ----
  Duration faults_end{};
  std::uint32_t pause_ppm = 0;                 // an end stops for 1 to 50 ms, at one of the steps
  std::uint32_t stop_reading_ppm = 0;          // the same, but it still sends
  std::uint32_t replay_ppm = 0;                // a recorded datagram comes again, perhaps one of an earlier attempt
  bool lane_dead = false;                      // nothing passes on the last bulk lane
  bool mtu_shrinks = false;                    // for good, from some moment on
  std::uint32_t narrow_datagram_bytes = 1472;  // to so much
  Duration shrinks_after{};
  // ---- post-copy ----
  bool can_page = false;
  Duration switch_after{};  // 0: nobody asks for it
  std::uint32_t vcpus = 1;
  std::uint32_t breaks = 0;         // connections cut and ends killed while the guest runs at the destination
  std::uint32_t refuse_one_in = 0;  // pages are not placed for want of memory
  bool split = false;               // page stores have some of it, and keep that
};

/// A datagram that somebody has kept.
struct Recorded {
  bool to_destination = false;
  std::size_t lane = 0;
  std::vector<std::byte> bytes;
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
  bool pulled = false;  // committed, and moved by post-copy to its end
  bool source_killed = false, destination_killed = false;
  std::string source_failure, destination_failure;
  transfer::Stats stats;
  std::uint32_t epoch_next = 0;
  pages::GenerationTable destination_table;
  pages::Bitmap left_to_stores;  // pulled: the source's memory has nothing of these
  std::string violation;         // the rule that was broken, and how: the simulation has found a bug
  std::uint64_t trace_hash = 0;
};

/// `recorded` is of earlier attempts too; this one adds its own.
[[nodiscard]] AttemptResult run_attempt(AttemptInput input, const Script& script, Random& random,
                                        std::vector<Recorded>& recorded, bool trace);

}  // namespace godwit::simulation
