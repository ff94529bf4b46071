#include "tests/simulation/lane_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "dataplane/transport/credit.h"
#include "dataplane/wire/packet.h"

namespace godwit::simulation {

namespace {

constexpr std::array<std::uint32_t, 2> kFlowIds = {0x1001, 0x2002};
constexpr std::size_t kBurst = 32;
constexpr std::size_t kLineBytes = pages::kPageSize / kLines;
constexpr Duration kHealedLimit = milliseconds(20'000);

std::byte message_byte(std::size_t sender, std::uint32_t number, std::size_t at) {
  return static_cast<std::byte>((number * 2654435761U + sender * 97 + at * 31) >> 3);
}

std::size_t message_size(std::size_t sender, std::uint32_t number) {
  Random random(number * 2 + sender);
  return random.chance_ppm(200'000) ? random.below(transport::kMessageBytesMax + 1) : random.below(300);
}

}  // namespace

Scenario draw_scenario(Random& random) {
  constexpr std::array<std::uint32_t, 6> kDatagrams = {1232, 1452, 1472, 4180, 8972, 9188};
  const auto rate = [&](std::uint32_t chance_ppm, std::uint32_t ppm_max) {
    return random.chance_ppm(chance_ppm) ? static_cast<std::uint32_t>(random.below(ppm_max + 1)) : 0U;
  };
  Scenario s;
  s.datagram_bytes = kDatagrams[random.below(kDatagrams.size())];
  s.credit_packets = static_cast<std::uint32_t>(random.between(64, 512));
  s.pages = random.between(1, 400);
  s.rounds = static_cast<std::uint32_t>(random.between(1, 6));
  s.messages = static_cast<std::uint32_t>(random.below(60));
  s.pause_ppm = rate(300'000, 20'000);
  s.replay_ppm = rate(500'000, 200'000);
  s.write_ppm = rate(700'000, 500'000);
  s.blackhole = random.chance_ppm(200'000);
  for (LinkConfig* link : {&s.there, &s.back}) {
    link->delay = microseconds(static_cast<std::int64_t>(random.between(5, 2000)));
    link->jitter = microseconds(static_cast<std::int64_t>(rate(500'000, 3000)));
    link->loss_ppm = rate(600'000, 300'000);
    link->duplicate_ppm = rate(500'000, 300'000);
    link->corrupt_ppm = rate(400'000, 100'000);
    link->truncate_ppm = rate(300'000, 50'000);
    link->reorder_ppm = rate(500'000, 300'000);
    link->reorder_delay = microseconds(static_cast<std::int64_t>(random.between(10, 20'000)));
    if (random.chance_ppm(300'000)) {
      link->rate_bps = random.between(100'000'000, 10'000'000'000);
      link->queue_bytes = random.between(100'000, 4'000'000);
    }
  }
  constexpr std::array<transport::Cipher, 3> kCiphers = {transport::Cipher::kNone, transport::Cipher::kAes128Gcm,
                                                         transport::Cipher::kAes256Gcm};
  s.cipher = kCiphers[random.below(kCiphers.size())];
  s.key_limits.rekey_packets = random.between(1, 500);
  s.key_limits.rekey_age = milliseconds(static_cast<std::int64_t>(random.between(1, 2000)));
  return s;
}

// ---- Node ----

transport::Secret Node::secret() const {
  transport::Secret secret;
  secret.fill(std::byte{0x5a});
  return secret;
}

void Node::start(Instant now) {
  for (std::uint16_t i = 0; i < lanes_.size(); ++i) {
    transport::LaneConfig config;
    config.local_flow_id = kFlowIds[index_];
    config.peer_flow_id = kFlowIds[1 - index_];
    config.lane = i;
    config.initiator = index_ == 0;
    config.secret = secret();
    config.cipher = model_.scenario_.cipher;
    config.key_limits = model_.scenario_.key_limits;
    config.datagram_bytes_max = model_.scenario_.datagram_bytes;
    config.credit_packets = model_.scenario_.credit_packets;
    lanes_[i] = std::make_unique<transport::Lane>(config, *this, now);
  }
}

bool Node::next_work(std::uint16_t lane, transport::Work& out) {
  EXPECT_EQ(lane, 1);
  if (index_ != 0 || model_.to_send_.empty()) {
    return false;
  }
  out = model_.to_send_.front();
  model_.to_send_.pop_front();
  return true;
}

void Node::read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) {
  const std::uint64_t word = page << 32 | model_.history_[page].version;
  ASSERT_EQ(offset % kLineBytes, 0U);
  for (std::size_t at = 0; at < out.size(); at += sizeof(word)) {
    std::memcpy(out.data() + at, &word, sizeof(word));
  }
}

void Node::on_acknowledged(const transport::Work& work) {
  ASSERT_EQ(work.round, model_.round_) << "a round ended before all of it was acknowledged";
  for (pages::PageNumber page = work.page; page < work.page + work.count; ++page) {
    PageHistory& history = model_.history_[page];
    const std::uint32_t handed = history.handed_in_round.at(work.round);
    for (const std::uint32_t placed : history.placed) {
      ASSERT_GE(placed, handed) << "page " << page << " acknowledged, but older than at hand-out";
    }
    history.acknowledged_version = handed;
  }
}

void Node::on_page(std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                   std::span<const std::byte> bytes) {
  placements_.push_back({.round = round, .page = page, .offset = offset, .bytes = bytes, .zero = false});
}

void Node::on_zero_run(std::uint32_t round, pages::PageNumber first, std::uint64_t count) {
  for (pages::PageNumber page = first; page < first + count; ++page) {
    placements_.push_back({.round = round, .page = page, .offset = 0, .bytes = {}, .zero = true});
  }
}

void Node::on_message(std::span<const std::byte> message) {
  const std::size_t sender = 1 - index_;
  const std::uint32_t number = messages_received_++;
  ASSERT_EQ(message.size(), message_size(sender, number)) << "message " << number;
  for (std::size_t i = 0; i < message.size(); ++i) {
    ASSERT_EQ(message[i], message_byte(sender, number, i)) << "message " << number << " at " << i;
  }
}

void Node::place(const Placement& placement) {
  ASSERT_LT(placement.page, model_.history_.size());
  PageHistory& history = model_.history_[placement.page];
  const auto handed = history.handed_in_round.find(placement.round);
  ASSERT_NE(handed, history.handed_in_round.end()) << "page " << placement.page << " was never sent in this round";
  const std::size_t bytes = placement.zero ? pages::kPageSize : placement.bytes.size();
  for (std::size_t at = 0; at < bytes; at += kLineBytes) {
    std::uint64_t word = placement.page << 32 | handed->second;
    if (!placement.zero) {
      std::memcpy(&word, placement.bytes.data() + at, sizeof(word));
    }
    const auto version = static_cast<std::uint32_t>(word);
    ASSERT_EQ(word >> 32, placement.page) << "another page's bytes";
    ASSERT_GE(version, handed->second);
    ASSERT_LE(version, history.version);
    ASSERT_GE(version, history.acknowledged_version) << "a late packet brought old bytes back, page " << placement.page;
    history.placed[(placement.offset + at) / kLineBytes] = version;
  }
}

void Node::flush() {
  for (const Placement& placement : placements_) {
    place(placement);
  }
  placements_.clear();
  burst_.clear();
}

void Node::receive(Instant now, std::vector<std::byte>& datagram) {
  // The wire's lane field chooses the lane, as the port's queue does; damaged ones go somewhere.
  const std::size_t lane = datagram.size() > 2 ? static_cast<std::size_t>(datagram[2]) % lanes_.size() : 0;
  std::uint64_t number = 0;
  if (datagram.size() >= wire::kHeaderBytes) {
    std::memcpy(&number, datagram.data() + 8, sizeof(number));
  }
  const transport::Received received = lanes_[lane]->on_packet(now, datagram);
  model_.trace(static_cast<std::uint64_t>(received) ^ number);
  ASSERT_NE(received, transport::Received::kBadBody)
      << "an honest peer's packet was refused after its tag was found good";
  // The number is read before the tag: damage may put it anywhere.
  const bool damage = model_.scenario_.there.corrupt_ppm + model_.scenario_.back.corrupt_ppm > 0;
  ASSERT_TRUE(damage || received != transport::Received::kBeyondCredit);
  if (received == transport::Received::kAccepted) {
    ASSERT_TRUE(accepted_[lane].insert(number).second) << "packet " << number << " accepted twice";
  }
}

void Node::offer_messages() {
  while (messages_sent_ < model_.scenario_.messages) {
    std::vector<std::byte> message(message_size(index_, messages_sent_));
    for (std::size_t i = 0; i < message.size(); ++i) {
      message[i] = message_byte(index_, messages_sent_, i);
    }
    if (!lanes_[0]->send_message(message)) {
      return;
    }
    ++messages_sent_;
  }
}

void Node::check_sent(std::uint16_t lane, std::span<const std::byte> datagram) const {
  std::vector<std::byte> copy(datagram.begin(), datagram.end());
  const auto packet = wire::parse_packet(copy);
  ASSERT_TRUE(packet.has_value());
  ASSERT_LE(datagram.size(), model_.scenario_.datagram_bytes);
  const KeyOwner owner{
      .secret = secret(),
      .cipher = model_.scenario_.cipher,
      .lane = lane,
      .direction = index_ == 0 ? transport::Direction::kFromInitiator : transport::Direction::kFromResponder};
  ASSERT_EQ(model_.keys_.on_sent(owner, datagram), "");
  // Acknowledgements and probes are exempt from credit.
  const bool exempt = packet->header.type == wire::PacketType::kAck ||
                      packet->header.type == wire::PacketType::kProbe ||
                      (packet->header.flags & wire::kFlagAckNow) != 0;
  const std::set<std::uint64_t>& there = model_.nodes_[1 - index_]->accepted_[lane];
  const std::uint64_t edge =
      there.empty() ? transport::kCreditPacketsInitial - 1 : *there.rbegin() + model_.scenario_.credit_packets;
  const std::uint64_t limit = std::max<std::uint64_t>(edge, transport::kCreditPacketsInitial - 1);
  ASSERT_TRUE(exempt || packet->header.packet_number <= limit) << "beyond credit";
}

bool Node::turn(Instant now) {
  if (now < paused_until_) {
    return false;
  }
  offer_messages();
  while (!inbox_.empty() && burst_.size() < kBurst) {
    burst_.push_back(std::move(inbox_.front()));
    inbox_.pop_front();
    receive(now, burst_.back());
  }
  flush();
  std::vector<std::byte> out(model_.scenario_.datagram_bytes);
  bool more = !inbox_.empty();
  for (std::uint16_t i = 0; i < lanes_.size(); ++i) {
    transport::Lane& lane = *lanes_[i];
    if (lane.deadline() <= now) {
      lane.tick(now);
    }
    std::size_t sent = 0;
    for (; sent < kBurst; ++sent) {
      const std::size_t length = lane.poll_transmit(now, out);
      if (length == 0) {
        break;
      }
      const std::span<const std::byte> datagram = std::span<const std::byte>(out).first(length);
      check_sent(i, datagram);
      model_.record(model_.links_[index_], datagram);
      model_.network_.send(now, model_.links_[index_], datagram);
    }
    more = more || sent == kBurst;
  }
  return more;
}

Instant Node::wake_at() const {
  Instant at = std::min(lanes_[0]->deadline(), lanes_[1]->deadline());
  at = inbox_.empty() ? at : Instant{0};
  return std::max(at, paused_until_);
}

bool Node::done() const {
  return messages_sent_ == model_.scenario_.messages && messages_received_ == model_.scenario_.messages &&
         lanes_[0]->quiet() && lanes_[1]->quiet();
}

// ---- LaneModel ----

LaneModel::LaneModel(const Scenario& scenario, std::uint64_t seed)
    : scenario_(scenario), random_(seed ^ 0x6c616e65), network_(seed), history_(scenario.pages) {
  links_ = {network_.add_link(scenario.there), network_.add_link(scenario.back)};
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    nodes_[i] = std::make_unique<Node>(*this, i);
    nodes_[i]->start(now_);
  }
  if (scenario.blackhole) {
    blackhole_at_ = now_ + microseconds(static_cast<std::int64_t>(random_.below(20'000)));
  }
}

void LaneModel::begin_round() {
  ++round_;
  const bool last = round_ == scenario_.rounds;
  for (pages::PageNumber page = 0; page < scenario_.pages;) {
    const bool zero = random_.chance_ppm(200'000);
    const std::uint64_t count = zero ? std::min(random_.between(1, 20), scenario_.pages - page) : 1;
    if (last || random_.chance_ppm(700'000)) {
      for (pages::PageNumber i = page; i < page + count; ++i) {
        PageHistory& history = history_[i];
        history.handed_version = history.version;
        history.handed_in_round[round_] = history.version;
      }
      to_send_.push_back({.page = page, .count = count, .round = round_, .zero = zero});
    }
    page += count;
  }
}

void LaneModel::record(std::size_t link, std::span<const std::byte> datagram) {
  if (scenario_.replay_ppm > 0 && !healed_ && random_.chance_ppm(100'000)) {
    if (recorded_.size() < 64) {
      recorded_.emplace_back(link, std::vector<std::byte>());
    }
    recorded_[random_.below(recorded_.size())] = {link, std::vector<std::byte>(datagram.begin(), datagram.end())};
  }
}

void LaneModel::faults() {
  if (!healed_ && now_.ns > scenario_.faults_end.ns) {
    network_.heal();
    healed_ = true;
  }
  if (healed_) {
    return;
  }
  if (now_ >= blackhole_at_) {
    network_.link(links_[0]).blackhole = network_.link(links_[1]).blackhole = true;
    blackhole_at_ = kNever;  // until all faults end
  }
  if (!recorded_.empty() && random_.chance_ppm(scenario_.replay_ppm)) {
    const auto& [link, bytes] = recorded_[random_.below(recorded_.size())];
    nodes_[link == links_[0] ? 1 : 0]->arrive(bytes);
  }
  if (random_.chance_ppm(scenario_.pause_ppm)) {
    nodes_[random_.below(2)]->pause_until(now_ +
                                          microseconds(static_cast<std::int64_t>(random_.between(1000, 50'000))));
  }
}

bool LaneModel::step() {
  faults();
  if (round_ < scenario_.rounds) {
    if (random_.chance_ppm(scenario_.write_ppm)) {
      ++history_[random_.below(history_.size())].version;  // the guest writes; not in the last round
    }
    if (to_send_.empty() && nodes_[0]->lane(1).quiet()) {
      begin_round();
    }
  }
  while (auto delivered = network_.receive(now_)) {
    nodes_[delivered->link == links_[0] ? 1 : 0]->arrive(std::move(delivered->bytes));
  }
  bool more = false;
  for (auto& node : nodes_) {
    more = node->turn(now_) || more;
  }
  if (::testing::Test::HasFatalFailure() || ::testing::Test::HasNonfatalFailure()) {
    return false;
  }
  if (round_ == scenario_.rounds && to_send_.empty() && nodes_[0]->done() && nodes_[1]->done()) {
    return false;
  }
  const Instant next =
      std::min({network_.next_delivery(), nodes_[0]->wake_at(), nodes_[1]->wake_at(), now_ + milliseconds(10)});
  now_ = more ? now_ + microseconds(1) : std::max(next, now_ + Duration{100});
  return true;
}

void LaneModel::run() {
  std::uint64_t steps = 0;
  while (step()) {
    ASSERT_LT(++steps, 5'000'000U) << "no progress: livelock";
    ASSERT_LT(now_.ns, (scenario_.faults_end + kHealedLimit).ns) << "not finished long after the last fault";
  }
  if (!::testing::Test::HasFailure()) {
    check_end();
  }
}

void LaneModel::check_end() {
  for (pages::PageNumber page = 0; page < history_.size(); ++page) {
    const PageHistory& history = history_[page];
    for (const std::uint32_t placed : history.placed) {
      ASSERT_EQ(placed, history.version) << "page " << page << " differs at the end";
    }
  }
  for (const auto& node : nodes_) {
    ASSERT_FALSE(node->lane(0).peer_dead(now_) || node->lane(1).peer_dead(now_));
  }
}

}  // namespace godwit::simulation
