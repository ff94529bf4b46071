#include "dataplane/port/packet_port.h"

#include <linux/if_packet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dataplane/port/kept_frames.h"
#include "dataplane/port/packet_queue.h"
#include "dataplane/port/packet_socket.h"

namespace godwit::port {
namespace {

// Of ours that wait for the interface: an urgent frame may have to wait for them. As many as a NIC may have.
constexpr std::uint32_t kSendFrames = 128;

class PacketPort final : public Port {
 public:
  explicit PacketPort(const PortOptions& options) : options_(options) {}

  std::expected<void, PortError> start();

  [[nodiscard]] std::array<std::uint8_t, 6> mac() const override { return mac_; }
  [[nodiscard]] Queue& queue(std::uint16_t index) override { return *queues_.at(index); }
  [[nodiscard]] std::uint32_t frame_bytes_max() const override { return options_.mtu + kEthernetHeaderBytes; }
  /// The kernel shows each lane to its owner's queue, whatever port it comes from.
  [[nodiscard]] std::optional<wire::ReceiveSpread> receive_spread(wire::IpFamily) const override { return {}; }
  [[nodiscard]] bool takes_super_frames() const override { return kernel_knows_super_frames(); }
  [[nodiscard]] PortDrops drops() const override;
  [[nodiscard]] bool link_up() const override {
    ifreq request{};
    return ask(SIOCGIFFLAGS, request) && (request.ifr_flags & IFF_UP) != 0 && (request.ifr_flags & IFF_RUNNING) != 0;
  }
  [[nodiscard]] int receive_interrupt(std::uint16_t queue) override { return queues_.at(queue)->descriptor(); }
  void enable_receive_interrupt(std::uint16_t /*queue*/, bool /*enable*/) override {}  // always
  std::expected<std::shared_ptr<Loan>, PortError> lend(std::shared_ptr<const void>, MemoryPieces) override {
    return std::unexpected(PortError{"port: af_packet copies guest RAM into memory of its own"});
  }
  std::size_t end_loans() override { return 0; }

 private:
  std::expected<UniqueFd, PortError> open_socket(Priority priority) const;
  bool ask(unsigned long what, ifreq& request) const;

  const PortOptions options_;
  std::array<std::uint8_t, 6> mac_{};
  std::vector<std::unique_ptr<PacketQueue>> queues_;
  mutable std::mutex mutex_;
  mutable std::uint64_t missed_ = 0;  // under mutex_: the kernel forgets what it has told
};

std::expected<UniqueFd, PortError> PacketPort::open_socket(Priority priority) const {
  // The kernel doubles both, for what it needs beside the frames themselves.
  return open_packet_socket(
      {.interface = options_.interface,
       .udp_port = options_.udp_port,
       .priority = priority,
       .receive_bytes = (options_.in_flight_max + static_cast<std::uint32_t>(kBurst)) * frame_bytes_max(),
       .send_bytes = kSendFrames * frame_bytes_max()});
}

bool PacketPort::ask(unsigned long what, ifreq& request) const {
  std::copy_n(options_.interface.begin(), std::min<std::size_t>(options_.interface.size(), IFNAMSIZ - 1),
              std::begin(request.ifr_name));
  return ioctl(queues_.front()->sockets().bulk.get(), what, &request) == 0;
}

std::expected<void, PortError> PacketPort::start() {
  int group = 0;
  for (std::uint16_t queue = 0; queue < options_.queues; ++queue) {
    PacketQueue::Sockets sockets;
    if (queue == 0) {
      auto urgent = open_socket(Priority::kUrgent);
      if (!urgent) {
        return std::unexpected(urgent.error());
      }
      sockets.urgent = std::move(*urgent);
    }
    auto bulk = open_socket(Priority::kBulk);
    if (!bulk) {
      return std::unexpected(bulk.error());
    }
    sockets.bulk = std::move(*bulk);
    if (options_.queues > 1) {
      const auto joined = join_packet_group(sockets.bulk, group);
      if (!joined) {
        return std::unexpected(joined.error());
      }
      group = *joined;
    }
    auto kept = KeptFrames::make("packet" + std::to_string(queue), options_.queues, frame_bytes_max());
    if (!kept) {
      return std::unexpected(kept.error());
    }
    queues_.push_back(std::make_unique<PacketQueue>(std::move(sockets), frame_bytes_max(), std::move(*kept)));
    if (queues_.back()->descriptor() < 0) {
      return std::unexpected(PortError{"port: epoll_create1: " + std::string(std::strerror(errno))});
    }
  }
  ifreq request{};
  if (!ask(SIOCGIFHWADDR, request) || request.ifr_hwaddr.sa_family != ARPHRD_ETHER) {
    return std::unexpected(PortError{"port: interface " + options_.interface + " is not an Ethernet interface"});
  }
  std::memcpy(mac_.data(), request.ifr_hwaddr.sa_data, mac_.size());
  return {};
}

PortDrops PacketPort::drops() const {
  const std::lock_guard lock(mutex_);
  PortDrops drops;
  for (const auto& queue : queues_) {
    for (const UniqueFd* socket : {&queue->sockets().urgent, &queue->sockets().bulk}) {
      tpacket_stats told{};
      socklen_t bytes = sizeof told;
      if (socket->valid() && getsockopt(socket->get(), SOL_PACKET, PACKET_STATISTICS, &told, &bytes) == 0) {
        missed_ += told.tp_drops;
      }
    }
    drops.transmit_errors += queue->transmit_errors();
  }
  drops.missed = missed_;
  return drops;
}

}  // namespace

std::expected<std::unique_ptr<Port>, PortError> open_packet_port(const PortOptions& options) {
  auto port = std::make_unique<PacketPort>(options);
  if (auto done = port->start(); !done) {
    return std::unexpected(done.error());
  }
  return port;
}

}  // namespace godwit::port
