#pragma once
// The lanes of one flow that one lcore owns: packets in, frames out, timers. And the share of a migration that an lcore
// other than its home lcore has. Both are called on that lcore alone, but for what says otherwise; the flow owns them
// and outlives their use. Failure: none of their own; lanes report through their users.

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/time.h"
#include "dataplane/daemon/figures.h"
#include "dataplane/port/port.h"
#include "dataplane/transfer/share.h"
#include "dataplane/transport/lane.h"
#include "dataplane/wire/address.h"
#include "dataplane/wire/receive_spread.h"

namespace godwit::daemon {

/// Which lcore of a daemon owns a lane, by its place in the configuration. The home lcore is the first: it has the
/// priority lane, ARP and ND; bulk lanes go round.
constexpr std::size_t lcore_of_lane(std::size_t lane, std::size_t lcores) {
  return lane == 0 ? 0 : (lane - 1) % lcores;
}

struct FlowConfig {
  std::uint32_t local_flow_id = 0;
  std::uint32_t peer_flow_id = 0;
  wire::IpAddress local;
  wire::UdpEndpoint peer;
  std::uint32_t mtu_bytes = 1500;                  // the smaller of both ends'
  std::uint16_t bulk_lanes = 1;                    // the smaller of both ends'
  std::uint16_t lcores = 1;                        // this end's
  std::optional<wire::ReceiveSpread> peer_spread;  // of what the peer's NIC receives
  bool peer_takes_super_frames = false;
  transport::Cipher cipher = transport::Cipher::kAes128Gcm;
  transport::Secret secret;  // of this flow: transport::flow_secret()
  std::uint32_t credit_packets = 256;
  Duration peer_timeout = milliseconds(3000);
  Duration base_rtt = microseconds(500);
  Duration rtt_granularity = milliseconds(2);
  std::shared_ptr<FlowFigures> figures;    // with counters for each lane
  std::shared_ptr<const port::Loan> loan;  // the guest's RAM, if frames may refer to it
  /// Source, unless it is pre-copy: what was read once this is damaged would be put before a running guest, so nothing
  /// is sent any more.
  const transfer::GuestMemory* served = nullptr;
};

/// The peer's Ethernet address: the home lcore resolves it, the others wait until it is there.
class PeerMac {
 public:
  void set(const std::optional<wire::MacAddress>& mac);
  [[nodiscard]] std::optional<wire::MacAddress> get() const;

 private:
  std::atomic<std::uint64_t> word_{0};  // 0: not known
};

class FlowLanes {
 public:
  FlowLanes(const FlowConfig& config, bool initiator);

  void add(std::uint16_t number, transport::LaneUser& user, Instant now);
  [[nodiscard]] std::size_t count() const { return lanes_.size(); }
  [[nodiscard]] std::uint16_t number(std::size_t index) const { return lanes_[index].number; }
  [[nodiscard]] transport::Lane& lane(std::size_t index) const { return *lanes_[index].lane; }

  /// `from`: Lane::on_packet.
  transport::Received on_packet(Instant now, std::uint16_t number, std::span<std::byte> datagram, const std::byte* from,
                                Duration unseen);
  void tick(Instant now);
  [[nodiscard]] Instant deadline() const;
  /// Fills the queue with what the index-th lane may send now, at most `budget` frames; how many. No `to`: what is
  /// built is lost, the lane's own timers find out that nobody is there.
  std::size_t transmit(Instant now, std::size_t index, port::Queue& queue, const wire::MacAddress& from,
                       const std::optional<wire::MacAddress>& to, std::size_t budget);

 private:
  struct Entry {
    std::uint16_t number = 0;
    std::uint16_t source_port = 0;
    std::unique_ptr<transport::Lane> lane;
  };
  const FlowConfig config_;
  const bool initiator_;
  const std::uint32_t datagram_bytes_max_;
  std::vector<Entry> lanes_;
};

class FlowShare {
 public:
  FlowShare(const FlowConfig& config, bool initiator, std::unique_ptr<transfer::Share> share,
            const std::vector<std::uint16_t>& lanes, std::size_t lcore, const PeerMac& peer_mac, Instant now);

  // ---- any thread ----
  [[nodiscard]] std::uint32_t flow_id() const { return flow_id_; }
  [[nodiscard]] const wire::UdpEndpoint& peer() const { return peer_; }
  [[nodiscard]] std::size_t lcore() const { return lcore_; }
  [[nodiscard]] const FlowLanes& lanes() const { return lanes_; }
  // ---- its lcore ----
  transport::Received on_packet(Instant now, std::uint16_t lane, std::span<std::byte> datagram, const std::byte* from,
                                Duration unseen) {
    return lanes_.on_packet(now, lane, datagram, from, unseen);
  }
  void flush() { behind_ = !share_->flush(); }
  void tick(Instant now) { lanes_.tick(now); }
  [[nodiscard]] Instant deadline() const { return lanes_.deadline(); }
  std::size_t transmit(Instant now, port::Queue& queue, const wire::MacAddress& from, std::size_t budget);
  /// True once after something was put where the home lcore should look.
  [[nodiscard]] bool take_told() { return share_->take_told(); }

 private:
  const std::uint32_t flow_id_;
  const wire::UdpEndpoint peer_;
  const std::size_t lcore_;
  const PeerMac& peer_mac_;
  std::unique_ptr<transfer::Share> share_;
  FlowLanes lanes_;
  bool behind_ = false;  // the home lcore has not fetched yet what our acknowledgements would promise
};

}  // namespace godwit::daemon
