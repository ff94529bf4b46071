#pragma once
// What a lane's packets are protected with: cipher, secret, limits. Values; any thread. Secrets live in RAM only and
// are overwritten when they go.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/time.h"
#include "dataplane/wire/packet.h"

namespace godwit::transport {

/// kNone is a keyed checksum: against damage and strays, not against an enemy who can read packets.
enum class Cipher : std::uint8_t { kAes128Gcm, kAes256Gcm, kNone };

/// Bytes that nobody finds in memory afterwards.
template <std::size_t kBytes>
class SecretBytes : public std::array<std::byte, kBytes> {
 public:
  SecretBytes() : std::array<std::byte, kBytes>{} {}
  SecretBytes(const SecretBytes&) = default;
  SecretBytes& operator=(const SecretBytes&) = default;
  ~SecretBytes() { ::explicit_bzero(this->data(), kBytes); }
};

using Secret = SecretBytes<32>;

/// When a direction of a lane goes over to its next key, and when it closes rather than weaken what it has. Defaults
/// for AES-GCM; tests take smaller ones.
struct KeyLimits {
  /// Half of packets_max: time for the peer to confirm the key before, without which there is no next one.
  std::uint64_t rekey_packets = std::uint64_t{1} << 22;
  Duration rekey_age = milliseconds(10 * 60 * 1000);
  /// Packets sealed with one key: RFC 9001 §6.6 (AES-GCM, packets of up to 2^16 bytes; appendix B.1.1).
  std::uint64_t packets_max = std::uint64_t{1} << 23;
  /// Packets that fail to open, over all keys of the direction: RFC 9001 §6.6, appendix B.1.2.
  std::uint64_t forgeries_max = std::uint64_t{1} << 52;
  /// Numbers end long before the nonces do.
  std::uint64_t packet_number_max = wire::kPacketNumberMax;
};

}  // namespace godwit::transport
