#pragma once
// How a NIC spreads received UDP datagrams over its queues (receive-side scaling), so that who sends can choose source
// ports whose datagrams land where they are wanted. Pure; any thread. Failure: a port that is not found; the datagrams
// of the default one land on some other queue.
//
// The hash is Toeplitz's over source address, destination address, source port, destination port, in network order; its
// low bits choose an entry of a table. Source: "RSS hashing functions", Microsoft, and its verification suite.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "dataplane/wire/address.h"

namespace godwit::wire {

/// For two IPv6 addresses, two ports, and the 32 bits behind.
inline constexpr std::size_t kToeplitzKeyBytesMin = 40;
inline constexpr std::size_t kToeplitzKeyBytesMax = 64;    // 52 in the NICs known
inline constexpr std::size_t kSpreadEntriesMax = 2048;     // 512 in the NICs known
inline constexpr std::uint16_t kSpreadQueuesMax = 256;     // one byte an entry on the way to the sender
inline constexpr std::uint16_t kDynamicPortFirst = 49152;  // RFC 6335 §6
inline constexpr std::uint16_t kDynamicPortCount = 16384;

struct ReceiveSpread {
  std::vector<std::byte> key;
  std::vector<std::uint8_t> table;  // queue by the low bits of the hash
  std::uint16_t queues = 0;
};

/// Lengths and queues are in range; for what comes from outside.
[[nodiscard]] bool is_valid(const ReceiveSpread& spread);

/// Of input that is at least four bytes shorter than the key.
[[nodiscard]] std::uint32_t toeplitz_hash(std::span<const std::byte> key, std::span<const std::byte> input);

/// The queue on which the owner of a valid `spread` receives such datagrams. Both ends are of one family.
[[nodiscard]] std::uint8_t queue_of(const ReceiveSpread& spread, const UdpEndpoint& source,
                                    const UdpEndpoint& destination);

/// The first dynamic port for which datagrams land on `queue`, of `first`, `first` + `stride`, ... round the range.
/// `stride` divides kDynamicPortCount: searches from different remainders never find the same port.
[[nodiscard]] std::optional<std::uint16_t> find_source_port(const ReceiveSpread& spread, const IpAddress& source,
                                                            const UdpEndpoint& destination, std::uint8_t queue,
                                                            std::uint16_t first, std::uint16_t stride);

}  // namespace godwit::wire
