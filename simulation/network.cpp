#include "simulation/network.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace godwit::simulation {

Random::Random(std::uint64_t seed) {
  for (std::uint64_t& word : state_) {  // splitmix64
    seed += 0x9e3779b97f4a7c15;
    std::uint64_t z = seed;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    word = z ^ z >> 31;
  }
}

std::uint64_t Random::next() {
  const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const std::uint64_t shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

std::size_t Network::add_link(const LinkConfig& config) {
  links_.push_back({.config = config});
  return links_.size() - 1;
}

void Network::heal() {
  for (Link& link : links_) {
    const LinkConfig& old = link.config;
    link.config = {.delay = old.delay,
                   .jitter = old.jitter,
                   .rate_bps = old.rate_bps,
                   .queue_bytes = old.queue_bytes,
                   .datagram_bytes_max = old.datagram_bytes_max};
  }
}

bool Network::is_lost(Link& link, std::size_t bytes) {
  const LinkConfig& config = link.config;
  link.in_burst =
      link.in_burst ? !random_.chance_ppm(config.burst_leave_ppm) : random_.chance_ppm(config.burst_enter_ppm);
  return config.blackhole || random_.chance_ppm(config.loss_ppm) ||
         random_.chance_ppm(bytes <= kSmallBytes ? config.loss_small_ppm : config.loss_large_ppm) ||
         (link.in_burst && random_.chance_ppm(config.burst_loss_ppm));
}

std::optional<Instant> Network::depart(Instant now, Link& link, std::size_t bytes) {
  const LinkConfig& config = link.config;
  if (config.rate_bps == 0) {
    return now;
  }
  const Instant begins = std::max(now, link.busy_until);
  const auto waiting_bytes = static_cast<std::uint64_t>((begins - now).ns) * config.rate_bps / 8'000'000'000;
  if (waiting_bytes + bytes > config.queue_bytes) {
    return std::nullopt;
  }
  link.busy_until = begins + Duration{static_cast<std::int64_t>(bytes * 8'000'000'000 / config.rate_bps)};
  return link.busy_until;
}

void Network::send(Instant now, std::size_t index, std::span<const std::byte> bytes) {
  Link& link = links_[index];
  const LinkConfig& config = link.config;
  ++link.counters.sent;
  if (config.datagram_bytes_max != 0 && bytes.size() > config.datagram_bytes_max) {
    ++link.counters.too_large;
    return;
  }
  const std::optional<Instant> departs = depart(now, link, bytes.size());
  if (!departs) {
    ++link.counters.queue_drops;
    return;
  }
  if (is_lost(link, bytes.size())) {  // on the wire: it has taken its time there
    ++link.counters.lost;
    return;
  }
  Instant arrives = std::max(*departs + config.delay + random_.up_to(config.jitter), link.last_arrival);
  if (random_.chance_ppm(config.duplicate_ppm)) {
    ++link.counters.duplicated;
    deliver_at(arrives + random_.up_to(config.reorder_delay), index, copy(bytes));
  }
  if (random_.chance_ppm(config.reorder_ppm)) {
    ++link.counters.reordered;
    arrives = arrives + random_.up_to(config.reorder_delay);
  } else {
    link.last_arrival = arrives;
  }
  std::vector<std::byte> arriving = copy(bytes);
  damage(link, arriving);
  deliver_at(arrives, index, std::move(arriving));
}

std::vector<std::byte> Network::copy(std::span<const std::byte> bytes) {
  std::vector<std::byte> result;
  if (!free_bytes_.empty()) {
    result = std::move(free_bytes_.back());
    free_bytes_.pop_back();
  }
  result.assign(bytes.begin(), bytes.end());
  return result;
}

void Network::damage(Link& link, std::vector<std::byte>& bytes) {
  const LinkConfig& config = link.config;
  bool damaged = false;
  if (random_.chance_ppm(config.flip_ppm) && !bytes.empty()) {
    damaged = true;
    // Distinct bytes, so that no flip undoes another.
    const std::size_t first = random_.below(bytes.size());
    const std::size_t count = std::min<std::size_t>(random_.between(1, 8), bytes.size() - first);
    for (std::size_t i = first; i < first + count; ++i) {
      bytes[i] ^= static_cast<std::byte>(random_.between(1, 255));
    }
  }
  if (random_.chance_ppm(config.swap_ppm) && bytes.size() >= 16) {
    damaged = true;
    constexpr std::size_t kWord = sizeof(std::uint64_t);
    const std::size_t words = bytes.size() / kWord;
    const auto at = [&bytes](std::size_t word) { return bytes.begin() + static_cast<std::ptrdiff_t>(word * kWord); };
    const std::size_t a = random_.below(std::min<std::size_t>(words, 8));
    std::swap_ranges(at(a), at(a) + kWord, at(a == 0 ? 1 + random_.below(words - 1) : 0));
  }
  if (random_.chance_ppm(config.truncate_ppm)) {
    damaged = true;
    bytes.resize(random_.below(bytes.size() + 1));
  }
  if (random_.chance_ppm(config.extend_ppm)) {
    damaged = true;
    bytes.resize(bytes.size() + random_.between(1, 64), static_cast<std::byte>(random_.next()));
  }
  link.counters.damaged += damaged ? 1 : 0;
}

void Network::deliver_at(Instant at, std::size_t link, std::vector<std::byte> bytes) {
  std::size_t buffer = buffers_.size();
  if (free_buffers_.empty()) {
    buffers_.push_back(std::move(bytes));
  } else {
    buffer = free_buffers_.back();
    free_buffers_.pop_back();
    buffers_[buffer] = std::move(bytes);
  }
  events_.push({.at = at, .order = order_++, .link = link, .buffer = buffer});
}

std::optional<Delivered> Network::receive(Instant now) {
  if (events_.empty() || events_.top().at > now) {
    return std::nullopt;
  }
  const Event event = events_.top();
  events_.pop();
  free_buffers_.push_back(event.buffer);
  ++links_[event.link].counters.delivered;
  return Delivered{.link = event.link, .bytes = std::move(buffers_[event.buffer])};
}

}  // namespace godwit::simulation
