// A whole lane, met by a peer that holds the keys and breaks every rule it likes.
// Input: one byte (bit 0: bulk or priority lane; bit 1: AES-GCM, whose keys change often, or clear text), then steps. A
// sealed packet gets its tag made right, so that what is behind the seal is reached; an unsealed one is any bytes.
// Properties: an unsealed datagram changes nothing that shows; no packet number is taken in twice; acknowledgements
// name only what came, or what the peer gave up; what the lane sends is well formed, numbered upwards, and holds what
// its user gave it; each work is acknowledged once; what it delivers is in range.

#include "dataplane/transport/lane.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "dataplane/transport/seal.h"
#include "dataplane/wire/frames.h"
#include "tests/fuzz/fuzz.h"

namespace godwit::fuzz {
namespace {

using transport::Lane;
using transport::Received;

constexpr std::uint32_t kOurFlow = 0x11;
constexpr std::uint32_t kPeerFlow = 0x22;
constexpr std::size_t kStepsMax = 600;
constexpr transport::KeyLimits kKeyLimits{.rekey_packets = 8, .packets_max = 100'000};
constexpr std::array kTypes = {wire::PacketType::kPages, wire::PacketType::kAck, wire::PacketType::kZeroRuns,
                               wire::PacketType::kProbe, wire::PacketType::kMessage};

enum class Step : std::uint8_t { kSealed, kUnsealed, kPages, kRuns, kMessage, kAck, kTime, kTransmit, kSend, kCount };

std::byte content(std::uint64_t page, std::uint32_t offset) { return static_cast<std::byte>(page * 31 + offset); }

class User final : public transport::LaneUser {
 public:
  bool next_work(std::uint16_t lane, transport::Work& out) override {
    if (given_ >= 3000) {
      return false;
    }
    FUZZ_CHECK(lane != transport::kPriorityLane || in_hand_.size() < transport::kPriorityWorksMax);
    const bool zero = given_ % 5 == 4;
    out = {.page = given_ * 10, .count = zero ? 7U : 1U, .round = 1, .zero = zero};
    in_hand_.insert(out.page);
    ++given_;
    return true;
  }
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override {
    FUZZ_CHECK(offset + out.size() <= pages::kPageSize && in_hand_.contains(page));
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = content(page, offset + static_cast<std::uint32_t>(i));
    }
  }
  void on_acknowledged(const transport::Work& work) override { FUZZ_CHECK(in_hand_.erase(work.page) == 1); }
  void on_page(std::uint16_t, std::uint32_t, pages::PageNumber page, std::uint32_t offset, Bytes bytes) override {
    FUZZ_CHECK(page < wire::kPageNumberLimit && !bytes.empty() && offset + bytes.size() <= pages::kPageSize);
    ++delivered_;
  }
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber first, std::uint64_t count) override {
    FUZZ_CHECK(count > 0 && first < wire::kPageNumberLimit && count <= wire::kPageNumberLimit - first);
    ++delivered_;
  }
  void on_message(Bytes message) override {
    FUZZ_CHECK(message.size() <= transport::kMessageBytesMax);
    ++delivered_;
  }
  [[nodiscard]] std::uint64_t delivered() const { return delivered_; }
  [[nodiscard]] bool in_hand(std::uint64_t page) const { return in_hand_.contains(page); }

 private:
  std::uint64_t given_ = 0;
  std::uint64_t delivered_ = 0;
  std::set<std::uint64_t> in_hand_;
};

class Attack {
 public:
  Attack(std::uint16_t lane, transport::Cipher cipher)
      : config_{.local_flow_id = kOurFlow,
                .peer_flow_id = kPeerFlow,
                .lane = lane,
                .initiator = true,
                .cipher = cipher,
                .key_limits = kKeyLimits},
        lane_(config_, user_, now_),
        sealer_(transport::make_sealer(seal_config(transport::Direction::kFromResponder), now_)),
        opener_(transport::make_opener(seal_config(transport::Direction::kFromInitiator))) {}

  void run(Input& input) {
    for (std::size_t i = 0; i < kStepsMax && !input.empty(); ++i) {
      step(static_cast<Step>(input.number<std::uint8_t>() % static_cast<std::uint8_t>(Step::kCount)), input);
    }
    transmit();
  }

 private:
  [[nodiscard]] transport::SealConfig seal_config(transport::Direction direction) const {
    return {.cipher = config_.cipher,
            .secret = config_.secret,
            .lane = config_.lane,
            .direction = direction,
            .limits = config_.key_limits};
  }

  void step(Step step, Input& input) {
    switch (step) {
      case Step::kSealed:
        return sealed(input);
      case Step::kUnsealed:
        return unsealed(input.bytes(input.number<std::uint16_t>()));
      case Step::kPages:
        return pages(input);
      case Step::kRuns:
        return runs(input);
      case Step::kMessage:
        return message(input);
      case Step::kAck:
        return acknowledge(input);
      case Step::kTime:
        now_ = now_ + microseconds(input.number<std::uint16_t>());
        if (lane_.deadline() <= now_) {
          lane_.tick(now_);
        }
        return;
      case Step::kTransmit:
        return transmit();
      case Step::kSend:
        if (config_.lane == 0) {
          const std::vector<std::byte> bytes(input.number<std::uint16_t>(), std::byte{0x77});
          const bool room = bytes.size() <= lane_.message_room();
          const bool taken = lane_.send_message(bytes);
          FUZZ_CHECK(taken == room || bytes.empty());
        }
        return;
      case Step::kCount:
        break;
    }
  }

  // ---- to the lane ----
  void sealed(Input& input) {
    const auto type = kTypes[input.below(kTypes.size())];
    const auto flags = input.number<std::uint8_t>();
    const std::uint64_t number = draw_number(input);
    deliver({.type = type, .flags = flags, .lane = config_.lane, .flow_id = kOurFlow, .packet_number = number},
            input.bytes(input.number<std::uint16_t>() % 2048));
  }

  /// Mostly the next; also earlier ones, and far ahead.
  std::uint64_t draw_number(Input& input) {
    const auto draw = input.number<std::uint8_t>();
    if (draw < 200) {
      return next_++;
    }
    if (draw < 230) {
      return next_ > draw ? next_ - (draw - 199) : 0;
    }
    return draw < 250 ? next_ + draw - 229 : input.number<std::uint64_t>();
  }

  std::size_t put_prefix(Input& input, const wire::Prefix& fields, std::uint64_t number, std::span<std::byte> out) {
    wire::Prefix prefix = fields;
    prefix.floor = number - std::min<std::uint64_t>(number, input.number<std::uint8_t>());
    return wire::write_prefix(prefix, number, out);
  }

  void pages(Input& input) {
    const std::uint64_t number = draw_number(input);
    std::vector<std::byte> body(9000);
    const auto count = static_cast<std::uint8_t>(1 + input.below(2));
    std::size_t at = put_prefix(input, {.count = count}, number, body);
    std::size_t length = 0;
    for (std::uint8_t i = 0; i < count; ++i) {
      const auto page = input.number<std::uint16_t>();
      const bool part = count == 1 && input.flag();
      const auto bytes = static_cast<std::uint16_t>(part ? 64 : pages::kPageSize);
      at +=
          wire::write_page_desc({.page = page, .round = 1, .offset = 0, .length = bytes}, std::span(body).subspan(at));
      length += bytes;
    }
    deliver({.type = wire::PacketType::kPages, .lane = config_.lane, .flow_id = kOurFlow, .packet_number = number},
            std::span(body).first(std::min(at + length, body.size())));
  }

  void runs(Input& input) {
    const std::uint64_t number = draw_number(input);
    std::vector<std::byte> body(1200);
    const auto count = static_cast<std::uint8_t>(1 + input.below(wire::kZeroRunsPerPacketMax));
    std::size_t at = put_prefix(input, {.count = count}, number, body);
    for (std::uint8_t i = 0; i < count; ++i) {
      at += wire::write_zero_run({.first = input.number<std::uint32_t>(), .count = 1, .round = 1},
                                 std::span(body).subspan(at));
    }
    deliver({.type = wire::PacketType::kZeroRuns, .lane = config_.lane, .flow_id = kOurFlow, .packet_number = number},
            std::span(body).first(at));
  }

  void message(Input& input) {
    const std::uint64_t number = draw_number(input);
    std::vector<std::byte> body(4096);
    const std::uint64_t offset = input.flag() ? stream_at_ : input.number<std::uint32_t>();
    const Bytes bytes = input.bytes(1 + input.below(1200));
    std::size_t at = put_prefix(input, {.length = static_cast<std::uint16_t>(bytes.size())}, number, body);
    at += wire::write_message_offset(offset, std::span(body).subspan(at));
    std::ranges::copy(bytes, body.begin() + static_cast<std::ptrdiff_t>(at));
    deliver({.type = wire::PacketType::kMessage, .lane = config_.lane, .flow_id = kOurFlow, .packet_number = number},
            std::span(body).first(at + bytes.size()));
    if (offset == stream_at_) {
      stream_at_ += bytes.size();
    }
  }

  void acknowledge(Input& input) {
    wire::AckBlock ack;
    const std::uint64_t sent = lane_sent_ == 0 ? 1 : lane_sent_;
    ack.largest = sent - 1 - std::min<std::uint64_t>(sent - 1, input.number<std::uint8_t>());
    ack.floor = ack.largest + 1 - std::min<std::uint64_t>(ack.largest + 1, input.number<std::uint16_t>());
    ack.edge = ack.largest + input.number<std::uint16_t>();
    ack.word_count = static_cast<std::uint8_t>(std::min<std::uint64_t>(input.below(17), ack.largest / 64 + 1));
    for (std::size_t i = 0; i < ack.word_count; ++i) {
      ack.words[i] = input.number<std::uint64_t>();
    }
    if (ack.word_count > 0 && ack.largest % 64 != 63) {
      ack.words[0] &= (std::uint64_t{1} << (ack.largest % 64 + 1)) - 1;
    }
    std::array<std::byte, wire::ack_block_bytes(wire::kAckWordsMax)> body{};
    deliver({.type = wire::PacketType::kAck,
             .flags = wire::kFlagAckBlock,
             .lane = config_.lane,
             .flow_id = kOurFlow,
             .packet_number = draw_number(input)},
            std::span(body).first(wire::write_ack_block(ack, body)));
  }

  void deliver(wire::PacketHeader header, Bytes body) {
    FUZZ_CHECK(sealer_->ready(now_, header.packet_number));
    header.flags |= sealer_->flags();
    std::vector<std::byte> packet(wire::kHeaderBytes + body.size() + wire::kTagBytes);
    wire::write_header(header, packet);
    std::ranges::copy(body, packet.begin() + wire::kHeaderBytes);
    wire::Body parsed;
    const auto view = wire::parse_packet(packet);
    const bool good_body = view && wire::parse_body(view->header, view->body, parsed) == wire::BadBody::kNone;
    transport::SealedPages sealed;
    std::array<::godwit::pages::PageHash, wire::kPagesPerPacketMax> hashes;
    if (good_body && header.type == wire::PacketType::kPages) {
      sealed.at = static_cast<std::size_t>(parsed.page_bytes[0].data() - packet.data());
      std::transform(parsed.page_bytes.begin(), parsed.page_bytes.begin() + parsed.count, hashes.begin(),
                     ::godwit::pages::hash_part);
      sealed.hashes = std::span(hashes).first(parsed.count);
    }
    sealer_->seal(header.packet_number, packet, sealed);

    const std::uint64_t packets_before = lane_.counters().packets_received;
    const std::uint64_t delivered_before = user_.delivered();
    const Received result = lane_.on_packet(now_, packet);
    const bool taken_in = lane_.counters().packets_received != packets_before;
    FUZZ_CHECK(!taken_in || good_body);
    FUZZ_CHECK(taken_in || result != Received::kAccepted);
    FUZZ_CHECK(taken_in || user_.delivered() == delivered_before);
    if (taken_in) {
      FUZZ_CHECK(taken_in_.insert(header.packet_number).second);
      if (wire::is_ack_eliciting(header.type)) {
        peer_floor_ = std::max(peer_floor_, parsed.floor);
      }
    }
    if (result == Received::kAccepted && header.type != wire::PacketType::kMessage) {
      FUZZ_CHECK(user_.delivered() == delivered_before + parsed.count);
    }
  }

  struct Visible {
    Instant deadline;
    std::int64_t rtt_ns;
    std::uint32_t window;
    bool quiet;
    std::size_t room;
    std::uint64_t packets, bytes, lost, spurious, delivered;
    bool operator==(const Visible&) const = default;
  };
  [[nodiscard]] Visible visible() const {
    const auto& counters = lane_.counters();
    return {lane_.deadline(),        lane_.smoothed_rtt().ns, lane_.congestion_window_packets(),
            lane_.quiet(),           lane_.message_room(),    counters.packets_received,
            counters.bytes_received, counters.packets_lost,   counters.spurious_losses,
            user_.delivered()};
  }

  void unsealed(Bytes bytes) {
    std::vector<std::byte> datagram(bytes.begin(), bytes.end());
    const Visible before = visible();
    const Received result = lane_.on_packet(now_, datagram);
    FUZZ_CHECK(result != Received::kAccepted && result != Received::kBadBody);
    FUZZ_CHECK(visible() == before);
    FUZZ_CHECK(config_.cipher != transport::Cipher::kNone || same(datagram, bytes));  // opening decrypts in place
  }

  // ---- from the lane ----
  void transmit() {
    std::vector<std::byte> out(config_.datagram_bytes_max);
    for (std::size_t i = 0; i < 300; ++i) {
      const std::size_t length = lane_.poll_transmit(now_, out);
      FUZZ_CHECK(length <= out.size());
      if (length == 0) {
        return;
      }
      check_sent(std::span(out).first(length));
    }
  }

  void check_sent(std::span<std::byte> datagram) {
    const auto packet = wire::parse_packet(datagram);
    FUZZ_CHECK(packet && packet->header.flow_id == kPeerFlow && packet->header.lane == config_.lane);
    FUZZ_CHECK(packet->header.packet_number >= lane_sent_);
    lane_sent_ = packet->header.packet_number + 1;
    FUZZ_CHECK(opener_->takes(packet->header.flags));
    FUZZ_CHECK(opener_->open(now_, packet->header, datagram, Duration{}) == transport::Opened::kYes);
    wire::Body body;
    FUZZ_CHECK(wire::parse_body(packet->header, packet->body, body) == wire::BadBody::kNone);
    if (body.has_ack) {
      check_ack(body.ack);
    }
    if (packet->header.type == wire::PacketType::kPages) {
      for (std::size_t i = 0; i < body.count; ++i) {
        check_page(body.pages[i], body.page_bytes[i]);
      }
    }
  }

  void check_page(const wire::PageDesc& desc, Bytes bytes) {
    FUZZ_CHECK(user_.in_hand(desc.page));
    for (std::uint32_t i = 0; i < bytes.size(); ++i) {
      FUZZ_CHECK(bytes[i] == content(desc.page, desc.offset + i));
    }
  }

  void check_ack(const wire::AckBlock& ack) {
    sealer_->on_reported(now_, ack.largest, Duration{});
    FUZZ_CHECK(!taken_in_.empty() && ack.largest == *taken_in_.rbegin());
    for (std::uint64_t i = 0; i < ack.word_count; ++i) {
      for (std::uint64_t bit = 0; bit < 64; ++bit) {
        const std::uint64_t number = 64 * (ack.largest / 64 - i) + bit;
        FUZZ_CHECK((ack.words[i] >> bit & 1) == 0 || taken_in_.contains(number));
      }
    }
    // Below the floor: came, or the peer gave it up.
    std::uint64_t missing = peer_floor_;
    for (auto at = taken_in_.lower_bound(missing); at != taken_in_.end() && *at == missing; ++at) {
      ++missing;
    }
    FUZZ_CHECK(ack.floor <= missing);
  }

  Instant now_{1'000'000'000};
  transport::LaneConfig config_;
  User user_;
  Lane lane_;
  std::unique_ptr<transport::Sealer> sealer_;
  std::unique_ptr<transport::Opener> opener_;
  std::uint64_t next_ = 0;       // the peer's next packet number
  std::uint64_t stream_at_ = 0;  // the peer's message stream
  std::uint64_t peer_floor_ = 0;
  std::uint64_t lane_sent_ = 0;  // the lane's largest packet number, plus one
  std::set<std::uint64_t> taken_in_;
};

Output& put(Output& out, Step step) { return out.number(static_cast<std::uint8_t>(step)); }

/// Whatever a step reads that is not named: zeros draw the next number, floor at the packet itself.
void put_ack(Output& out, std::uint16_t edge) {
  put(out, Step::kAck).number<std::uint8_t>(0).number<std::uint16_t>(70).number(edge).number<std::uint32_t>(1);
  out.number<std::uint64_t>(~std::uint64_t{0}).number<std::uint8_t>(0);
}

void put_message(Output& out, std::string_view bytes) {
  put(out, Step::kMessage).number<std::uint8_t>(0).number<std::uint8_t>(1);
  out.number(static_cast<std::uint32_t>(bytes.size() - 1)).text(bytes).number<std::uint8_t>(0);
}

std::vector<std::byte> bulk_seed() {
  Output out;
  out.number<std::uint8_t>(1);
  put(out, Step::kTransmit);
  put(out, Step::kPages).number<std::uint8_t>(0).number<std::uint32_t>(0).number<std::uint8_t>(0);
  out.number<std::uint16_t>(5).number<std::uint8_t>(0);
  put(out, Step::kRuns).number<std::uint8_t>(0).number<std::uint32_t>(1).number<std::uint8_t>(0);
  out.number<std::uint32_t>(70).number<std::uint32_t>(90);
  put(out, Step::kTime).number<std::uint16_t>(600);
  put_ack(out, 300);
  put(out, Step::kTransmit);
  put(out, Step::kTime).number<std::uint16_t>(60000);
  put(out, Step::kTransmit);
  put(out, Step::kSealed).number<std::uint32_t>(3).number<std::uint8_t>(2).number<std::uint8_t>(0);
  out.number<std::uint16_t>(8).number<std::uint64_t>(0);
  put(out, Step::kUnsealed).number<std::uint16_t>(40).text("0123456789012345678901234567890123456789");
  return out.take();
}

std::vector<std::byte> priority_seed() {
  Output out;
  out.number<std::uint8_t>(0);
  put(out, Step::kSend).number<std::uint16_t>(3000);
  put(out, Step::kTransmit);
  put_message(out, std::string_view("\x05\0\0\0hello\x03\0\0\0", 13));
  put_message(out, "you");
  put_ack(out, 100);
  put(out, Step::kSend).number<std::uint16_t>(65000);
  put(out, Step::kTransmit);
  put(out, Step::kTime).number<std::uint16_t>(50000);
  put(out, Step::kTransmit);
  return out.take();
}

}  // namespace

void run(Bytes bytes) {
  Input input(bytes);
  const auto kind = input.number<std::uint8_t>();
  Attack(kind & 1, (kind & 2) != 0 ? transport::Cipher::kAes128Gcm : transport::Cipher::kNone).run(input);
}

/// The same steps, encrypted.
std::vector<std::byte> encrypted(std::vector<std::byte> seed) {
  seed.front() |= std::byte{2};
  return seed;
}

std::vector<Seed> seeds() {
  return {{"bulk", bulk_seed()},
          {"priority", priority_seed()},
          {"bulk-encrypted", encrypted(bulk_seed())},
          {"priority-encrypted", encrypted(priority_seed())}};
}

}  // namespace godwit::fuzz
