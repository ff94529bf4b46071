#pragma once
// Key derivation with SHA-256: HKDF (RFC 5869), the labels of TLS 1.3 (RFC 8446 §7.1), as QUIC uses them (RFC 9001
// §5.1), and the two secrets that packets' keys come from. By OpenSSL. Any thread. Allocates: for setting up and
// rekeying, not for packets. No failure but lack of memory, which ends the process.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "dataplane/transport/keys.h"

namespace godwit::transport {

[[nodiscard]] Secret hkdf_extract(std::span<const std::byte> salt, std::span<const std::byte> input);
/// `out` is at most 255 * 32 bytes.
void hkdf_expand(std::span<const std::byte> secret, std::span<const std::byte> info, std::span<std::byte> out);
/// HKDF-Expand-Label of RFC 8446 §7.1; label and context are short (kLabelBytesMax, kContextBytesMax).
void hkdf_expand_label(const Secret& secret, std::string_view label, std::span<const std::byte> context,
                       std::span<std::byte> out);
inline constexpr std::size_t kLabelBytesMax = 16;
inline constexpr std::size_t kContextBytesMax = 64;

/// Who takes part in a flow: what either draws anew when it starts, and for each flow.
struct FlowEnd {
  std::array<std::byte, 16> boot_id{};
  std::uint32_t flow_id = 0;
};
/// The secret of one flow. Other ends, or the same after a restart, come to another one: even a migration's secret that
/// is handed out twice never seals two packets with one key and nonce.
[[nodiscard]] Secret flow_secret(const Secret& migration, const FlowEnd& initiator, const FlowEnd& responder);

/// Which end sends what is sealed: separates the keys of the two directions.
enum class Direction : std::uint8_t { kFromInitiator, kFromResponder };
/// The first secret of one direction of one lane; next_secret() makes the one after a rekeying (RFC 9001 §6.1).
[[nodiscard]] Secret lane_secret(const Secret& flow, std::uint16_t lane, Direction direction);
[[nodiscard]] Secret next_secret(const Secret& secret);

}  // namespace godwit::transport
