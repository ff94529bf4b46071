#include "dataplane/transport/seal.h"

#include <xxhash.h>
// Selects AVX-512, AVX2 or SSE2 at run time; must follow xxhash.h.
#include <xxh_x86dispatch.h>

#include <algorithm>
#include <array>

#include "dataplane/wire/bytes.h"

namespace godwit::transport {

namespace {

using Tag = std::array<std::byte, wire::kTagBytes>;

class ChecksumSeal final : public Seal {
 public:
  ChecksumSeal(const Secret& secret, std::uint16_t lane, Direction direction) {
    // XXH3's key is long: stretch secret | lane | direction, so that every direction of every lane has its own.
    std::array<std::byte, std::tuple_size_v<Secret> + 3> material{};
    std::copy(secret.begin(), secret.end(), material.begin());
    wire::store_le<std::uint16_t>(material, secret.size(), lane);
    material.back() = static_cast<std::byte>(direction);
    XXH128_hash_t block = XXH3_128bits(material.data(), material.size());
    for (std::size_t at = 0; at < key_.size(); at += sizeof(Tag)) {
      XXH128_canonical_t bytes;
      XXH128_canonicalFromHash(&bytes, block);
      std::memcpy(key_.data() + at, &bytes, sizeof(Tag));
      block = XXH3_128bits_withSeed(material.data(), material.size(), block.low64 ^ at);
    }
  }

  [[nodiscard]] std::uint8_t flags() const override { return wire::kFlagChecksum; }

  void seal(std::span<std::byte> packet) override {
    const XXH128_hash_t hash = compute(packet);
    wire::store_le<std::uint64_t>(packet, packet.size() - 16, hash.low64);
    wire::store_le<std::uint64_t>(packet, packet.size() - 8, hash.high64);
  }

  bool open(std::span<std::byte> packet) override {
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
    // Debian's libxxhash returns with the upper halves of the vector registers in use, and the next SSE instruction,
    // whosever it is, waits 180 ns for them.
    if (has_avx_) {
      asm volatile("vzeroupper" ::: "memory");
    }
    return hash;
  }

  const bool has_avx_ = __builtin_cpu_supports("avx") != 0;
  static constexpr std::size_t kKeyBytes = 192;
  static_assert(kKeyBytes >= XXH3_SECRET_SIZE_MIN && kKeyBytes % sizeof(Tag) == 0);
  std::array<std::byte, kKeyBytes> key_{};
};

}  // namespace

std::unique_ptr<Seal> make_checksum_seal(const Secret& secret, std::uint16_t lane, Direction direction) {
  return std::make_unique<ChecksumSeal>(secret, lane, direction);
}

}  // namespace godwit::transport
