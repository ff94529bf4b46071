#include "tests/simulation/lane_node.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "dataplane/transport/credit.h"
#include "dataplane/transport/page_layout.h"
#include "dataplane/wire/packet.h"
#include "simulation/in_place.h"
#include "tests/simulation/lane_model.h"

namespace godwit::simulation {

namespace {

using transport::Received;

constexpr std::size_t kTransmitBurst = 32;

std::byte message_byte(std::size_t sender, std::uint32_t number, std::size_t at) {
  return static_cast<std::byte>((number * 2654435761U + sender * 97 + at * 31) >> 3);
}

std::size_t message_size(std::size_t sender, std::uint32_t number) {
  Random random(number * 2 + sender);
  return random.chance_ppm(200'000) ? random.below(transport::kMessageBytesMax + 1) : random.below(300);
}

}  // namespace

void Node::start(Instant now, std::uint32_t life) {
  life_ = life;
  messages_sent_ = messages_received_ = 0;
  told_.clear();
  for (std::uint16_t i = 0; i < kLanes; ++i) {
    transport::LaneConfig config;
    config.local_flow_id = model_.flow_id(index_, life);
    config.peer_flow_id = model_.flow_id(1 - index_, life);
    config.lane = i;
    config.initiator = index_ == 0;
    config.secret = secret();
    config.cipher = model_.scenario_.cipher;
    config.key_limits = model_.scenario_.key_limits;
    config.datagram_bytes_max = model_.scenario_.datagram_bytes;
    config.path_mtu = model_.scenario_.path_mtu;
    config.credit_packets = model_.scenario_.credit_packets[index_];
    config.peer_timeout = kPeerTimeout;
    config.base_rtt = model_.scenario_.base_rtt;
    lanes_[i] = std::make_unique<transport::Lane>(config, *this, clock_.local(now));
    logs_[i] = {};
  }
}

transport::Secret Node::secret() const {
  transport::Secret secret;
  secret.fill(static_cast<std::byte>(life_));
  return secret;
}

void Node::crash() {
  lanes_ = {};
  inbox_.clear();
}

bool Node::next_work(std::uint16_t lane, transport::Work& out) {
  auto& to_send = model_.to_send_[lane];
  if (index_ != 0 || to_send.empty()) {
    return false;
  }
  out = to_send.front();
  to_send.pop_front();
  model_.verdict_.require(model_.in_hand_[lane].insert(out.page).second, "conservation", "a page is handed out twice");
  return true;
}

std::span<const std::byte> Node::page_in_place(pages::PageNumber page, bool hash_in_tag) {
  if (!model_.scenario_.in_place || (model_.scenario_.compares_content && !hash_in_tag)) {
    return {};
  }
  ram_.resize(model_.history_.size() * pages::kPageSize);
  const std::span<std::byte> bytes = std::span(ram_).subspan(page * pages::kPageSize, pages::kPageSize);
  read_page(page, 0, bytes);
  return bytes;
}

bool Node::wants_hash(pages::PageNumber /*page*/, std::uint32_t /*offset*/) const {
  return model_.scenario_.compares_content;
}

void Node::check_told(pages::PageNumber page, std::span<const std::byte> bytes) {
  if (!model_.scenario_.compares_content) {
    return;
  }
  // What is in parts was copied: all of the page is as the part.
  std::array<std::byte, pages::kPageSize> whole;
  for (std::size_t at = 0; at < whole.size(); at += kLineBytes) {
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at % bytes.size()), kLineBytes, whole.begin() + at);
  }
  model_.verdict_.require(told_[page].contains(pages::hash_page(whole)), "told",
                          "page " + std::to_string(page) + " was placed as its source was never told that it left");
}

void Node::tear(const transport::PagesInPlace& in_place) {
  const std::span<const std::byte> piece = in_place.pieces[model_.random_.below(in_place.count)];
  const auto at = static_cast<std::size_t>(piece.data() - ram_.data()) + model_.random_.below(piece.size());
  const pages::PageNumber page = at / pages::kPageSize;
  ++model_.history_[page].version;
  const std::size_t line = at / kLineBytes * kLineBytes;
  read_page(page, static_cast<std::uint32_t>(line % pages::kPageSize),
            std::span(ram_).subspan(line, (page + 1) * pages::kPageSize - line));
}

void Node::read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) {
  model_.verdict_.require(offset % kLineBytes == 0, "content", "a part does not begin at a line");
  const std::uint64_t word = Word{page, life_, model_.history_[page].version}.encode();
  for (std::size_t at = 0; at < out.size(); at += sizeof(word)) {
    std::memcpy(out.data() + at, &word, sizeof(word));
  }
}

void Node::on_acknowledged(const transport::Work& work) { model_.acknowledged(work); }

void Node::on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                   std::span<const std::byte> bytes) {
  model_.verdict_.require(lane == model_.lane_of(page), "content", "a page came on another lane than it was given to");
  placements_.push_back({.round = round, .page = page, .offset = offset, .bytes = bytes, .zero = false});
}

void Node::on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count) {
  model_.verdict_.require(lane == model_.lane_of(first), "content", "zeros came on another lane");
  for (pages::PageNumber page = first; page < first + count; ++page) {
    placements_.push_back({.round = round, .page = page, .offset = 0, .bytes = {}, .zero = true});
  }
}

void Node::on_message(std::span<const std::byte> message) {
  const std::size_t sender = 1 - index_;
  const std::uint32_t number = messages_received_++;
  bool equal = message.size() == message_size(sender, number);
  for (std::size_t i = 0; equal && i < message.size(); ++i) {
    equal = message[i] == message_byte(sender, number, i);
  }
  model_.verdict_.require(equal, "messages", "message " + std::to_string(number) + " is not the one sent");
}

void Node::arrive(std::vector<std::byte> datagram) {
  if (alive() && inbox_.size() < model_.scenario_.inbox_datagrams_max[index_]) {
    inbox_.push_back(std::move(datagram));
  } else {
    model_.network_.recycle(std::move(datagram));
  }
}

Node::Visible Node::visible(std::size_t lane) const {
  const transport::Lane& l = *lanes_[lane];
  return {l.deadline(), l.in_flight_packets(), l.congestion_window_packets(), l.smoothed_rtt(), l.quiet()};
}

void Node::receive(Instant local, std::vector<std::byte>& datagram) {
  // The wire's lane field chooses the lane, as the port's queue does; damaged ones go somewhere.
  const std::size_t lane = datagram.size() > 2 ? static_cast<std::size_t>(datagram[2]) % kLanes : 0;
  const std::uint64_t hash = XXH3_64bits(datagram.data(), datagram.size());
  std::vector<std::byte> header(
      datagram.begin(), datagram.begin() + static_cast<std::ptrdiff_t>(std::min(datagram.size(), wire::kHeaderBytes)));
  const Visible before = visible(lane);
  const std::size_t placements = placements_.size();
  const std::uint64_t taken_in = lanes_[lane]->counters().packets_received;
  const Received received = lanes_[lane]->on_packet(local, datagram);
  check_received(lane, header, hash, received);
  if (lanes_[lane]->counters().packets_received != taken_in) {
    heard_at_ = model_.now_;
  }
  // What has a bad number or tag changes nothing; a late packet whose tag is good may acknowledge something.
  const bool refused = received != Received::kAccepted && received != Received::kTooOld;
  model_.verdict_.require(!refused || (visible(lane) == before && placements == placements_.size()),
                          "refused-is-nothing", "a refused datagram changed the lane");
}

void Node::check_received(std::size_t lane, std::span<const std::byte> header, std::uint64_t hash, Received received) {
  std::uint64_t number = 0;
  if (header.size() >= wire::kHeaderBytes) {
    std::memcpy(&number, header.data() + 8, sizeof(number));
  }
  model_.trace(static_cast<std::uint64_t>(received) ^ number << 8);
  model_.verdict_.require(received != Received::kBadBody, "honest-peer", "a packet was refused after its tag was good");
  const Log& theirs = model_.nodes_[1 - index_]->logs_[lane];
  const bool genuine =
      model_.nodes_[1 - index_]->life_ == life_ && number < theirs.sent.size() && theirs.sent[number] == hash;
  model_.verdict_.require(!genuine || received != Received::kBeyondCredit, "honest-peer", "refused as beyond credit");
  if (received != Received::kAccepted) {
    return;
  }
  model_.verdict_.require(genuine, "authentic", "accepted what the peer of this life never sent");
  Log& log = logs_[lane];
  log.accepted.resize(std::max<std::size_t>(log.accepted.size(), number + 1));
  model_.verdict_.require(!log.accepted[number], "number-once", "packet " + std::to_string(number) + " accepted twice");
  log.accepted[number] = true;
  log.largest_accepted = std::max(log.largest_accepted, number);
  log.any_accepted = true;
}

void Node::flush() {
  for (const Placement& p : placements_) {
    model_.place({.page = p.page, .round = p.round, .zero = p.zero}, p.offset, p.bytes);
  }
  placements_.clear();
  for (std::vector<std::byte>& datagram : burst_) {
    model_.network_.recycle(std::move(datagram));
  }
  burst_.clear();
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

void Node::check_sent(std::uint16_t lane, std::span<const std::byte> datagram, std::uint32_t in_flight_before,
                      std::uint32_t window_before) {
  std::vector<std::byte> copy(datagram.begin(), datagram.end());
  const auto packet = wire::parse_packet(copy);
  model_.verdict_.require(packet.has_value(), "well-formed", "sent what the parser refuses");
  if (!packet) {
    return;
  }
  const std::uint64_t number = packet->header.packet_number;
  Log& log = logs_[lane];
  model_.verdict_.require(
      number == log.sent.size(), "number-once",
      "sent number " + std::to_string(number) + " as the " + std::to_string(log.sent.size()) + ". packet");
  const KeyOwner owner{
      .secret = secret(),
      .cipher = model_.scenario_.cipher,
      .lane = lane,
      .direction = index_ == 0 ? transport::Direction::kFromInitiator : transport::Direction::kFromResponder};
  const std::string sealed_wrong = model_.keys_.on_sent(owner, datagram);
  model_.verdict_.require(sealed_wrong.empty(), "keys", sealed_wrong);
  log.sent.push_back(XXH3_64bits(datagram.data(), datagram.size()));
  // Acknowledgements and probes are exempt from credit and window.
  const bool exempt = packet->header.type == wire::PacketType::kAck ||
                      packet->header.type == wire::PacketType::kProbe ||
                      (packet->header.flags & wire::kFlagAckNow) != 0;
  if (exempt) {
    return;
  }
  const Node& peer = *model_.nodes_[1 - index_];
  std::uint64_t edge = transport::kCreditPacketsInitial - 1;
  if (peer.life_ == life_ && peer.logs_[lane].any_accepted) {
    edge = std::max(edge, peer.logs_[lane].largest_accepted + model_.scenario_.credit_packets[1 - index_]);
  }
  model_.verdict_.require(number <= edge, "credit", "packet " + std::to_string(number) + " is beyond it");
  model_.verdict_.require(
      window_allows(lane, packet->header.type, in_flight_before, window_before), "window",
      std::to_string(in_flight_before) + " in flight, " + std::to_string(window_before) + " allowed");
}

/// On the priority lane pages are bound by their number, and one packet of messages is always allowed beside them, and
/// beside a probe.
bool Node::window_allows(std::uint16_t lane, wire::PacketType type, std::uint32_t in_flight,
                         std::uint32_t window) const {
  const std::size_t works = index_ == 0 ? model_.in_hand_[0].size() : 0;
  if (lane == 0 && type != wire::PacketType::kMessage) {
    return works <= transport::kPriorityWorksMax;
  }
  return in_flight < window || (lane == 0 && works > 0 && in_flight <= works * transport::kPartsMax + 1);
}

std::size_t Node::transmit(Instant now, std::uint16_t lane) {
  transport::Lane& l = *lanes_[lane];
  std::array<std::byte, wire::kDatagramBytesMaximum> buffer;
  const std::span<std::byte> out = std::span(buffer).first(model_.scenario_.datagram_bytes);
  std::size_t sent = 0;
  for (; sent < kTransmitBurst; ++sent) {
    const std::uint32_t in_flight = l.in_flight_packets();
    const std::uint32_t window = l.congestion_window_packets();
    transport::PagesInPlace in_place;
    const std::size_t length = l.poll_transmit(clock_.local(now), out, &in_place);
    if (length == 0) {
      break;
    }
    check_sent(lane, as_sent(out.first(length), in_place), in_flight, window);
    if (in_place.count != 0 && model_.guest_runs() && model_.random_.chance_ppm(model_.scenario_.tear_ppm)) {
      tear(in_place);
    }
    model_.transmit(index_, lane, as_sent(out.first(length), in_place));
  }
  return sent;
}

bool Node::turn(Instant now) {
  if (!alive() || now < paused_until_) {
    return false;
  }
  offer_messages();
  for (std::size_t i = 0; now >= reads_from_ && !inbox_.empty() && i < model_.scenario_.burst_datagrams[index_]; ++i) {
    burst_.push_back(std::move(inbox_.front()));
    inbox_.pop_front();
    receive(clock_.local(now), burst_.back());
  }
  flush();
  bool more = now >= reads_from_ && !inbox_.empty();
  for (std::uint16_t lane = 0; lane < kLanes; ++lane) {
    if (lanes_[lane]->deadline() <= clock_.local(now)) {
      lanes_[lane]->tick(clock_.local(now));
    }
    more = transmit(now, lane) == kTransmitBurst || more;
  }
  return more;
}

Instant Node::wake_at(Instant now) const {
  if (!alive()) {
    return kNever;
  }
  Instant at = clock_.world(std::min(lanes_[0]->deadline(), lanes_[1]->deadline()));
  if (!inbox_.empty()) {
    at = std::min(at, std::max(now, reads_from_));
  }
  return std::max(at, paused_until_);
}

bool Node::done() const {
  return alive() && messages_sent_ == model_.scenario_.messages && messages_received_ == model_.scenario_.messages &&
         !waits();
}

bool Node::peer_dead(Instant now) const {
  return alive() && (lanes_[0]->peer_dead(clock_.local(now)) || lanes_[1]->peer_dead(clock_.local(now)));
}

}  // namespace godwit::simulation
