#include "dataplane/wire/receive_spread.h"

#include <algorithm>
#include <array>
#include <bit>

#include "dataplane/wire/bytes.h"
#include "dataplane/wire/headers.h"

namespace godwit::wire {

bool is_valid(const ReceiveSpread& spread) {
  return spread.key.size() >= kToeplitzKeyBytesMin && spread.key.size() <= kToeplitzKeyBytesMax &&
         std::has_single_bit(spread.table.size()) && spread.table.size() <= kSpreadEntriesMax && spread.queues > 0 &&
         spread.queues <= kSpreadQueuesMax &&
         std::ranges::all_of(spread.table, [&](std::uint8_t queue) { return queue < spread.queues; });
}

std::uint32_t toeplitz_hash(std::span<const std::byte> key, std::span<const std::byte> input) {
  GW_ASSERT(key.size() >= input.size() + sizeof(std::uint32_t));
  auto window = load_be<std::uint32_t>(key, 0);
  std::uint32_t hash = 0;
  for (std::size_t i = 0; i < input.size(); ++i) {
    const auto byte = std::to_integer<std::uint32_t>(input[i]);
    const auto next = std::to_integer<std::uint32_t>(key[i + sizeof(std::uint32_t)]);
    for (unsigned bit = 8; bit-- > 0;) {
      hash ^= (byte >> bit & 1) != 0 ? window : 0;
      window = window << 1 | (next >> bit & 1);
    }
  }
  return hash;
}

std::uint8_t queue_of(const ReceiveSpread& spread, const UdpEndpoint& source, const UdpEndpoint& destination) {
  GW_ASSERT(source.address.family == destination.address.family);
  std::array<std::byte, 36> input;
  const std::size_t bytes = address_bytes(source.address.family);
  store_ip(input, 0, source.address);
  store_ip(input, bytes, destination.address);
  store_be<std::uint16_t>(input, 2 * bytes, source.port);
  store_be<std::uint16_t>(input, 2 * bytes + 2, destination.port);
  const std::uint32_t hash = toeplitz_hash(spread.key, std::span(input).first(2 * bytes + 4));
  return spread.table[hash & (spread.table.size() - 1)];
}

std::optional<std::uint16_t> find_source_port(const ReceiveSpread& spread, const IpAddress& source,
                                              const UdpEndpoint& destination, std::uint8_t queue, std::uint16_t first,
                                              std::uint16_t stride) {
  GW_ASSERT(first >= kDynamicPortFirst && stride > 0 && kDynamicPortCount % stride == 0);
  for (std::uint32_t step = 0; step < kDynamicPortCount; step += stride) {
    const std::uint32_t offset = (first - std::uint32_t{kDynamicPortFirst} + step) % kDynamicPortCount;
    const auto port = static_cast<std::uint16_t>(kDynamicPortFirst + offset);
    if (queue_of(spread, {source, port}, destination) == queue) {
      return port;
    }
  }
  return std::nullopt;
}

}  // namespace godwit::wire
