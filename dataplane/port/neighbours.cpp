#include "dataplane/port/neighbours.h"

#include <algorithm>
#include <utility>

#include "dataplane/wire/datagram.h"

namespace godwit::port {
namespace {

bool same_subnet(const LocalAddress& local, const wire::IpAddress& other) {
  if (local.address.family != other.family) {
    return false;
  }
  for (unsigned bit = 0; bit < local.prefix_bits; bit += 8) {
    const unsigned bits = std::min(8U, local.prefix_bits - bit);
    const auto mask = static_cast<std::uint8_t>(0xff00U >> bits);
    if (((local.address.bytes[bit / 8] ^ other.bytes[bit / 8]) & mask) != 0) {
      return false;
    }
  }
  return true;
}

bool unspecified(const wire::IpAddress& address) { return address.bytes == wire::IpAddress{}.bytes; }

bool unicast(const wire::MacAddress& mac) { return (mac.bytes[0] & 1) == 0 && mac != wire::MacAddress{}; }

}  // namespace

Neighbours::Neighbours(NeighboursOptions options) : options_(std::move(options)) { answers_.reserve(kAnswersMax); }

bool Neighbours::is_local(const wire::IpAddress& address) const {
  return std::any_of(options_.addresses.begin(), options_.addresses.end(),
                     [&](const LocalAddress& local) { return local.address == address; });
}

std::optional<wire::IpAddress> Neighbours::source_for(const wire::IpAddress& peer) const {
  const LocalAddress* best = nullptr;
  for (const LocalAddress& local : options_.addresses) {
    if (same_subnet(local, peer)) {
      return local.address;
    }
    if (local.address.family == peer.family && best == nullptr) {
      best = &local;
    }
  }
  return best != nullptr ? std::optional(best->address) : std::nullopt;
}

wire::IpAddress Neighbours::next_hop(const wire::IpAddress& peer) const {
  const bool near = std::any_of(options_.addresses.begin(), options_.addresses.end(),
                                [&](const LocalAddress& local) { return same_subnet(local, peer); });
  const auto& gateway = peer.family == wire::IpFamily::kV4 ? options_.gateway_v4 : options_.gateway_v6;
  return near || !gateway ? peer : *gateway;
}

std::optional<wire::MacAddress> Neighbours::resolve(Instant now, const wire::IpAddress& peer) {
  const wire::IpAddress hop = next_hop(peer);
  auto found = entries_.find(hop);
  if (found == entries_.end()) {
    if (entries_.size() >= kEntriesMax) {
      std::erase_if(entries_, [&](const auto& item) { return item.second.wanted_until < now; });
      if (entries_.size() >= kEntriesMax) {
        return std::nullopt;
      }
    }
    found = entries_.emplace(hop, Entry{.ask_at = now}).first;
  }
  Entry& entry = found->second;
  if (entry.wanted_until < now && entry.ask_at <= now) {
    // Nobody asked for a while: what was known may be old, and the question is due at once.
    entry.ask_at = now;
  }
  entry.wanted_until = now + kWanted;
  return entry.mac;
}

void Neighbours::confirm(Instant now, const wire::IpAddress& peer) {
  if (now == confirmed_at_ && peer == confirmed_) {
    return;  // a burst brings many packets of one peer
  }
  confirmed_at_ = now;
  confirmed_ = peer;
  const auto found = entries_.find(next_hop(peer));
  if (found != entries_.end() && found->second.mac) {
    found->second.asked = 0;
    found->second.ask_at = now + kFresh;
  }
}

void Neighbours::learn(Instant now, const wire::IpAddress& address, const wire::MacAddress& mac) {
  const auto found = entries_.find(address);
  if (found == entries_.end() || !unicast(mac)) {
    ++counters_.ignored;
    return;
  }
  ++counters_.learned;
  found->second.mac = mac;
  found->second.asked = 0;
  found->second.ask_at = now + kFresh;
}

void Neighbours::answer(Answer answer) {
  if (answers_.size() == kAnswersMax) {
    ++counters_.ignored;
    return;
  }
  answers_.push_back(answer);
}

void Neighbours::on_frame(Instant now, std::span<const std::byte> frame) {
  switch (wire::classify_frame(frame)) {
    case wire::FrameKind::kArp:
      on_arp(now, frame);
      return;
    case wire::FrameKind::kNeighbour:
      on_neighbour(now, frame);
      return;
    case wire::FrameKind::kUdp:
    case wire::FrameKind::kOther:
      return;
  }
}

void Neighbours::on_arp(Instant now, std::span<const std::byte> frame) {
  const auto message = wire::parse_arp(frame);
  if (!message) {
    ++counters_.rejected;
    return;
  }
  if (is_local(message->sender)) {
    ++counters_.ignored;  // somebody claims our address, or an echo of our own frame
    return;
  }
  if (!unspecified(message->sender)) {
    learn(now, message->sender, message->sender_mac);
  }
  if (message->request && is_local(message->target) && unicast(message->sender_mac)) {
    answer({.arp = true, .to_mac = message->sender_mac, .to = message->sender, .ours = message->target});
  }
}

void Neighbours::on_neighbour(Instant now, std::span<const std::byte> frame) {
  const auto message = wire::parse_neighbour(frame);
  if (!message) {
    ++counters_.rejected;
    return;
  }
  if (!message->solicitation) {
    if (!is_local(message->target)) {
      learn(now, message->target, message->link_address.value_or(message->source_mac));
    }
    return;
  }
  if (!is_local(message->target) || is_local(message->source)) {
    ++counters_.ignored;
    return;
  }
  const bool probe = unspecified(message->source);  // duplicate address detection: tell everyone that it is ours
  const wire::MacAddress mac = message->link_address.value_or(message->source_mac);
  if (!probe) {
    learn(now, message->source, mac);
  }
  wire::IpAddress to = message->source;
  if (probe) {
    to.bytes = {0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  }
  if (probe || unicast(mac)) {
    answer({.arp = false,
            .to_mac = probe ? wire::multicast_mac(to) : mac,
            .to = to,
            .ours = message->target,
            .solicited = !probe});
  }
}

std::size_t Neighbours::build_answer(const Answer& answer, std::span<std::byte> out) const {
  if (answer.arp) {
    return wire::build_arp({.request = false,
                            .sender_mac = options_.mac,
                            .sender = answer.ours,
                            .target_mac = answer.to_mac,
                            .target = answer.to},
                           out);
  }
  return wire::build_neighbour({.solicitation = false,
                                .source_mac = options_.mac,
                                .destination_mac = answer.to_mac,
                                .source = answer.ours,
                                .destination = answer.to,
                                .target = answer.ours,
                                .link_address = options_.mac,
                                .solicited = answer.solicited,
                                .override_cache = true},
                               out);
}

std::size_t Neighbours::build_question(const wire::IpAddress& address, std::span<std::byte> out) const {
  const auto source = source_for(address);
  if (!source) {
    return 0;
  }
  if (address.family == wire::IpFamily::kV4) {
    return wire::build_arp(
        {.request = true, .sender_mac = options_.mac, .sender = *source, .target_mac = {}, .target = address}, out);
  }
  const wire::IpAddress group = wire::solicited_node_group(address);
  return wire::build_neighbour({.solicitation = true,
                                .source_mac = options_.mac,
                                .destination_mac = wire::multicast_mac(group),
                                .source = *source,
                                .destination = group,
                                .target = address,
                                .link_address = options_.mac},
                               out);
}

std::size_t Neighbours::poll_transmit(Instant now, std::span<std::byte> out) {
  if (out.size() < wire::kNeighbourFrameBytesMax) {
    return 0;
  }
  if (!answers_.empty()) {
    const Answer answer = answers_.back();
    answers_.pop_back();
    ++counters_.answered;
    return build_answer(answer, out);
  }
  for (auto& [address, entry] : entries_) {
    if (entry.ask_at > now) {
      continue;
    }
    if (entry.wanted_until < now) {
      entry.ask_at = entry.wanted_until + Duration{1};  // rests until somebody wants it again
      continue;
    }
    if (entry.mac && entry.asked >= kRefreshesMax) {
      entry.mac.reset();
    }
    const std::int64_t doublings = std::min<std::uint32_t>(entry.asked, 5);
    entry.ask_at = now + std::min(kAskLongest, kAskFirst * (std::int64_t{1} << doublings));
    ++entry.asked;
    ++counters_.asked;
    return build_question(address, out);
  }
  return 0;
}

Instant Neighbours::deadline() const {
  Instant first = answers_.empty() ? kNever : Instant{0};
  for (const auto& [address, entry] : entries_) {
    // An entry that nobody wants any more makes no question, so it is no reason to wake.
    if (entry.ask_at <= entry.wanted_until) {
      first = std::min(first, entry.ask_at);
    }
  }
  return first;
}

}  // namespace godwit::port
