#pragma once
// Seals packets and opens them: one Sealer and one Opener for each direction of a lane, at its two ends. A packet is
// header (clear) | body | tag; the tag covers both, AES-GCM encrypts the body. With AES-GCM keys change as in RFC 9001
// §6, each direction by itself: the sender goes over when a key has served long enough and the one before is confirmed,
// and says so by a bit in the header; the receiver follows when a packet of the next key proves genuine, and keeps the
// last key for what is late. In clear text the tag is XXH3-128, keyed, of the packet without its pages' bytes and of a
// hash of each page's bytes instead: so whoever sends knows a page by the very hash that lets it be placed.
// Owner: one lane; its lcore; no allocation after construction but at a rekeying, inside libcrypto. Failure: open()
// says what is wrong; then the body is nothing to look at, and nothing else has changed but a count of forgeries.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/time.h"
#include "dataplane/pages/page_digest.h"
#include "dataplane/transport/hkdf.h"
#include "dataplane/transport/keys.h"
#include "dataplane/wire/frames.h"
#include "dataplane/wire/packet.h"

namespace godwit::transport {

struct SealConfig {
  Cipher cipher = Cipher::kAes128Gcm;
  Secret secret;  // of the flow
  std::uint16_t lane = 0;
  Direction direction = Direction::kFromInitiator;
  KeyLimits limits;
};

/// What a packet of pages ends with.
struct SealedPages {
  std::size_t at = 0;           // where they begin in the packet, or would; 0: none
  std::span<std::byte> into{};  // where they are sent from if that is not behind the packet's text
  std::span<const std::span<const std::byte>> in_place{};  // where they lie if that is elsewhere
  std::span<const pages::PageHash> hashes{};  // clear text: hash_part() of each, of the packet's page or part
};

/// The header and what describes the pages of a packet of pages, at most.
inline constexpr std::size_t kPacketHeadBytes = wire::kHeaderBytes + wire::ack_block_bytes(wire::kAckWordsMax) +
                                                wire::kPrefixBytes + wire::kPagesPerPacketMax * wire::kPageDescBytes;

class Sealer {
 public:
  virtual ~Sealer() = default;
  /// Before each packet; goes over to the next key when it is time. False: no packet may be sealed any more.
  [[nodiscard]] virtual bool ready(Instant now, std::uint64_t packet_number) = 0;
  /// The flags that the packet's header must carry, of those that name a seal.
  [[nodiscard]] virtual std::uint8_t flags() const = 0;
  [[nodiscard]] virtual bool encrypts() const = 0;
  /// `packet` is header, body and room for the tag; ready() has been asked for this number. A number is sealed once.
  /// Pages in place: if encrypts(), `packet` or `into` has room for them, and each byte of them is read once; else
  /// `packet` is without them, they will be sent in front of its tag, and only their hashes are looked at here.
  virtual void seal(std::uint64_t packet_number, std::span<std::byte> packet, const SealedPages& pages = {}) = 0;
  /// The peer reports `largest` as received, in an authentic packet.
  virtual void on_reported(Instant now, std::uint64_t largest, Duration probe_timeout) = 0;
};

enum class Opened : std::uint8_t { kYes, kBadTag, kOldKey };

class Opener {
 public:
  virtual ~Opener() = default;
  /// Whether packets with these flags are sealed in the way that was agreed.
  [[nodiscard]] virtual bool takes(std::uint8_t flags) const = 0;
  /// Decrypts in place. `header` is the packet's own; probe_timeout: of the path, now. `from`: where what is behind the
  /// first kPacketHeadBytes is brought from, each byte read once; null: all is there.
  [[nodiscard]] virtual Opened open(Instant now, const wire::PacketHeader& header, std::span<std::byte> packet,
                                    Duration probe_timeout, const std::byte* from = nullptr) = 0;
  /// So many packets failed to open that the next one might succeed by chance.
  [[nodiscard]] virtual bool forgeries_used_up() const = 0;
  /// When tick() drops the last key; kNever when there is none.
  [[nodiscard]] virtual Instant deadline() const = 0;
  virtual void tick(Instant now) = 0;
};

[[nodiscard]] std::unique_ptr<Sealer> make_sealer(const SealConfig& config, Instant now);
[[nodiscard]] std::unique_ptr<Opener> make_opener(const SealConfig& config);

}  // namespace godwit::transport
