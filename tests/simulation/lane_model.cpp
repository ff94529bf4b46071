#include "tests/simulation/lane_model.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "dataplane/transport/page_layout.h"
#include "dataplane/wire/packet.h"

namespace godwit::simulation {

namespace {

/// After the last fault: what is left may need some probe timeouts, each at most 200 ms, and the time of its bytes.
constexpr Duration kHealedLimit = milliseconds(5'000);
constexpr Duration kHealedLimitPacket = microseconds(100);  // on the slowest link, or in its share of a window
constexpr std::int64_t kHealedLimitRoundTrips = 50;
constexpr Duration kDeathLimit = kPeerTimeout + milliseconds(1'000);
constexpr std::uint64_t kStepsMax = 3'000'000;
constexpr std::size_t kRecordedMax = 64;

}  // namespace

LaneModel::LaneModel(const Scenario& scenario, std::uint64_t seed, bool trace)
    : scenario_(scenario), trace_(trace), random_(seed ^ 0x6c616e65), network_(seed) {
  for (std::size_t i = 0; i < 2; ++i) {
    links_[i] = network_.add_link(scenario.links[i]);
    nodes_[i] = std::make_unique<Node>(*this, i, Clock(random_));
  }
  start_life();
}

std::uint32_t LaneModel::flow_id(std::size_t node, std::uint32_t life) const {
  return static_cast<std::uint32_t>(0x1001 + node * 0x1001 + (scenario_.same_flow_ids ? 0 : life * 0x10000));
}

/// The two hosts meet anew: another migration, that begins with its first round. RAM is as it was left.
void LaneModel::start_life() {
  ++life_;
  life_began_ = now_;
  round_ = 0;
  to_send_ = {};
  in_hand_ = {};
  history_.assign(scenario_.pages, {});
  for (const auto& node : nodes_) {
    node->start(now_, life_);
  }
  crash_at_ = life_ < scenario_.lives ? now_ + scenario_.crash_after : kNever;
  crashed_at_ = told_at_ = kNever;
}

void LaneModel::begin_round() {
  ++round_;
  const bool last = round_ == scenario_.rounds;
  for (pages::PageNumber page = 0; page < scenario_.pages;) {
    const bool zero = random_.chance_ppm(200'000);
    const std::uint64_t end = lane_of(page) == 0 ? scenario_.priority_pages : scenario_.pages;
    const std::uint64_t count = zero ? std::min(random_.between(1, 20), end - page) : 1;
    if (last || random_.chance_ppm(700'000)) {
      for (pages::PageNumber i = page; i < page + count; ++i) {
        history_[i].handed_in_round[round_] = history_[i].version;
      }
      to_send_[lane_of(page)].push_back({.page = page, .count = count, .round = round_, .zero = zero});
    }
    page += count;
  }
}

/// All that the lanes have taken is acknowledged.
bool LaneModel::round_over() const {
  return to_send_[0].empty() && to_send_[1].empty() && nodes_[0]->lane(1).quiet() && in_hand_[0].empty();
}

void LaneModel::place(const transport::Work& work, std::uint32_t offset, std::span<const std::byte> bytes) {
  verdict_.require(work.page < history_.size(), "content", "a page that does not exist");
  if (verdict_.broken()) {
    return;
  }
  PageHistory& history = history_[work.page];
  const auto handed = history.handed_in_round.find(work.round);
  if (handed == history.handed_in_round.end()) {
    return verdict_.require(false, "content", "page " + std::to_string(work.page) + " was never sent in this round");
  }
  verdict_.require(work.round >= history.placed_round, "rounds-grow",
                   "page " + std::to_string(work.page) + " of round " + std::to_string(work.round) + " after round " +
                       std::to_string(history.placed_round));
  history.placed_round = work.round;
  if (!work.zero) {
    nodes_[0]->check_told(work.page, bytes);
  }
  const std::size_t length = work.zero ? pages::kPageSize : bytes.size();
  for (std::size_t at = 0; at < length; at += kLineBytes) {
    Word word{work.page, life_, handed->second};
    if (!work.zero) {
      std::uint64_t encoded = 0;
      std::memcpy(&encoded, bytes.data() + at, sizeof(encoded));
      word = Word::decode(encoded);
    }
    verdict_.require(word.page == work.page && word.life == life_, "content", "bytes of another page, or another life");
    verdict_.require(word.version >= handed->second && word.version <= history.version, "content",
                     "a version that the source did not hold then");
    verdict_.require(word.version >= history.acknowledged_version, "newest-wins", "older bytes came back");
    history.placed[(offset + at) / kLineBytes] = word.version;
  }
}

void LaneModel::acknowledged(const transport::Work& work) {
  verdict_.require(in_hand_[lane_of(work.page)].erase(work.page) == 1, "conservation",
                   "a page is acknowledged that no lane has");
  verdict_.require(work.round == round_, "conservation", "a round ended before all of it was acknowledged");
  for (pages::PageNumber page = work.page; page < work.page + work.count && !verdict_.broken(); ++page) {
    PageHistory& history = history_[page];
    const std::uint32_t handed = history.handed_in_round.at(work.round);
    const bool placed = std::all_of(history.placed.begin(), history.placed.end(),
                                    [handed](std::uint32_t version) { return version >= handed; });
    verdict_.require(placed, "acknowledged-is-placed",
                     "page " + std::to_string(page) + " is older than at its hand-out");
    history.acknowledged_version = handed;
  }
}

void LaneModel::transmit(std::size_t from, std::uint16_t lane, std::span<const std::byte> datagram) {
  trace(datagram.size() << 20 ^ static_cast<std::uint64_t>(now_.ns));
  if (!healed_ && random_.chance_ppm(scenario_.replay_ppm > 0 ? 100'000 : 0)) {
    Recorded copy{1 - from, {datagram.begin(), datagram.end()}};
    if (recorded_.size() < kRecordedMax) {
      recorded_.push_back(std::move(copy));
    } else {
      recorded_[random_.below(recorded_.size())] = std::move(copy);
    }
  }
  if (!healed_ && scenario_.lane_dead && lane == 1 && now_ - life_began_ >= scenario_.blackhole_after) {
    return;
  }
  network_.send(now_, links_[from], datagram);
}

/// As it was; back to its sender; into the other lane; as if it were of this life; or as if its sender had changed
/// keys.
void LaneModel::replay() {
  Recorded copy = recorded_[random_.below(recorded_.size())];
  switch (random_.below(5)) {
    case 0:
      copy.to = 1 - copy.to;
      break;
    case 1:
      copy.bytes[2] ^= std::byte{1};
      break;
    case 2: {
      const std::uint32_t id = flow_id(copy.to, life_);
      std::memcpy(copy.bytes.data() + 4, &id, sizeof(id));
      break;
    }
    case 3: {
      std::uint64_t number = 0;
      std::memcpy(&number, copy.bytes.data() + 8, sizeof(number));
      number += random_.between(1, 64);
      std::memcpy(copy.bytes.data() + 8, &number, sizeof(number));
      copy.bytes[1] ^= std::byte{wire::kFlagKeyPhase};
      break;
    }
    default:
      break;
  }
  nodes_[copy.to]->arrive(std::move(copy.bytes));
}

void LaneModel::faults() {
  if (!healed_ && life_ == scenario_.lives && now_ - life_began_ >= scenario_.faults_end) {
    network_.heal();
    healed_ = true;
  }
  const Duration age = now_ - life_began_;
  if (scenario_.mtu_shrinks && age >= scenario_.shrinks_after) {
    network_.link(links_[0]).datagram_bytes_max = network_.link(links_[1]).datagram_bytes_max =
        healed_ && scenario_.mtu_heals ? 0 : scenario_.narrow_datagram_bytes;
  }
  if (healed_) {
    return;
  }
  const bool dark = scenario_.blackhole && age >= scenario_.blackhole_after;
  network_.link(links_[0]).blackhole = network_.link(links_[1]).blackhole = dark;
  if (!recorded_.empty() && random_.chance_ppm(scenario_.replay_ppm)) {
    replay();
  }
  const auto a_while = [this] { return now_ + milliseconds(1) + random_.up_to(milliseconds(49)); };
  if (random_.chance_ppm(scenario_.pause_ppm)) {
    nodes_[random_.below(2)]->pause_until(a_while());
  }
  if (random_.chance_ppm(scenario_.stop_reading_ppm)) {
    nodes_[random_.below(2)]->stop_reading_until(a_while());
  }
}

/// The host that crashed is back when its peer knows that this life is over: it notices, or is told.
void LaneModel::crash_and_restart() {
  Node& survivor = *nodes_[1 - scenario_.crashes];
  if (now_ >= crash_at_) {
    crash_at_ = kNever;
    crashed_at_ = now_;
    nodes_[scenario_.crashes]->crash();
  }
  // Who waits for nothing notices nothing; the last acknowledgements may still be under way.
  if (crashed_at_ != kNever && told_at_ == kNever && (scenario_.crash_is_told || !survivor.waits())) {
    told_at_ = now_ + random_.up_to(milliseconds(50));
  }
  if (crashed_at_ == kNever) {
    return verdict_.require(!survivor.peer_dead(now_), "no-false-death", "a live peer is called dead");
  }
  const Instant silent_since = std::max(crashed_at_, survivor.heard_at());
  verdict_.require(told_at_ != kNever || now_ - silent_since <= kDeathLimit, "death-noticed",
                   "a dead peer is not noticed");
  if (now_ >= told_at_ || survivor.peer_dead(now_)) {
    verdict_.require(told_at_ != kNever || now_ - crashed_at_ >= kPeerTimeout - milliseconds(100), "no-false-death",
                     "called dead before its time");
    start_life();
  }
}

bool LaneModel::finished() const {
  return life_ == scenario_.lives && round_ == scenario_.rounds && round_over() && nodes_[0]->done() &&
         nodes_[1]->done();
}

void LaneModel::print_state() {
  if (!trace_ || now_ < print_at_) {
    return;
  }
  print_at_ = now_ + milliseconds(20);
  fmt::print("life {} {:>9} us, round {}, {} pages to go{}{}\n", life_, (now_ - life_began_).us(), round_,
             to_send_[0].size() + to_send_[1].size() + in_hand_[0].size() + in_hand_[1].size(),
             healed_ ? ", healed" : "", crashed_at_ != kNever ? ", crashed" : "");
  for (std::size_t i = 0; i < 2 * kLanes; ++i) {
    if (nodes_[i / kLanes]->alive()) {
      const transport::Lane& lane = nodes_[i / kLanes]->lane(i % kLanes);
      fmt::print("  node {} lane {}: sent {}, in flight {} of {}, rtt {} us, lost {}, probe timeouts {}, {}\n",
                 i / kLanes, i % kLanes, std::uint64_t{lane.counters().packets_sent}, lane.in_flight_packets(),
                 lane.congestion_window_packets(), lane.smoothed_rtt().us(),
                 std::uint64_t{lane.counters().packets_lost}, std::uint64_t{lane.counters().probe_timeouts},
                 lane.quiet() ? "quiet" : "busy");
    }
  }
}

bool LaneModel::step() {
  print_state();
  faults();
  crash_and_restart();
  if (guest_runs() && nodes_[0]->alive()) {
    if (random_.chance_ppm(scenario_.write_ppm)) {
      ++history_[random_.below(history_.size())].version;
    }
    if (round_over()) {
      verdict_.require(in_hand_[1].empty(), "conservation", "a round ended with pages in hand");
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
  if (verdict_.broken() || finished()) {
    return false;
  }
  const Instant next = std::min({network_.next_delivery(), nodes_[0]->wake_at(now_), nodes_[1]->wake_at(now_),
                                 crash_at_, told_at_, now_ + milliseconds(10)});
  now_ = more ? now_ + microseconds(1) : std::max(next, now_ + Duration{100});
  return true;
}

std::string LaneModel::run() {
  const std::uint64_t packets = scenario_.pages * scenario_.rounds * transport::kPartsMax + scenario_.messages * 64;
  const Duration limit = scenario_.faults_end + kHealedLimit + kHealedLimitPacket * static_cast<std::int64_t>(packets) +
                         scenario_.base_rtt * kHealedLimitRoundTrips;
  for (std::uint64_t steps = 0; step(); ++steps) {
    verdict_.require(steps < kStepsMax, "progress", "steps without end");
    verdict_.require(!healed_ || now_ - life_began_ <= limit, "progress", "not finished long after the last fault");
  }
  if (!verdict_.broken()) {
    check_end();
  }
  return verdict_.text();
}

void LaneModel::check_end() {
  for (const PageHistory& history : history_) {
    const bool equal = std::all_of(history.placed.begin(), history.placed.end(),
                                   [&history](std::uint32_t version) { return version == history.version; });
    verdict_.require(equal, "content", "a page differs at the end");
  }
  verdict_.require(in_hand_[0].empty() && in_hand_[1].empty(), "conservation", "pages are left in hand");
}

}  // namespace godwit::simulation
