#pragma once
// One end of the lane simulation: a host's priority lane and bulk lane, its receive ring and clock, and checks of all
// that goes in and out. Owner: LaneModel.

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "dataplane/transport/lane.h"
#include "dataplane/wire/packet.h"
#include "tests/simulation/faults.h"

namespace godwit::simulation {

class LaneModel;

inline constexpr std::size_t kLanes = 2;  // priority, bulk

class Node final : public transport::LaneUser {
 public:
  Node(LaneModel& model, std::size_t index, Clock clock) : model_(model), index_(index), clock_(clock) {}
  /// New lanes, as after a restart; those of an earlier life are gone.
  void start(Instant now, std::uint32_t life);
  void crash();
  [[nodiscard]] bool alive() const { return lanes_[0] != nullptr; }

  bool next_work(std::uint16_t lane, transport::Work& out) override;
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override;
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool hash_in_tag) override;
  [[nodiscard]] bool wants_hash(pages::PageNumber page, std::uint32_t offset) const override;
  void note_sent(pages::PageNumber page, pages::PageHash hash) override { told_[page].insert(hash); }
  void on_acknowledged(const transport::Work& work) override;
  void on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override;
  void on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count) override;
  void on_message(std::span<const std::byte> message) override;

  /// The peer has placed it: a part of a page of this content, or such a page.
  void check_told(pages::PageNumber page, std::span<const std::byte> bytes);

  /// Into the receive ring, if it has room.
  void arrive(std::vector<std::byte> datagram);
  /// One turn of the poll loop; true when it wants another at once.
  bool turn(Instant now);
  [[nodiscard]] Instant wake_at(Instant now) const;
  void pause_until(Instant until) { paused_until_ = until; }
  void stop_reading_until(Instant until) { reads_from_ = until; }
  [[nodiscard]] bool done() const;
  /// It has sent something that is not acknowledged: it waits for its peer.
  [[nodiscard]] bool waits() const { return !lanes_[0]->quiet() || !lanes_[1]->quiet(); }
  [[nodiscard]] bool peer_dead(Instant now) const;
  /// When the last packet of its peer was taken in, be it only for what it acknowledges; a copy may come long after
  /// that peer's death.
  [[nodiscard]] Instant heard_at() const { return heard_at_; }
  [[nodiscard]] const transport::Lane& lane(std::size_t i) const { return *lanes_[i]; }

 private:
  struct Placement {
    std::uint32_t round;
    pages::PageNumber page;
    std::uint32_t offset;
    std::span<const std::byte> bytes;
    bool zero;
  };
  /// Of one lane's life: hashes of what was sent, by packet number, and what was accepted.
  struct Log {
    std::vector<std::uint64_t> sent;
    std::vector<bool> accepted;
    std::uint64_t largest_accepted = 0;
    bool any_accepted = false;
  };
  /// What a refused datagram may not change.
  struct Visible {
    Instant deadline;
    std::uint32_t in_flight, window;
    Duration rtt;
    bool quiet;
    bool operator==(const Visible&) const = default;
  };
  [[nodiscard]] transport::Secret secret() const;  // of this life
  [[nodiscard]] Visible visible(std::size_t lane) const;
  void receive(Instant local, std::vector<std::byte>& datagram);
  void check_received(std::size_t lane, std::span<const std::byte> datagram, std::uint64_t hash,
                      transport::Received received);
  void flush();
  void offer_messages();
  std::size_t transmit(Instant now, std::uint16_t lane);
  /// The guest writes a part of a page that is about to be sent from where it lies.
  void tear(const transport::PagesInPlace& in_place);
  [[nodiscard]] bool window_allows(std::uint16_t lane, wire::PacketType type, std::uint32_t in_flight,
                                   std::uint32_t window) const;
  void check_sent(std::uint16_t lane, std::span<const std::byte> datagram, std::uint32_t in_flight_before,
                  std::uint32_t window_before);

  LaneModel& model_;
  const std::size_t index_;
  const Clock clock_;
  std::uint32_t life_ = 0;
  std::array<std::unique_ptr<transport::Lane>, kLanes> lanes_;
  std::array<Log, kLanes> logs_;
  std::vector<std::byte> ram_;                                   // of the source: what was read in place
  std::map<pages::PageNumber, std::set<pages::PageHash>> told_;  // of what left in this life
  std::deque<std::vector<std::byte>> inbox_;
  std::vector<std::vector<std::byte>> burst_;  // valid until flush
  std::vector<Placement> placements_;
  std::uint32_t messages_sent_ = 0;
  std::uint32_t messages_received_ = 0;
  Instant heard_at_{};
  Instant paused_until_{};
  Instant reads_from_{};
};

}  // namespace godwit::simulation
