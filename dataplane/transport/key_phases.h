#pragma once
// Internal to transport: AES-GCM's Sealer and Opener (seal.h), with their changes of keys.

#include <array>
#include <optional>

#include "dataplane/transport/aes_gcm.h"
#include "dataplane/transport/seal.h"

namespace godwit::transport {

/// RFC 9001 §6.5: so many probe timeouts for what is under way before keys go.
inline constexpr std::int64_t kProbeTimeoutsKept = 3;

/// The key and IV of one phase of one direction: RFC 9001 §5.1, with labels of our own.
class PhaseKey {
 public:
  PhaseKey(Cipher cipher, const Secret& secret);
  /// RFC 9001 §5.3: IV xor number; here number is lane u32 | packet number u64, big-endian.
  void seal(std::uint16_t lane, std::uint64_t packet_number, std::span<std::byte> packet,
            const SealedPages& pages) const;
  [[nodiscard]] bool open(std::uint16_t lane, std::uint64_t packet_number, std::span<std::byte> packet,
                          const std::byte* from) const;

 private:
  using Iv = SecretBytes<AesGcm::kNonceBytes>;
  PhaseKey(Cipher cipher, const SecretBytes<32>& key, const Iv& iv);
  [[nodiscard]] AesGcm::Nonce nonce(std::uint16_t lane, std::uint64_t packet_number) const;

  AesGcm key_;
  Iv iv_;
};

class AesSealer final : public Sealer {
 public:
  AesSealer(const SealConfig& config, Instant now);
  bool ready(Instant now, std::uint64_t packet_number) override;
  [[nodiscard]] std::uint8_t flags() const override { return phase_ ? wire::kFlagKeyPhase : 0; }
  [[nodiscard]] bool encrypts() const override { return true; }
  void seal(std::uint64_t packet_number, std::span<std::byte> packet, const SealedPages& pages) override;
  void on_reported(Instant now, std::uint64_t largest, Duration probe_timeout) override;

 private:
  const Cipher cipher_;
  const std::uint16_t lane_;
  const KeyLimits limits_;
  Secret secret_;  // of the key in use
  std::optional<PhaseKey> key_;
  bool phase_ = false;
  std::uint64_t sealed_ = 0;        // with this key
  std::uint64_t first_number_ = 0;  // of this key
  Instant since_;                   // this key is in use
  Instant next_key_from_ = kNever;  // kNever: this key is not confirmed
};

class AesOpener final : public Opener {
 public:
  explicit AesOpener(const SealConfig& config);
  [[nodiscard]] bool takes(std::uint8_t flags) const override { return (flags & wire::kFlagChecksum) == 0; }
  Opened open(Instant now, const wire::PacketHeader& header, std::span<std::byte> packet, Duration probe_timeout,
              const std::byte* from = nullptr) override;
  [[nodiscard]] bool forgeries_used_up() const override { return forgeries_ >= limits_.forgeries_max; }
  [[nodiscard]] Instant deadline() const override { return drop_last_at_; }
  void tick(Instant now) override;

 private:
  /// Phases count from 0; a key's place is its phase modulo three: last, current, next.
  [[nodiscard]] std::optional<PhaseKey>& key(std::uint64_t phase) { return keys_[phase % keys_.size()]; }
  void advance(Instant now, std::uint64_t packet_number, Duration probe_timeout);

  const Cipher cipher_;
  const std::uint16_t lane_;
  const KeyLimits limits_;
  std::array<std::optional<PhaseKey>, 3> keys_;
  Secret next_secret_;  // of the next key, from which the one after comes
  std::uint64_t phase_ = 0;
  std::uint64_t first_number_ = 0;  // of the packet that began this phase here
  Instant drop_last_at_ = kNever;   // kNever: there is no last key
  std::uint64_t forgeries_ = 0;
};

}  // namespace godwit::transport
