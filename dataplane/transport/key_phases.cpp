#include "dataplane/transport/key_phases.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "base/check.h"
#include "dataplane/wire/bytes.h"

namespace godwit::transport {
namespace {

constexpr std::string_view kKeyLabel = "godwit key";
constexpr std::string_view kIvLabel = "godwit iv";

/// The parts of a packet as AES-GCM wants them.
struct Parts {
  std::span<std::byte> header, text;
  std::span<std::byte, wire::kTagBytes> tag;
  explicit Parts(std::span<std::byte> packet)
      : header(packet.first(wire::kHeaderBytes)),
        text(packet.subspan(wire::kHeaderBytes, packet.size() - wire::kHeaderBytes - wire::kTagBytes)),
        tag(packet.last<wire::kTagBytes>()) {}
};

SecretBytes<32> expand_key(Cipher cipher, const Secret& secret) {
  SecretBytes<32> key;
  hkdf_expand_label(secret, kKeyLabel, {}, std::span(key).first(AesGcm::key_bytes(cipher)));
  return key;
}

template <class Iv>
Iv expand_iv(const Secret& secret) {
  Iv iv;
  hkdf_expand_label(secret, kIvLabel, {}, iv);
  return iv;
}

}  // namespace

PhaseKey::PhaseKey(Cipher cipher, const Secret& secret)
    : PhaseKey(cipher, expand_key(cipher, secret), expand_iv<Iv>(secret)) {}

PhaseKey::PhaseKey(Cipher cipher, const SecretBytes<32>& key, const Iv& iv)
    : key_(cipher, std::span(key).first(AesGcm::key_bytes(cipher))), iv_(iv) {}

AesGcm::Nonce PhaseKey::nonce(std::uint16_t lane, std::uint64_t packet_number) const {
  AesGcm::Nonce nonce;
  wire::store_be<std::uint32_t>(nonce, 0, lane);
  wire::store_be<std::uint64_t>(nonce, sizeof(std::uint32_t), packet_number);
  std::ranges::transform(nonce, iv_, nonce.begin(), std::bit_xor<std::byte>());
  return nonce;
}

void PhaseKey::seal(std::uint16_t lane, std::uint64_t packet_number, std::span<std::byte> packet,
                    const SealedPages& pages) const {
  const Parts parts(packet);
  key_.seal(nonce(lane, packet_number), parts.header, parts.text, parts.tag, pages.in_place, pages.into);
}

bool PhaseKey::open(std::uint16_t lane, std::uint64_t packet_number, std::span<std::byte> packet,
                    const std::byte* from) const {
  const Parts parts(packet);
  if (from != nullptr && packet.size() > kPacketHeadBytes) {
    // Nothing says that decryption reads each byte once, so it reads what nobody else can write.
    std::memcpy(packet.data() + kPacketHeadBytes, from + kPacketHeadBytes, packet.size() - kPacketHeadBytes);
  }
  return key_.open(nonce(lane, packet_number), parts.header, parts.text, parts.tag);
}

// ---- AesSealer ----

AesSealer::AesSealer(const SealConfig& config, Instant now)
    : cipher_(config.cipher),
      lane_(config.lane),
      limits_(config.limits),
      secret_(lane_secret(config.secret, config.lane, config.direction)),
      since_(now) {
  key_.emplace(cipher_, secret_);
}

bool AesSealer::ready(Instant now, std::uint64_t packet_number) {
  const bool wanted = sealed_ >= limits_.rekey_packets || now - since_ >= limits_.rekey_age;
  if (wanted && now >= next_key_from_) {
    secret_ = next_secret(secret_);
    key_.emplace(cipher_, secret_);
    phase_ = !phase_;
    sealed_ = 0;
    first_number_ = packet_number;
    since_ = now;
    next_key_from_ = kNever;
  }
  return sealed_ < limits_.packets_max;
}

void AesSealer::seal(std::uint64_t packet_number, std::span<std::byte> packet, const SealedPages& pages) {
  GW_ASSERT(sealed_ < limits_.packets_max);
  ++sealed_;
  key_->seal(lane_, packet_number, packet, pages);
}

void AesSealer::on_reported(Instant now, std::uint64_t largest, Duration probe_timeout) {
  // RFC 9001 §6.1, §6.5: the peer has this key, and time to drop the last one.
  if (next_key_from_ == kNever && sealed_ > 0 && largest >= first_number_) {
    next_key_from_ = now + probe_timeout * kProbeTimeoutsKept;
  }
}

// ---- AesOpener ----

AesOpener::AesOpener(const SealConfig& config) : cipher_(config.cipher), lane_(config.lane), limits_(config.limits) {
  const Secret first = lane_secret(config.secret, config.lane, config.direction);
  next_secret_ = next_secret(first);
  key(0).emplace(cipher_, first);
  // Made before it is needed: how long a forged packet takes says nothing (RFC 9001 §6.3).
  key(1).emplace(cipher_, next_secret_);
}

Opened AesOpener::open(Instant now, const wire::PacketHeader& header, std::span<std::byte> packet,
                       Duration probe_timeout, const std::byte* from) {
  const bool same_bit = ((header.flags & wire::kFlagKeyPhase) != 0) == ((phase_ & 1) != 0);
  const bool before = !same_bit && header.packet_number < first_number_;
  if (before && drop_last_at_ == kNever) {
    return Opened::kOldKey;
  }
  const std::uint64_t phase = same_bit ? phase_ : before ? phase_ - 1 : phase_ + 1;
  if (!key(phase)->open(lane_, header.packet_number, packet, from)) {
    ++forgeries_;
    return Opened::kBadTag;
  }
  if (phase > phase_) {
    advance(now, header.packet_number, probe_timeout);
  }
  return Opened::kYes;
}

void AesOpener::advance(Instant now, std::uint64_t packet_number, Duration probe_timeout) {
  ++phase_;
  first_number_ = packet_number;
  drop_last_at_ = now + probe_timeout * kProbeTimeoutsKept;
  next_secret_ = next_secret(next_secret_);
  key(phase_ + 1).emplace(cipher_, next_secret_);
}

void AesOpener::tick(Instant now) {
  if (drop_last_at_ <= now) {
    key(phase_ - 1).reset();
    drop_last_at_ = kNever;
  }
}

}  // namespace godwit::transport
