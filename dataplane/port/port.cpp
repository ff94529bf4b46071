#include "dataplane/port/port.h"

#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <span>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "dataplane/port/loan.h"
#include "dataplane/port/memif_port.h"
#include "dataplane/port/packet_port.h"

namespace godwit::port {
namespace {

constexpr std::uint16_t kReceiveEntries = 512;  // descriptors of a queue; vdevs ignore both
// What a NIC may have of ours is what an urgent frame waits for: 128 frames of 8 KiB are 85 us at 100 Gbit/s, and four
// bursts keep the wire busy.
constexpr std::uint16_t kTransmitEntries = 128;
constexpr std::uint16_t kCacheEntries = 256;
constexpr std::uint64_t kHashedWanted = RTE_ETH_RSS_NONFRAG_IPV4_UDP | RTE_ETH_RSS_NONFRAG_IPV6_UDP;
constexpr std::size_t kPieces = kReferencesMax + 1;  // of a frame behind its first
constexpr std::uint16_t kPieceBytes = 64;            // room of one that refers to nothing

PortError failed(const std::string& operation, int error) {
  return {"port: " + operation + ": " + rte_strerror(error < 0 ? -error : error)};
}

class QueueImpl final : public Queue {
 public:
  /// `piece_pool`: of kPieceBytes each; null: frames never refer to memory.
  QueueImpl(std::uint16_t port, std::uint16_t queue, rte_mempool* pool, rte_mempool* piece_pool,
            std::uint32_t frame_bytes_max, const Loans& loans)
      : port_(port),
        queue_(queue),
        pool_(pool),
        piece_pool_(piece_pool),
        frame_bytes_max_(frame_bytes_max),
        loans_(loans) {}
  ~QueueImpl() override {
    release_received();
    rte_pktmbuf_free_bulk(out_.frames().data(), static_cast<unsigned>(out_.frames().size()));
    rte_pktmbuf_free(next_);
    rte_pktmbuf_free_bulk(pieces_.data(), pieces_ready_ ? kPieces : 0);
  }
  QueueImpl(const QueueImpl&) = delete;
  QueueImpl& operator=(const QueueImpl&) = delete;

  std::span<const std::span<std::byte>> receive() override {
    release_received();
    in_count_ = rte_eth_rx_burst(port_, queue_, in_.data(), kBurst);
    std::size_t frames = 0;
    for (std::uint16_t i = 0; i < in_count_; ++i) {
      rte_mbuf* const mbuf = in_[i];
      ++counters_.frames_received;
      counters_.bytes_received += rte_pktmbuf_pkt_len(mbuf);
      if (mbuf->nb_segs != 1) {
        ++counters_.drops_segmented;
        continue;
      }
      buffer_of_[frames] = i;
      frames_[frames++] = {rte_pktmbuf_mtod(mbuf, std::byte*), rte_pktmbuf_data_len(mbuf)};
    }
    return {frames_.data(), frames};
  }

  ReceivedFrame keep(std::size_t index) override {
    rte_mbuf*& buffer = in_[buffer_of_[index]];
    GW_ASSERT(buffer != nullptr);
    return {std::unique_ptr<rte_mbuf, ReceivedFrame::Free>(std::exchange(buffer, nullptr)), frames_[index]};
  }

  std::span<std::byte> next_frame(Priority priority) override {
    if (!out_.has_room(priority)) {
      return {};
    }
    if (next_ == nullptr) {
      next_ = rte_pktmbuf_alloc(pool_);
      if (next_ == nullptr) {
        ++counters_.drops_no_buffer;
        return {};
      }
    }
    return {rte_pktmbuf_mtod(next_, std::byte*), frame_bytes_max_};
  }

  void commit(Priority priority, std::size_t bytes) override {
    GW_ASSERT(next_ != nullptr && bytes <= frame_bytes_max_);
    next_->data_len = static_cast<std::uint16_t>(bytes);
    next_->pkt_len = static_cast<std::uint32_t>(bytes);
    out_.push(priority, next_);
    next_ = nullptr;
  }

  bool can_refer() override {
    if (!pieces_ready_ && piece_pool_ != nullptr) {
      pieces_ready_ = rte_pktmbuf_alloc_bulk(piece_pool_, pieces_.data(), kPieces) == 0;
    }
    return pieces_ready_;
  }

  void commit_referring(Priority priority, std::size_t bytes, std::size_t tail_bytes,
                        std::span<const std::span<const std::byte>> pieces, const Loan& loan) override {
    GW_ASSERT(next_ != nullptr && pieces_ready_ && pieces.size() <= kReferencesMax);
    GW_ASSERT(tail_bytes <= bytes && bytes <= frame_bytes_max_ && tail_bytes <= kPieceBytes);
    pieces_ready_ = false;
    next_->data_len = static_cast<std::uint16_t>(bytes - tail_bytes);
    next_->pkt_len = static_cast<std::uint32_t>(bytes);
    rte_mbuf* last = next_;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      static_cast<const LoanImpl&>(loan).attach(pieces_[i], queue_, pieces[i]);
      next_->pkt_len += static_cast<std::uint32_t>(pieces[i].size());
      last = last->next = pieces_[i];
    }
    rte_mbuf* const tail = pieces_[kReferencesMax];
    std::memcpy(rte_pktmbuf_mtod(tail, std::byte*), rte_pktmbuf_mtod(next_, std::byte*) + next_->data_len, tail_bytes);
    tail->data_len = static_cast<std::uint16_t>(tail_bytes);
    last->next = tail;
    next_->nb_segs = static_cast<std::uint16_t>(pieces.size() + 2);
    rte_pktmbuf_free_bulk(pieces_.data() + pieces.size(), static_cast<unsigned>(kReferencesMax - pieces.size()));
    GW_ASSERT(next_->pkt_len <= frame_bytes_max_);
    out_.push(priority, std::exchange(next_, nullptr));
  }

  bool flush() override {
    if (loans_.wanted_back()) {
      rte_eth_tx_done_cleanup(port_, queue_, 0);  // else a NIC keeps what it has sent until it sends more
    }
    if (out_.empty()) {
      return true;
    }
    send();
    counters_.transmit_waiting_frames.set(out_.frames().size());
    counters_.transmit_stalls += out_.empty() ? 0U : 1U;
    return out_.empty();
  }

  [[nodiscard]] const QueueCounters& counters() const override { return counters_; }

 private:
  void send() {
    const std::span<rte_mbuf*> frames = out_.frames();
    std::array<std::uint32_t, 2 * kBurst> bytes{};
    std::transform(frames.begin(), frames.end(), bytes.begin(), [](const rte_mbuf* frame) { return frame->pkt_len; });
    const std::uint16_t sent =
        rte_eth_tx_burst(port_, queue_, frames.data(), static_cast<std::uint16_t>(frames.size()));
    for (std::uint16_t i = 0; i < sent; ++i) {
      counters_.bytes_sent += bytes[i];
    }
    counters_.frames_sent += sent;
    out_.pop(sent);
  }
  void release_received() {
    rte_pktmbuf_free_bulk(in_.data(), in_count_);
    in_count_ = 0;
  }

  const std::uint16_t port_;
  const std::uint16_t queue_;
  rte_mempool* const pool_;
  rte_mempool* const piece_pool_;
  const std::uint32_t frame_bytes_max_;
  const Loans& loans_;
  std::uint16_t in_count_ = 0;
  rte_mbuf* next_ = nullptr;
  bool pieces_ready_ = false;
  std::array<rte_mbuf*, kPieces> pieces_{};  // for the next frame that refers to memory: what it refers to, its tail
  std::array<rte_mbuf*, kBurst> in_{};
  SendQueue<rte_mbuf*, kBurst> out_;
  std::array<std::span<std::byte>, kBurst> frames_{};
  std::array<std::uint16_t, kBurst> buffer_of_{};  // each frame's place in in_
  QueueCounters counters_;
};

class PortImpl final : public Port {
 public:
  PortImpl(const PortOptions& options, std::uint16_t id) : options_(options), id_(id) {}
  ~PortImpl() override {
    if (started_) {
      rte_eth_dev_stop(id_);
    }
    queues_.clear();
    rte_eth_dev_close(id_);
    loans_.end();
    for (rte_mempool* pool : pools_) {
      rte_mempool_free(pool);
    }
  }
  PortImpl(const PortImpl&) = delete;
  PortImpl& operator=(const PortImpl&) = delete;

  std::expected<void, PortError> start();

  [[nodiscard]] std::array<std::uint8_t, 6> mac() const override { return mac_; }
  [[nodiscard]] Queue& queue(std::uint16_t index) override {
    GW_ASSERT(index < queues_.size());
    return *queues_[index];
  }
  [[nodiscard]] std::uint32_t frame_bytes_max() const override { return options_.mtu + kEthernetHeaderBytes; }
  [[nodiscard]] std::optional<wire::ReceiveSpread> receive_spread(wire::IpFamily family) const override {
    const std::uint64_t wanted =
        family == wire::IpFamily::kV4 ? RTE_ETH_RSS_NONFRAG_IPV4_UDP : RTE_ETH_RSS_NONFRAG_IPV6_UDP;
    return (hashed_ & wanted) != 0 ? std::optional(spread_) : std::nullopt;
  }
  std::expected<std::shared_ptr<Loan>, PortError> lend(std::shared_ptr<const void> owner,
                                                       MemoryPieces memory) override {
    return loans_.lend(std::move(owner), std::move(memory));
  }
  std::size_t end_loans() override { return loans_.end(); }
  [[nodiscard]] PortDrops drops() const override {
    const std::lock_guard lock(control_mutex_);
    rte_eth_stats stats{};
    if (rte_eth_stats_get(id_, &stats) != 0) {
      return {};
    }
    return {
        .missed = stats.imissed + stats.rx_nombuf, .receive_errors = stats.ierrors, .transmit_errors = stats.oerrors};
  }
  [[nodiscard]] bool link_up() const override {
    const std::lock_guard lock(control_mutex_);
    rte_eth_link link{};
    return rte_eth_link_get_nowait(id_, &link) == 0 && link.link_status == RTE_ETH_LINK_UP;
  }
  [[nodiscard]] int receive_interrupt(std::uint16_t queue) override {
    return interrupts_ ? rte_eth_dev_rx_intr_ctl_q_get_fd(id_, queue) : -1;
  }
  void enable_receive_interrupt(std::uint16_t queue, bool enable) override {
    if (interrupts_) {
      (enable ? rte_eth_dev_rx_intr_enable : rte_eth_dev_rx_intr_disable)(id_, queue);
    }
  }

 private:
  std::expected<void, PortError> configure();
  std::expected<void, PortError> set_up_queue(std::uint16_t queue);
  void learn_spread();

  const PortOptions options_;
  const std::uint16_t id_;
  Loans loans_;
  bool started_ = false;
  bool interrupts_ = false;
  std::uint64_t hashed_ = 0;  // RTE_ETH_RSS_*: spread_ says how
  wire::ReceiveSpread spread_;
  // Drivers count and look at links without a lock of their own (rte_ethdev.h: control functions are not thread-safe).
  mutable std::mutex control_mutex_;
  std::array<std::uint8_t, 6> mac_{};
  std::vector<rte_mempool*> pools_;
  std::vector<std::unique_ptr<QueueImpl>> queues_;
};

/// Drivers that read a frame's memory with the CPU, in this process, as their source says; and NICs, once the memory is
/// mapped for their DMA.
bool reads_frames_in_pieces(const rte_eth_dev_info& info, bool nic) {
  const std::string_view driver = info.driver_name;
  const std::uint16_t segments_max = info.tx_desc_lim.nb_mtu_seg_max;  // 0: not told
  return (info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS) != 0 && (segments_max == 0 || segments_max > kPieces) &&
         (nic || driver == "net_ring");
}

std::expected<void, PortError> PortImpl::configure() {
  rte_eth_dev_info info{};
  if (const int rc = rte_eth_dev_info_get(id_, &info); rc != 0) {
    return std::unexpected(failed("reading device information", rc));
  }
  if (options_.queues > std::min(info.max_rx_queues, info.max_tx_queues)) {
    return std::unexpected(PortError{"port: " + std::to_string(options_.queues) + " queues wanted, the device has " +
                                     std::to_string(std::min(info.max_rx_queues, info.max_tx_queues)) +
                                     "; lower queues or the number of lcores"});
  }
  rte_eth_conf conf{};
  if (const bool nic = options_.driver == Driver::kPci; reads_frames_in_pieces(info, nic)) {
    loans_.allow(options_.queues, nic ? info.device : nullptr);
    conf.txmode.offloads |= RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
  }
  if (options_.driver == Driver::kPci) {
    conf.rxmode.mtu = options_.mtu;
    conf.intr_conf.rxq = 1;
  }
  // Without it all frames come to one queue, or are spread by what the driver likes; vdevs have their own ways.
  if (const std::uint64_t udp = info.flow_type_rss_offloads & kHashedWanted; options_.queues > 1 && udp != 0) {
    conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
    conf.rx_adv_conf.rss_conf.rss_hf = udp;
  }
  int rc = rte_eth_dev_configure(id_, options_.queues, options_.queues, &conf);
  interrupts_ = rc == 0 && conf.intr_conf.rxq != 0;
  if (rc != 0 && conf.intr_conf.rxq != 0) {
    conf.intr_conf.rxq = 0;
    rc = rte_eth_dev_configure(id_, options_.queues, options_.queues, &conf);
  }
  if (rc != 0) {
    return std::unexpected(
        failed("configuring " + std::to_string(options_.queues) + " queues, mtu " + std::to_string(options_.mtu), rc));
  }
  return {};
}

std::expected<void, PortError> PortImpl::set_up_queue(std::uint16_t queue) {
  std::uint16_t receive_entries = kReceiveEntries;
  std::uint16_t transmit_entries = kTransmitEntries;
  if (const int rc = rte_eth_dev_adjust_nb_rx_tx_desc(id_, &receive_entries, &transmit_entries); rc != 0) {
    return std::unexpected(failed("choosing ring sizes", rc));
  }
  const std::uint32_t buffers = receive_entries                               // in the driver's receive ring
                                + transmit_entries                            // in its transmit ring, until sent
                                + static_cast<std::uint32_t>(kBurst)          // received, being handled
                                + 2 * static_cast<std::uint32_t>(kBurst) + 1  // committed, and the one being built
                                + 2 * kCacheEntries         // in the lcore's cache, out of sight of others
                                + (options_.queues - 1U) *  // handed over, and in the caches of those lcores
                                      (static_cast<std::uint32_t>(kHandOverMax) + 2 * kCacheEntries);
  const std::uint32_t entries = std::bit_ceil(buffers + 1) - 1;  // 2^k - 1 wastes least
  const std::uint32_t room = RTE_PKTMBUF_HEADROOM + (frame_bytes_max() + 1023) / 1024 * 1024;
  const std::string name = "godwit" + std::to_string(id_) + "q" + std::to_string(queue);
  rte_mempool* const pool = rte_pktmbuf_pool_create(name.c_str(), entries, kCacheEntries, 0,
                                                    static_cast<std::uint16_t>(room), rte_eth_dev_socket_id(id_));
  if (pool == nullptr) {
    return std::unexpected(PortError{"port: " + std::to_string(entries) + " buffers of " + std::to_string(room) +
                                     " bytes: " + rte_strerror(rte_errno) + "; raise [eal] memory_mb"});
  }
  pools_.push_back(pool);
  const auto socket = static_cast<unsigned>(rte_eth_dev_socket_id(id_));
  if (const int rc = rte_eth_rx_queue_setup(id_, queue, receive_entries, socket, nullptr, pool); rc != 0) {
    return std::unexpected(failed("setting up receive queue " + std::to_string(queue), rc));
  }
  if (const int rc = rte_eth_tx_queue_setup(id_, queue, transmit_entries, socket, nullptr); rc != 0) {
    return std::unexpected(failed("setting up transmit queue " + std::to_string(queue), rc));
  }
  rte_mempool* pieces = nullptr;
  if (loans_.allowed()) {
    const std::uint32_t frames = transmit_entries + 2 * static_cast<std::uint32_t>(kBurst) + 1;
    const std::uint32_t piece_entries =
        std::bit_ceil(frames * static_cast<std::uint32_t>(kPieces) + 2 * kCacheEntries + 1) - 1;
    pieces = rte_pktmbuf_pool_create((name + "p").c_str(), piece_entries, kCacheEntries, 0,
                                     RTE_PKTMBUF_HEADROOM + kPieceBytes, rte_eth_dev_socket_id(id_));
    if (pieces == nullptr) {
      return std::unexpected(PortError{"port: " + std::to_string(piece_entries) +
                                       " small buffers: " + rte_strerror(rte_errno) + "; raise [eal] memory_mb"});
    }
    pools_.push_back(pieces);
  }
  queues_.push_back(std::make_unique<QueueImpl>(id_, queue, pool, pieces, frame_bytes_max(), loans_));
  return {};
}

/// What was asked for is not always what is in force: the driver says.
void PortImpl::learn_spread() {
  rte_eth_dev_info info{};
  if (options_.queues == 1 || rte_eth_dev_info_get(id_, &info) != 0 || info.reta_size == 0) {
    return;
  }
  // A driver that does not say how long its key is has the one of 40 bytes that all once had.
  const std::size_t key_bytes = info.hash_key_size != 0 ? info.hash_key_size : wire::kToeplitzKeyBytesMin;
  std::vector<std::uint8_t> key(std::max(key_bytes, wire::kToeplitzKeyBytesMax));
  rte_eth_rss_conf hash{};
  hash.rss_key = key.data();
  hash.rss_key_len = static_cast<std::uint8_t>(key_bytes);
  std::vector<rte_eth_rss_reta_entry64> groups((info.reta_size + RTE_ETH_RETA_GROUP_SIZE - 1U) /
                                               RTE_ETH_RETA_GROUP_SIZE);
  for (rte_eth_rss_reta_entry64& group : groups) {
    group.mask = UINT64_MAX;
  }
  if (rte_eth_dev_rss_hash_conf_get(id_, &hash) != 0 ||
      rte_eth_dev_rss_reta_query(id_, groups.data(), info.reta_size) != 0) {
    return;
  }
  const auto bytes = std::as_bytes(std::span(key)).first(key_bytes);
  wire::ReceiveSpread spread{.key = {bytes.begin(), bytes.end()}, .table = {}, .queues = options_.queues};
  for (std::uint16_t i = 0; i < info.reta_size; ++i) {
    const std::uint16_t queue = groups[i / RTE_ETH_RETA_GROUP_SIZE].reta[i % RTE_ETH_RETA_GROUP_SIZE];
    if (queue >= options_.queues) {
      return;
    }
    spread.table.push_back(static_cast<std::uint8_t>(queue));
  }
  if (wire::is_valid(spread)) {
    spread_ = std::move(spread);
    hashed_ = hash.rss_hf & kHashedWanted;
  }
}

std::expected<void, PortError> PortImpl::start() {
  if (auto done = configure(); !done) {
    return done;
  }
  for (std::uint16_t queue = 0; queue < options_.queues; ++queue) {
    if (auto done = set_up_queue(queue); !done) {
      return done;
    }
  }
  if (const int rc = rte_eth_dev_start(id_); rc != 0) {
    return std::unexpected(failed("starting the device", rc));
  }
  started_ = true;
  learn_spread();
  rte_ether_addr address{};
  if (const int rc = rte_eth_macaddr_get(id_, &address); rc != 0) {
    return std::unexpected(failed("reading the MAC address", rc));
  }
  std::memcpy(mac_.data(), address.addr_bytes, mac_.size());
  return {};
}

}  // namespace

void ReceivedFrame::Free::operator()(rte_mbuf* buffer) const { rte_pktmbuf_free(buffer); }

std::expected<std::unique_ptr<Port>, PortError> Port::open(const PortOptions& options) {
  if (auto arguments = device_arguments(options); !arguments) {
    return std::unexpected(arguments.error());
  }
  if (options.driver == Driver::kMemif) {
    return memif::open(options);
  }
  if (options.driver == Driver::kAfPacket) {
    return open_packet_port(options);
  }
  // Only what the configuration names was probed, so the first port is ours.
  const std::uint16_t count = rte_eth_dev_count_avail();
  if (count != 1) {
    return std::unexpected(PortError{"port: " + std::to_string(count) +
                                     " devices found, 1 expected; check the device's name, that " +
                                     "it exists, and for PCI that it is bound to vfio-pci"});
  }
  auto port = std::make_unique<PortImpl>(options, static_cast<std::uint16_t>(rte_eth_find_next(0)));
  if (auto done = port->start(); !done) {
    return std::unexpected(done.error());
  }
  return port;
}

}  // namespace godwit::port
