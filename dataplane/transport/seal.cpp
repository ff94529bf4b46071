#include "dataplane/transport/seal.h"

#define XXH_STATIC_LINKING_ONLY  // the state of a hash that is made in pieces, with no allocation
#include <xxhash.h>
// Selects AVX-512, AVX2 or SSE2 at run time; must follow xxhash.h.
#include <xxh_x86dispatch.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "dataplane/transport/key_phases.h"
#include "dataplane/wire/bytes.h"

namespace godwit::transport {

namespace {

using Tag = std::array<std::byte, wire::kTagBytes>;

/// XXH3-128 keyed by lane and direction. Never rekeyed: there is nothing to protect.
class Checksum {
 public:
  explicit Checksum(const SealConfig& config) {
    // XXH3's key is long: stretch secret | lane | direction, so that every direction of every lane has its own.
    SecretBytes<sizeof(Secret) + 3> material;
    std::copy(config.secret.begin(), config.secret.end(), material.begin());
    wire::store_le<std::uint16_t>(material, sizeof(Secret), config.lane);
    material.back() = static_cast<std::byte>(config.direction);
    XXH128_hash_t block = XXH3_128bits(material.data(), material.size());
    for (std::size_t at = 0; at < key_.size(); at += sizeof(Tag)) {
      XXH128_canonical_t bytes;
      XXH128_canonicalFromHash(&bytes, block);
      std::memcpy(key_.data() + at, &bytes, sizeof(Tag));
      block = XXH3_128bits_withSeed(material.data(), material.size(), block.low64 ^ at);
    }
  }

  void write(std::span<std::byte> packet) const { store(compute(packet), packet); }

  void write(std::span<std::byte> packet, Sealer::Pages pages) const {
    GW_ASSERT(packet.size() >= wire::kHeaderBytes + wire::kTagBytes);
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset_withSecret(&state, key_.data(), key_.size());
    XXH3_128bits_update(&state, packet.data(), packet.size() - wire::kTagBytes);
    for (const std::span<const std::byte> page : pages) {
      XXH3_128bits_update(&state, page.data(), page.size());
    }
    const XXH128_hash_t hash = XXH3_128bits_digest(&state);
    leave_vector_registers();
    store(hash, packet);
  }

  [[nodiscard]] bool matches(std::span<const std::byte> packet) const {
    const XXH128_hash_t hash = compute(packet);
    // No early end: the time says nothing about where the tags differ.
    const std::uint64_t low = hash.low64 ^ wire::load_le<std::uint64_t>(packet, packet.size() - 16);
    const std::uint64_t high = hash.high64 ^ wire::load_le<std::uint64_t>(packet, packet.size() - 8);
    return (low | high) == 0;
  }

 private:
  [[nodiscard]] XXH128_hash_t compute(std::span<const std::byte> packet) const {
    GW_ASSERT(packet.size() >= wire::kHeaderBytes + wire::kTagBytes);
    const XXH128_hash_t hash =
        XXH3_128bits_withSecret(packet.data(), packet.size() - wire::kTagBytes, key_.data(), key_.size());
    leave_vector_registers();
    return hash;
  }

  static void store(const XXH128_hash_t& hash, std::span<std::byte> packet) {
    wire::store_le<std::uint64_t>(packet, packet.size() - 16, hash.low64);
    wire::store_le<std::uint64_t>(packet, packet.size() - 8, hash.high64);
  }

  void leave_vector_registers() const {
    // Debian's libxxhash returns with the upper halves of the vector registers in use, and the next SSE instruction,
    // whosever it is, waits 180 ns for them.
    if (has_avx_) {
      asm volatile("vzeroupper" ::: "memory");
    }
  }

  const bool has_avx_ = __builtin_cpu_supports("avx") != 0;
  static constexpr std::size_t kKeyBytes = 192;
  static_assert(kKeyBytes >= XXH3_SECRET_SIZE_MIN && kKeyBytes % sizeof(Tag) == 0);
  SecretBytes<kKeyBytes> key_;
};

class ChecksumSealer final : public Sealer {
 public:
  explicit ChecksumSealer(const SealConfig& config) : checksum_(config) {}
  bool ready(Instant /*now*/, std::uint64_t /*packet_number*/) override { return true; }
  [[nodiscard]] std::uint8_t flags() const override { return wire::kFlagChecksum; }
  [[nodiscard]] bool encrypts() const override { return false; }
  void seal(std::uint64_t /*packet_number*/, std::span<std::byte> packet, Pages pages) override {
    pages.empty() ? checksum_.write(packet) : checksum_.write(packet, pages);
  }
  void on_reported(Instant /*now*/, std::uint64_t /*largest*/, Duration /*probe_timeout*/) override {}

 private:
  Checksum checksum_;
};

class ChecksumOpener final : public Opener {
 public:
  explicit ChecksumOpener(const SealConfig& config) : checksum_(config) {}
  [[nodiscard]] bool takes(std::uint8_t flags) const override {
    return (flags & (wire::kFlagChecksum | wire::kFlagKeyPhase)) == wire::kFlagChecksum;
  }
  Opened open(Instant /*now*/, const wire::PacketHeader& /*header*/, std::span<std::byte> packet,
              Duration /*probe_timeout*/) override {
    return checksum_.matches(packet) ? Opened::kYes : Opened::kBadTag;
  }
  [[nodiscard]] bool forgeries_used_up() const override { return false; }
  [[nodiscard]] Instant deadline() const override { return kNever; }
  void tick(Instant /*now*/) override {}

 private:
  Checksum checksum_;
};

}  // namespace

std::unique_ptr<Sealer> make_sealer(const SealConfig& config, Instant now) {
  if (config.cipher == Cipher::kNone) {
    return std::make_unique<ChecksumSealer>(config);
  }
  return std::make_unique<AesSealer>(config, now);
}

std::unique_ptr<Opener> make_opener(const SealConfig& config) {
  if (config.cipher == Cipher::kNone) {
    return std::make_unique<ChecksumOpener>(config);
  }
  return std::make_unique<AesOpener>(config);
}

}  // namespace godwit::transport
