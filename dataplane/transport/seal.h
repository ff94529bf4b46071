#pragma once
// Seals packets: fills and verifies the 16-byte tag at their end, over header and body. One object seals one direction
// of one lane. Owner: one lane; its lcore; no allocation after construction. Failure: open() says no, and the packet is
// as it was.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "dataplane/transport/lane.h"
#include "dataplane/wire/packet.h"

namespace godwit::transport {

/// Which end sends what is sealed: separates the keys of the two directions.
enum class Direction : std::uint8_t { kFromInitiator, kFromResponder };

class Seal {
 public:
  virtual ~Seal() = default;
  /// The flags that a packet sealed so must carry, of those that name a seal.
  [[nodiscard]] virtual std::uint8_t flags() const = 0;
  /// `packet` is header, body and room for the tag.
  virtual void seal(std::span<std::byte> packet) = 0;
  /// May decrypt in place when the tag is right.
  [[nodiscard]] virtual bool open(std::span<std::byte> packet) = 0;
};

/// Checksum mode: XXH3-128 keyed by the lane's secret. Finds every corruption, and whatever is not of this lane and
/// direction; it is no protection from somebody who can read packets and wants to forge them.
[[nodiscard]] std::unique_ptr<Seal> make_checksum_seal(const Secret& secret, std::uint16_t lane, Direction direction);

}  // namespace godwit::transport
