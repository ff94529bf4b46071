#include "dataplane/transport/seal.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "dataplane/pages/page_copy.h"
#include "dataplane/pages/xxh3.h"
#include "dataplane/transport/key_phases.h"
#include "dataplane/wire/bytes.h"
#include "dataplane/wire/frames.h"

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

  void write(std::span<std::byte> packet, const SealedPages& pages) const {
    const XXH128_hash_t hash = compute(packet, pages);
    Tag tag;
    wire::store_le<std::uint64_t>(tag, 0, hash.low64);
    wire::store_le<std::uint64_t>(tag, 8, hash.high64);
    std::memcpy(packet.data() + packet.size() - sizeof tag, tag.data(), sizeof tag);  // at once, as it will be read
  }

  [[nodiscard]] bool matches(std::span<const std::byte> packet, const SealedPages& pages) const {
    const XXH128_hash_t hash = compute(packet, pages);
    // No early end: the time says nothing about where the tags differ.
    const std::uint64_t low = hash.low64 ^ wire::load_le<std::uint64_t>(packet, packet.size() - 16);
    const std::uint64_t high = hash.high64 ^ wire::load_le<std::uint64_t>(packet, packet.size() - 8);
    return (low | high) == 0;
  }

 private:
  [[nodiscard]] XXH128_hash_t compute(std::span<const std::byte> packet, const SealedPages& pages) const {
    GW_ASSERT(packet.size() >= wire::kHeaderBytes + wire::kTagBytes);
    return pages.at == 0 ? digest(packet.first(packet.size() - wire::kTagBytes)) : digest_hashes(packet, pages);
  }

  [[nodiscard]] XXH128_hash_t digest_hashes(std::span<const std::byte> packet, const SealedPages& pages) const {
    std::array<std::byte, kHeadBytesMax> head;
    GW_ASSERT(pages.at <= packet.size() - wire::kTagBytes && pages.hashes.size() <= wire::kPagesPerPacketMax);
    std::copy_n(packet.begin(), pages.at, head.begin());
    std::size_t bytes = pages.at;
    for (const pages::PageHash hash : pages.hashes) {
      wire::store_le<std::uint64_t>(head, bytes, hash);
      bytes += sizeof(hash);
    }
    return digest(std::span(head).first(bytes));
  }

  [[nodiscard]] XXH128_hash_t digest(std::span<const std::byte> bytes) const {
    const XXH128_hash_t hash = XXH3_128bits_withSecret(bytes.data(), bytes.size(), key_.data(), key_.size());
    pages::leave_vector_registers();
    return hash;
  }

  /// Of a packet of pages without their bytes, and with their hashes.
  static constexpr std::size_t kHeadBytesMax =
      wire::kHeaderBytes + wire::ack_block_bytes(wire::kAckWordsMax) + wire::kPrefixBytes +
      wire::kPagesPerPacketMax * (wire::kPageDescBytes + sizeof(pages::PageHash));
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
  void seal(std::uint64_t /*packet_number*/, std::span<std::byte> packet, const SealedPages& pages) override {
    checksum_.write(packet, pages);
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
  Opened open(Instant /*now*/, const wire::PacketHeader& header, std::span<std::byte> packet,
              Duration /*probe_timeout*/, const std::byte* from) override {
    const std::span<const std::byte> text =
        packet.subspan(wire::kHeaderBytes, packet.size() - wire::kHeaderBytes - wire::kTagBytes);
    SealedPages pages;
    std::array<pages::PageHash, wire::kPagesPerPacketMax> hashes;
    // A body that is not well formed has its tag over all of it, which is bad unless its sender has made a mistake.
    if (header.type == wire::PacketType::kPages && wire::parse_body(header, text, body_) == wire::BadBody::kNone) {
      pages.at = static_cast<std::size_t>(body_.page_bytes[0].data() - packet.data());
      if (from != nullptr && pages.at <= kPacketHeadBytes && whole_pages()) {
        bring_pages(packet, from, hashes);
      } else {
        bring(packet, from);
        std::transform(body_.page_bytes.begin(), body_.page_bytes.begin() + body_.count, hashes.begin(),
                       pages::hash_part);
      }
      pages.hashes = std::span(hashes).first(body_.count);
    } else {
      bring(packet, from);
    }
    return checksum_.matches(packet, pages) ? Opened::kYes : Opened::kBadTag;
  }
  [[nodiscard]] bool forgeries_used_up() const override { return false; }
  [[nodiscard]] Instant deadline() const override { return kNever; }
  void tick(Instant /*now*/) override {}

 private:
  using Hashes = std::array<pages::PageHash, wire::kPagesPerPacketMax>;
  [[nodiscard]] bool whole_pages() const {
    return std::all_of(body_.page_bytes.begin(), body_.page_bytes.begin() + body_.count,
                       [](std::span<const std::byte> bytes) { return bytes.size() == pages::kPageSize; });
  }
  /// One pass brings the pages and hashes them.
  void bring_pages(std::span<std::byte> packet, const std::byte* from, Hashes& hashes) const {
    std::array<pages::PageCopy, wire::kPagesPerPacketMax> copies;
    for (std::size_t i = 0; i < body_.count; ++i) {
      const auto at = static_cast<std::size_t>(body_.page_bytes[i].data() - packet.data());
      copies[i] = {.to = packet.data() + at, .from = from + at};
    }
    const std::size_t tag = packet.size() - wire::kTagBytes;
    std::copy_n(from + tag, wire::kTagBytes, packet.data() + tag);  // before the pages: behind them it would wait
    pages::copy_pages(std::span(copies).first(body_.count), std::span(hashes).first(body_.count));
  }
  static void bring(std::span<std::byte> packet, const std::byte* from) {
    if (from != nullptr && packet.size() > kPacketHeadBytes) {
      std::memcpy(packet.data() + kPacketHeadBytes, from + kPacketHeadBytes, packet.size() - kPacketHeadBytes);
    }
  }

  Checksum checksum_;
  wire::Body body_;  // scratch
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
