#pragma once
// Who has which Ethernet address: answers for our own addresses (ARP, IPv6 neighbour discovery), and resolves the peers
// that the data path asks for. Sans-IO: frames and the time come in, frames to send go out. One per port, on the lcore
// that receives its ARP and ND. Only addresses that resolve() was asked for are kept, so nobody outside can fill the
// table. An unanswered question is repeated, slower each time, as long as somebody wants the answer; a known answer is
// asked for again before it gets old, and used meanwhile.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/single_writer.h"
#include "base/time.h"
#include "dataplane/wire/address.h"
#include "dataplane/wire/neighbour.h"

namespace godwit::port {

struct LocalAddress {
  wire::IpAddress address;
  unsigned prefix_bits = 0;
};

struct NeighboursOptions {
  wire::MacAddress mac;
  std::vector<LocalAddress> addresses;
  std::optional<wire::IpAddress> gateway_v4;
  std::optional<wire::IpAddress> gateway_v6;
};

struct NeighboursCounters {  // any thread may read
  SingleWriter<std::uint64_t> answered, asked, learned, ignored, rejected;
};

class Neighbours {
 public:
  static constexpr std::size_t kEntriesMax = 4096;
  static constexpr std::size_t kAnswersMax = 64;
  static constexpr Duration kAskFirst = milliseconds(50);
  static constexpr Duration kAskLongest = milliseconds(1000);
  static constexpr Duration kFresh = milliseconds(30'000);
  /// After kFresh an answer is asked for again, and no longer believed after this many questions without one.
  static constexpr std::uint32_t kRefreshesMax = 10;
  static constexpr Duration kWanted = milliseconds(5000);

  explicit Neighbours(NeighboursOptions options);

  /// Our address of the peer's family; nullopt: we have none, so the peer cannot be reached.
  [[nodiscard]] std::optional<wire::IpAddress> source_for(const wire::IpAddress& peer) const;
  /// Where frames to the peer go: its own address or its gateway's; nullopt: not known yet, being asked.
  std::optional<wire::MacAddress> resolve(Instant now, const wire::IpAddress& peer);
  /// The peer has proven that our frames reach it (RFC 4861 §7.3.1), so its answer is as good as new.
  void confirm(Instant now, const wire::IpAddress& peer);
  /// An ARP or neighbour discovery frame.
  void on_frame(Instant now, std::span<const std::byte> frame);
  /// Builds the next frame to send; its length, 0: none.
  std::size_t poll_transmit(Instant now, std::span<std::byte> out);
  [[nodiscard]] Instant deadline() const;
  [[nodiscard]] bool is_local(const wire::IpAddress& address) const;
  [[nodiscard]] const NeighboursCounters& counters() const { return counters_; }

 private:
  struct Entry {
    std::optional<wire::MacAddress> mac;
    std::uint32_t asked = 0;  // questions since the last answer
    Instant ask_at{0};
    Instant wanted_until{0};
  };
  struct Answer {
    bool arp = true;
    wire::MacAddress to_mac;
    wire::IpAddress to;
    wire::IpAddress ours;
    bool solicited = true;
  };

  [[nodiscard]] wire::IpAddress next_hop(const wire::IpAddress& peer) const;
  void on_arp(Instant now, std::span<const std::byte> frame);
  void on_neighbour(Instant now, std::span<const std::byte> frame);
  void answer(Answer answer);
  void learn(Instant now, const wire::IpAddress& address, const wire::MacAddress& mac);
  std::size_t build_answer(const Answer& answer, std::span<std::byte> out) const;
  std::size_t build_question(const wire::IpAddress& address, std::span<std::byte> out) const;

  NeighboursOptions options_;
  std::map<wire::IpAddress, Entry> entries_;
  std::vector<Answer> answers_;
  Instant confirmed_at_ = kNever;  // the last confirm()
  wire::IpAddress confirmed_;
  NeighboursCounters counters_;
};

}  // namespace godwit::port
