#pragma once
// Two hosts joined by a simulated network, and a checker that knows every page's history. After each step the run has a
// verdict; the first broken rule ends it. Owner: one run of lane_sim.cpp.

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "tests/simulation/key_checker.h"
#include "tests/simulation/lane_node.h"
#include "tests/simulation/lane_scenario.h"

namespace godwit::simulation {

inline constexpr std::size_t kLines = 64;  // of 64 bytes: the grain of the checker
inline constexpr std::size_t kLineBytes = pages::kPageSize / kLines;

/// Every word of a page names the page, the life of the two hosts, and how often the guest had written the page.
struct Word {
  pages::PageNumber page;
  std::uint32_t life;
  std::uint32_t version;
  [[nodiscard]] std::uint64_t encode() const { return page << 40 | std::uint64_t{life} << 32 | version; }
  static Word decode(std::uint64_t word) {
    return {word >> 40, static_cast<std::uint32_t>(word >> 32 & 0xff), static_cast<std::uint32_t>(word)};
  }
};

/// What the source's guest holds, and what must have arrived: a version a page, raised by each write.
struct PageHistory {
  std::uint32_t version = 1;
  std::uint32_t acknowledged_version = 0;  // of the hand-out of the last acknowledged round
  std::uint32_t placed_round = 0;
  std::map<std::uint32_t, std::uint32_t> handed_in_round;  // version at the hand-out
  std::array<std::uint32_t, kLines> placed{};              // destination: version of each line
};

class LaneModel {
 public:
  LaneModel(const Scenario& scenario, std::uint64_t seed, bool trace);
  /// Runs to the end, or to the first rule that is broken; which is returned, or nothing.
  std::string run();
  [[nodiscard]] std::uint64_t trace_hash() const { return trace_hash_; }

 private:
  friend class Node;
  struct Recorded {
    std::size_t to;
    std::vector<std::byte> bytes;
  };
  [[nodiscard]] std::uint32_t flow_id(std::size_t node, std::uint32_t life) const;
  void trace(std::uint64_t value) { trace_hash_ = (trace_hash_ ^ value) * 0x100000001b3; }
  void start_life();
  bool step();
  void faults();
  void replay();
  void crash_and_restart();
  void begin_round();
  void transmit(std::size_t from, std::uint16_t lane, std::span<const std::byte> datagram);
  [[nodiscard]] std::size_t lane_of(pages::PageNumber page) const { return page < scenario_.priority_pages ? 0 : 1; }
  [[nodiscard]] bool round_over() const;
  void place(const transport::Work& work, std::uint32_t offset, std::span<const std::byte> bytes);
  void acknowledged(const transport::Work& work);
  [[nodiscard]] bool finished() const;
  void check_end();
  void print_state();

  const Scenario scenario_;
  const bool trace_;
  Random random_;
  Network network_;
  Verdict verdict_;
  KeyChecker keys_;
  std::array<std::size_t, 2> links_{};  // [i]: from node i
  std::array<std::unique_ptr<Node>, 2> nodes_;
  std::uint32_t life_ = 0;
  std::vector<PageHistory> history_;
  std::array<std::deque<transport::Work>, kLanes> to_send_;  // of the round under way
  std::array<std::set<pages::PageNumber>, kLanes> in_hand_;  // works that a lane has, by their first page
  std::uint32_t round_ = 0;
  std::vector<Recorded> recorded_;
  Instant now_{1'000'000'000};
  Instant life_began_{}, crash_at_ = kNever, crashed_at_ = kNever, told_at_ = kNever;
  bool healed_ = false;
  Instant print_at_{};
  std::uint64_t trace_hash_ = 0xcbf29ce484222325;
};

}  // namespace godwit::simulation
