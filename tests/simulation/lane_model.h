#pragma once
// Two hosts joined by a simulated network, each with a priority lane and a bulk lane, and a checker that knows every
// page's history. Every broken invariant is a gtest failure. Owner: one run of lane_sim.cpp.

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "dataplane/transport/lane.h"
#include "tests/simulation/key_checker.h"
#include "tests/simulation/network.h"

namespace godwit::simulation {

/// Drawn from the seed: every run has faults of its own kinds and rates.
struct Scenario {
  std::uint32_t datagram_bytes = 8972;
  std::uint32_t credit_packets = 256;
  std::uint64_t pages = 256;
  std::uint32_t rounds = 4;
  std::uint32_t messages = 20;   // each way
  std::uint32_t pause_ppm = 0;   // chance that a node stops for a while at one of its turns
  std::uint32_t replay_ppm = 0;  // chance that a recorded datagram comes again
  std::uint32_t write_ppm = 0;   // chance that the guest writes a page, at each turn
  transport::Cipher cipher = transport::Cipher::kNone;
  transport::KeyLimits key_limits;
  Duration faults_end = milliseconds(500);
  bool blackhole = false;  // once, for a while
  LinkConfig there;
  LinkConfig back;
};
Scenario draw_scenario(Random& random);

inline constexpr std::size_t kLines = 64;  // of 64 bytes: the grain of the checker

/// What the source's guest holds, and what must have arrived: a version a page, raised by each write.
struct PageHistory {
  std::uint32_t version = 1;
  std::uint32_t handed_version = 0;        // at the last hand-out
  std::uint32_t acknowledged_version = 0;  // handed_version of the last acknowledged round
  std::map<std::uint32_t, std::uint32_t> handed_in_round;
  std::array<std::uint32_t, kLines> placed{};  // destination: version of each line
};

class LaneModel;

/// One end. Node 0 is the source and initiator.
class Node final : public transport::LaneUser {
 public:
  Node(LaneModel& model, std::size_t index) : model_(model), index_(index) {}
  void start(Instant now);

  bool next_work(std::uint16_t lane, transport::Work& out) override;
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  void on_acknowledged(const transport::Work& work) override;
  void on_page(std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override;
  void on_zero_run(std::uint32_t round, pages::PageNumber first, std::uint64_t count) override;
  void on_message(std::span<const std::byte> message) override;

  void arrive(std::vector<std::byte> datagram) { inbox_.push_back(std::move(datagram)); }
  /// One turn of the poll loop; true when it wants another at once.
  bool turn(Instant now);
  [[nodiscard]] Instant wake_at() const;
  void pause_until(Instant until) { paused_until_ = until; }
  [[nodiscard]] bool done() const;
  [[nodiscard]] const transport::Lane& lane(std::size_t i) const { return *lanes_[i]; }

 private:
  struct Placement {
    std::uint32_t round;
    pages::PageNumber page;
    std::uint32_t offset;
    std::span<const std::byte> bytes;
    bool zero;
  };
  void receive(Instant now, std::vector<std::byte>& datagram);
  void flush();
  void place(const Placement& placement);
  void offer_messages();
  [[nodiscard]] transport::Secret secret() const;
  void check_sent(std::uint16_t lane, std::span<const std::byte> datagram) const;

  LaneModel& model_;
  std::size_t index_;
  std::array<std::unique_ptr<transport::Lane>, 2> lanes_;
  std::deque<std::vector<std::byte>> inbox_;
  std::vector<std::vector<std::byte>> burst_;  // valid until flush
  std::vector<Placement> placements_;
  std::array<std::set<std::uint64_t>, 2> accepted_;
  std::uint32_t messages_sent_ = 0;
  std::uint32_t messages_received_ = 0;
  Instant paused_until_{};
};

class LaneModel {
 public:
  LaneModel(const Scenario& scenario, std::uint64_t seed);
  /// Runs to the end, or to the first failure.
  void run();

  [[nodiscard]] Instant now() const { return now_; }
  [[nodiscard]] std::uint64_t trace_hash() const { return trace_hash_; }
  [[nodiscard]] std::uint64_t key_changes() const { return keys_.changes(); }
  void trace(std::uint64_t value) { trace_hash_ = (trace_hash_ ^ value) * 0x100000001b3; }

 private:
  friend class Node;
  bool step();
  void faults();
  void record(std::size_t link, std::span<const std::byte> datagram);
  void begin_round();
  void check_end();

  Scenario scenario_;
  Random random_;
  Network network_;
  std::array<std::size_t, 2> links_{};  // [i]: from node i
  std::array<std::unique_ptr<Node>, 2> nodes_;
  std::vector<PageHistory> history_;
  KeyChecker keys_;
  std::deque<transport::Work> to_send_;  // of the round under way
  std::uint32_t round_ = 0;
  std::vector<std::pair<std::size_t, std::vector<std::byte>>> recorded_;
  Instant now_{1'000'000};
  Instant blackhole_at_ = kNever;
  bool healed_ = false;
  std::uint64_t trace_hash_ = 0xcbf29ce484222325;
};

}  // namespace godwit::simulation
