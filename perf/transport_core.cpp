// What a lane costs by itself, with each cipher: two lanes back to back, no driver, no copy of pages; the seal's share
// is measured and taken off.

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/transport/lane.h"
#include "dataplane/transport/page_layout.h"
#include "dataplane/transport/seal.h"
#include "dataplane/wire/packet.h"
#include "perf/benchmark.h"

namespace godwit::perf {
namespace {

constexpr std::size_t kBurst = 32;

class Pages final : public transport::LaneUser {
 public:
  bool next_work(std::uint16_t, transport::Work& out) override {
    out.page = page_++ & 0xffff;
    return sending;
  }
  void read_page(pages::PageNumber, std::uint32_t, std::span<std::byte>) override {}
  void on_acknowledged(const transport::Work&) override {}
  void on_page(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint32_t, std::span<const std::byte>) override {}
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) override {}
  void on_message(std::span<const std::byte>) override {}

  bool sending = false;

 private:
  pages::PageNumber page_ = 0;
};

/// Both ends on one core, in bursts, with a clock that advances as if each packet took a microsecond.
class LanePair {
 public:
  LanePair(std::uint32_t datagram_bytes, transport::Cipher cipher) {
    for (std::size_t i = 0; i < 2; ++i) {
      transport::LaneConfig config;
      config.local_flow_id = static_cast<std::uint32_t>(1 + i);
      config.peer_flow_id = static_cast<std::uint32_t>(2 - i);
      config.lane = 1;
      config.initiator = i == 0;
      config.datagram_bytes_max = datagram_bytes;
      config.cipher = cipher;
      lanes_[i] = std::make_unique<transport::Lane>(config, users_[i], now_);
    }
    users_[0].sending = true;
    for (auto& buffer : buffers_) {
      buffer.resize(datagram_bytes);
    }
  }

  void move(std::uint64_t packets) {
    for (const std::uint64_t end = sent() + packets; sent() < end;) {
      pass(*lanes_[0], *lanes_[1]);
      pass(*lanes_[1], *lanes_[0]);
    }
  }
  [[nodiscard]] std::uint64_t sent() const { return lanes_[0]->counters().packets_sent; }

 private:
  void pass(transport::Lane& from, transport::Lane& to) {
    std::array<std::size_t, kBurst> lengths{};
    std::size_t count = 0;
    while (count < kBurst && (lengths[count] = from.poll_transmit(now_, buffers_[count])) > 0) {
      ++count;
    }
    now_ = now_ + microseconds(static_cast<std::int64_t>(count) + 1);
    for (std::size_t i = 0; i < count; ++i) {
      to.on_packet(now_, std::span(buffers_[i]).first(lengths[i]));
    }
  }

  Instant now_{1};
  std::array<Pages, 2> users_;
  std::array<std::unique_ptr<transport::Lane>, 2> lanes_;
  std::array<std::vector<std::byte>, kBurst> buffers_;
};

struct Case {
  std::uint32_t mtu;
  transport::Cipher cipher;
  const char* name;
};

constexpr Case kCases[] = {
    {1500, transport::Cipher::kNone, "mtu_1500.none"},
    {1500, transport::Cipher::kAes128Gcm, "mtu_1500.aes_128_gcm"},
    {1500, transport::Cipher::kAes256Gcm, "mtu_1500.aes_256_gcm"},
    {9000, transport::Cipher::kNone, "mtu_9000.none"},
    {9000, transport::Cipher::kAes128Gcm, "mtu_9000.aes_128_gcm"},
    {9000, transport::Cipher::kAes256Gcm, "mtu_9000.aes_256_gcm"},
};

/// A sealer, its opener, and a packet of pages between them.
class SealPair {
 public:
  SealPair(transport::Cipher cipher, const transport::PageLayout& layout)
      : layout_(layout),
        sealer_(transport::make_sealer(config(cipher), {})),
        opener_(transport::make_opener(config(cipher))),
        packet_(layout.packet_bytes) {}
  void pass() {
    consume(sealer_->ready({}, number_));
    const wire::PacketHeader header{
        .type = wire::PacketType::kPages, .flags = sealer_->flags(), .packet_number = number_};
    std::size_t at = wire::kHeaderBytes;
    const std::uint32_t count = layout_.pages_per_packet;
    at += wire::write_prefix({.count = static_cast<std::uint8_t>(count), .floor = number_}, number_, rest(at));
    for (std::uint32_t i = 0; i < count; ++i) {
      at += wire::write_page_desc({.length = static_cast<std::uint16_t>(layout_.length(0))}, rest(at));
    }
    std::array<pages::PageHash, wire::kPagesPerPacketMax> hashes{};
    for (std::uint32_t i = 0; i < count && !sealer_->encrypts(); ++i) {
      hashes[i] = pages::hash_part(rest(at + i * layout_.length(0)).first(layout_.length(0)));
    }
    sealer_->seal(number_++, packet_, {.at = at, .hashes = std::span(hashes).first(count)});
    sealer_->on_reported({}, header.packet_number, {});
    consume(opener_->open({}, header, packet_, {}));
  }

 private:
  static transport::SealConfig config(transport::Cipher cipher) {
    transport::SealConfig config;
    config.cipher = cipher;
    return config;
  }
  [[nodiscard]] std::span<std::byte> rest(std::size_t at) { return std::span(packet_).subspan(at); }

  const transport::PageLayout layout_;
  std::unique_ptr<transport::Sealer> sealer_;
  std::unique_ptr<transport::Opener> opener_;
  std::vector<std::byte> packet_;
  std::uint64_t number_ = 0;
};

std::expected<void, std::string> run(const Options& options, Result& result) {
  const std::uint64_t packets = options.quick ? 2'000 : 200'000;
  result.row({"MTU, cipher", "ns a packet, seal and open", "ns a packet, all", "ns a packet, the lane alone"});
  for (const Case& c : kCases) {
    LanePair pair(c.mtu - 28, c.cipher);
    pair.move(1000);
    SealPair seals(c.cipher, transport::page_layout(c.mtu - 28));
    const auto seal_and_open = [&] {
      for (std::uint64_t i = 0; i < packets; ++i) {
        seals.pass();
      }
    };
    const std::vector<double> times = interleaved(options.quick ? 1 : 9, {seal_and_open, [&] { pair.move(packets); }});
    const double sealing_ns = times[0] * 1e9 / static_cast<double>(packets);
    const double all_ns = times[1] * 1e9 / static_cast<double>(packets);
    const std::string name = c.name;
    result.metric(name + ".seal_and_open_ns", sealing_ns);
    result.metric(name + ".all_ns", all_ns);
    result.metric(name + ".lane_ns", all_ns - sealing_ns);
    result.row({name, std::to_string(sealing_ns), std::to_string(all_ns), std::to_string(all_ns - sealing_ns)});
  }
  return {};
}

const Registration kRegistration{"transport-core",
                                 "cost of a lane by itself: nanoseconds a packet, sent and acknowledged", run};

}  // namespace
}  // namespace godwit::perf
