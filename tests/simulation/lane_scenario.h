#pragma once
// What one run of the lane simulation is like: everything is drawn from its seed.

#include <array>
#include <cstdint>

#include "dataplane/transport/keys.h"
#include "dataplane/transport/lane.h"
#include "tests/simulation/faults.h"

namespace godwit::simulation {

struct Scenario {
  std::uint32_t datagram_bytes = 8972;
  std::array<std::uint32_t, 2> credit_packets{};
  std::uint64_t pages = 64;
  std::uint64_t priority_pages = 0;  // the first of them go on the priority lane
  std::uint32_t rounds = 4;
  std::uint32_t messages = 20;  // each way
  std::uint32_t lives = 1;      // how often the two hosts meet; all but the last end with a crash
  bool same_flow_ids = false;   // in each life: only the secret tells them apart
  std::array<LinkConfig, 2> links;
  Duration base_rtt{};
  transport::Cipher cipher = transport::Cipher::kNone;
  transport::KeyLimits key_limits;
  // ---- faults beside those of the links, until faults_end ----
  Duration faults_end{};
  std::uint32_t pause_ppm = 0;         // a node stops for 1 to 50 ms, at one of its turns
  std::uint32_t stop_reading_ppm = 0;  // the same, but it still sends
  std::uint32_t replay_ppm = 0;        // a recorded datagram comes again, as it was or aimed elsewhere
  std::uint32_t write_ppm = 0;         // the guest writes a page
  bool in_place = false;               // in clear text pages are sent from where they lie
  bool compares_content = false;       // the source must know what left by its hash
  std::uint32_t tear_ppm = 0;          // such a packet's page is written before it is sent; after the faults too
  std::array<std::size_t, 2> inbox_datagrams_max{};  // receive ring: more are dropped
  std::array<std::size_t, 2> burst_datagrams{};      // that a node handles in a turn
  bool blackhole = false;                            // nothing passes, from some moment on
  bool lane_dead = false;                            // the same for the bulk lane alone
  bool mtu_shrinks = false;                          // from some moment on; also after the faults
  std::uint32_t narrow_datagram_bytes = 1472;        // to so much
  bool mtu_heals = false;                            // when the faults end; else never
  transport::PathMtuTimers path_mtu;
  Duration shrinks_after{}, blackhole_after{}, crash_after{};
  std::size_t crashes = 0;     // which node
  bool crash_is_told = false;  // the control plane tells the survivor; else it must notice by itself
};

enum class Size : std::uint8_t { kSmall, kLarge };
[[nodiscard]] Scenario draw_scenario(Random& random, Size size);

/// Of lanes in the simulation.
inline constexpr Duration kPeerTimeout = milliseconds(3000);

}  // namespace godwit::simulation
