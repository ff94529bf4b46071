#include "tests/simulation/network.h"

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
    LinkConfig& config = link.config;
    config.loss_ppm = config.duplicate_ppm = config.corrupt_ppm = config.truncate_ppm = config.reorder_ppm = 0;
    config.blackhole = false;
  }
}

void Network::send(Instant now, std::size_t index, std::span<const std::byte> bytes) {
  Link& link = links_[index];
  const LinkConfig& config = link.config;
  ++link.counters.sent;
  if (config.blackhole || random_.chance_ppm(config.loss_ppm)) {
    ++link.counters.lost;
    return;
  }
  Instant departs = now;
  if (config.rate_bps > 0) {
    const Instant begins = std::max(now, link.busy_until);
    const auto waiting_bytes = static_cast<std::uint64_t>((begins - now).ns) * config.rate_bps / 8'000'000'000;
    if (waiting_bytes + bytes.size() > config.queue_bytes) {
      ++link.counters.queue_drops;
      return;
    }
    departs = begins + Duration{static_cast<std::int64_t>(bytes.size() * 8'000'000'000 / config.rate_bps)};
    link.busy_until = departs;
  }
  const auto jitter = static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(config.jitter.ns) + 1));
  Instant arrives = std::max(departs + config.delay + Duration{jitter}, link.last_arrival);
  const auto later = [&] {
    return Duration{static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(config.reorder_delay.ns) + 1))};
  };
  std::vector<std::byte> copy(bytes.begin(), bytes.end());
  if (random_.chance_ppm(config.duplicate_ppm)) {
    ++link.counters.duplicated;
    deliver_at(arrives + later(), index, copy);
  }
  if (random_.chance_ppm(config.reorder_ppm)) {
    ++link.counters.reordered;
    arrives = arrives + later();
  } else {
    link.last_arrival = arrives;
  }
  damage(link, copy);
  deliver_at(arrives, index, std::move(copy));
}

void Network::damage(Link& link, std::vector<std::byte>& bytes) {
  if (random_.chance_ppm(link.config.corrupt_ppm) && !bytes.empty()) {
    ++link.counters.corrupted;
    // Distinct bytes, so that no flip undoes another.
    const std::size_t first = random_.below(bytes.size());
    const std::size_t count = std::min<std::size_t>(random_.between(1, 8), bytes.size() - first);
    for (std::size_t i = first; i < first + count; ++i) {
      bytes[i] ^= static_cast<std::byte>(random_.between(1, 255));
    }
  }
  if (random_.chance_ppm(link.config.truncate_ppm)) {
    ++link.counters.truncated;
    bytes.resize(random_.below(bytes.size() + 1));
  }
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
