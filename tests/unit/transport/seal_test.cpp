// Goal: what is sealed opens at the other end and nowhere else, in every order that a network makes of a change of
// keys; and nothing forged moves anything but the count of forgeries.

#include "dataplane/transport/seal.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <new>
#include <vector>

#include "dataplane/transport/key_phases.h"

namespace godwit::transport {
namespace {

using Bytes = std::vector<std::byte>;

constexpr Instant kStart{1'000'000'000};
constexpr Duration kProbeTimeout = milliseconds(10);

/// Rekeys after four packets.
SealConfig small(Cipher cipher = Cipher::kAes128Gcm) {
  SealConfig config;
  config.cipher = cipher;
  config.lane = 1;
  config.limits.rekey_packets = 4;
  config.limits.packets_max = 8;
  return config;
}

struct Sealed {
  wire::PacketHeader header;
  Bytes packet;
};

class Link {
 public:
  explicit Link(const SealConfig& config) : sealer_(make_sealer(config, kStart)), opener_(make_opener(config)) {}

  Sealed seal(std::size_t body_bytes = 20) {
    EXPECT_TRUE(sealer_->ready(now, next_));
    Sealed sealed;
    sealed.header = {.flags = sealer_->flags(), .lane = 1, .flow_id = 7, .packet_number = next_};
    sealed.packet.resize(wire::kHeaderBytes + body_bytes + wire::kTagBytes, std::byte{0x33});
    wire::write_header(sealed.header, sealed.packet);
    sealer_->seal(next_++, sealed.packet);
    return sealed;
  }
  std::vector<Sealed> seal_many(std::size_t count) {
    std::vector<Sealed> all;
    std::generate_n(std::back_inserter(all), count, [this] { return seal(); });
    return all;
  }
  Opened open(const Sealed& sealed) {
    Bytes packet = sealed.packet;
    opener_->tick(now);
    const Opened opened = opener_->open(now, sealed.header, packet, kProbeTimeout);
    if (opened == Opened::kYes) {
      EXPECT_EQ(packet[wire::kHeaderBytes], std::byte{0x33});
    }
    return opened;
  }
  /// The peer's word that `largest` has arrived; then long enough that a next key may come.
  void confirm(std::uint64_t largest) {
    sealer_->on_reported(now, largest, kProbeTimeout);
    now = now + kProbeTimeout * 3;
  }
  [[nodiscard]] bool ready() { return sealer_->ready(now, next_); }
  [[nodiscard]] const Opener& opener() const { return *opener_; }
  [[nodiscard]] std::uint8_t phase() const { return sealer_->flags() & wire::kFlagKeyPhase; }

  Instant now = kStart;

 private:
  std::unique_ptr<Sealer> sealer_;
  std::unique_ptr<Opener> opener_;
  std::uint64_t next_ = 0;
};

/// As if the network or an enemy had turned the bit.
Sealed other_phase(Sealed sealed) {
  sealed.header.flags ^= wire::kFlagKeyPhase;
  wire::write_header(sealed.header, sealed.packet);
  return sealed;
}

TEST(Seal, EveryBitCounts) {
  for (const Cipher cipher : {Cipher::kAes128Gcm, Cipher::kAes256Gcm, Cipher::kNone}) {
    Link link(small(cipher));
    const Sealed sealed = link.seal(100);
    for (std::size_t bit = 0; bit < sealed.packet.size() * 8; ++bit) {
      Sealed bad = sealed;
      bad.packet[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
      ASSERT_EQ(link.open(bad), Opened::kBadTag) << bit;
    }
    Sealed cut = sealed;
    cut.packet.pop_back();
    EXPECT_EQ(link.open(cut), Opened::kBadTag);
    EXPECT_EQ(link.open(sealed), Opened::kYes);
  }
}

TEST(Seal, OpensNowhereElse) {
  for (const Cipher cipher : {Cipher::kAes128Gcm, Cipher::kAes256Gcm, Cipher::kNone}) {
    for (const std::size_t bytes : {0U, 32U, 500U, 8280U}) {  // XXH3 takes another path for each
      const SealConfig config = small(cipher);
      SealConfig lane = config, direction = config, secret = config;
      lane.lane = 2;
      direction.direction = Direction::kFromResponder;
      secret.secret[31] = std::byte{1};
      const Sealed sealed = Link(config).seal(bytes);
      EXPECT_EQ(Link(config).open(bytes == 0 ? Link(config).seal(20) : sealed), Opened::kYes);
      for (const SealConfig& other : {lane, direction, secret}) {
        EXPECT_EQ(Link(other).open(sealed), Opened::kBadTag);
      }
      Sealed number = sealed;
      ++number.header.packet_number;
      if (cipher != Cipher::kNone) {
        EXPECT_EQ(Link(config).open(number), Opened::kBadTag) << "the nonce is not the number's";
      }
    }
  }
}

TEST(Seal, BodyIsEncryptedUnlessClear) {
  for (const Cipher cipher : {Cipher::kAes128Gcm, Cipher::kAes256Gcm, Cipher::kNone}) {
    const Sealed sealed = Link(small(cipher)).seal(100);
    const auto clear = std::count(sealed.packet.begin(), sealed.packet.end(), std::byte{0x33});
    EXPECT_EQ(clear > 50, cipher == Cipher::kNone);
  }
}

TEST(KeyPhase, ChangesWhenServedAndConfirmed) {
  Link link(small());
  EXPECT_EQ(link.seal_many(4).back().header.flags, 0);
  EXPECT_TRUE(link.ready());
  EXPECT_EQ(link.phase(), 0) << "not confirmed";
  link.confirm(3);
  const Sealed next = link.seal();
  EXPECT_EQ(next.header.flags, wire::kFlagKeyPhase);
  EXPECT_EQ(link.open(next), Opened::kYes);
  // An old confirmation is none for the new key.
  link.seal_many(3);
  link.confirm(3);
  EXPECT_TRUE(link.ready());
  EXPECT_EQ(link.phase(), wire::kFlagKeyPhase);
  link.confirm(4);
  EXPECT_EQ(link.seal().header.flags, 0);
}

TEST(KeyPhase, NotBeforeTheLastKeyIsGone) {
  Link link(small());
  link.seal_many(4);
  link.confirm(0);
  link.now = kStart + kProbeTimeout * 3 + Duration{-1};
  EXPECT_TRUE(link.ready());
  EXPECT_EQ(link.phase(), 0);
  link.now = kStart + kProbeTimeout * 3;
  EXPECT_TRUE(link.ready());
  EXPECT_EQ(link.phase(), wire::kFlagKeyPhase);
}

TEST(KeyPhase, ChangesWithAge) {
  Link link(small());
  EXPECT_EQ(link.open(link.seal()), Opened::kYes);
  link.confirm(0);
  link.now = kStart + small().limits.rekey_age + Duration{-1};
  EXPECT_EQ(link.seal().header.flags, 0);
  link.now = kStart + small().limits.rekey_age;
  EXPECT_EQ(link.seal().header.flags, wire::kFlagKeyPhase);
}

TEST(KeyPhase, UnconfirmedKeyEndsAtItsLimit) {
  Link link(small());
  link.seal_many(8);
  EXPECT_FALSE(link.ready());
  link.confirm(7);
  EXPECT_TRUE(link.ready());
}

/// Four packets of the first key, four of the second.
struct Change {
  Change() : link(small()) {
    packets = link.seal_many(4);
    link.confirm(3);
    const auto more = link.seal_many(4);
    packets.insert(packets.end(), more.begin(), more.end());
  }
  Link link;
  std::vector<Sealed> packets;
};

TEST(KeyPhase, AnyOrderAroundTheChange) {
  std::vector<std::size_t> order = {0, 1, 2, 3, 4, 5, 6, 7};
  do {
    Change change;
    for (const std::size_t i : order) {
      ASSERT_EQ(change.link.open(change.packets[i]), Opened::kYes) << i;
    }
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(KeyPhase, LossOfWhatBeginsIt) {
  Change change;
  EXPECT_EQ(change.link.open(change.packets[7]), Opened::kYes);
  EXPECT_EQ(change.link.open(change.packets[1]), Opened::kYes);
}

TEST(KeyPhase, LastKeyIsDroppedAfterThreeProbeTimeouts) {
  Change change;
  Link& link = change.link;
  EXPECT_EQ(link.open(change.packets[6]), Opened::kYes);
  EXPECT_EQ(link.opener().deadline(), (link.now + kProbeTimeout * 3));
  EXPECT_EQ(link.open(change.packets[2]), Opened::kYes);
  link.now = link.now + kProbeTimeout * 3;
  EXPECT_EQ(link.open(change.packets[3]), Opened::kOldKey);
  EXPECT_EQ(link.opener().deadline(), kNever);
  EXPECT_EQ(link.open(change.packets[4]), Opened::kYes) << "of this phase, overtaken by what began it";
  EXPECT_EQ(link.open(other_phase(change.packets[3])), Opened::kBadTag);
}

TEST(KeyPhase, TheLastKeyLeavesMemory) {
  const SealConfig config = small();
  std::array<std::byte, 16> last_key;
  hkdf_expand_label(lane_secret(config.secret, config.lane, config.direction), "godwit key", {}, last_key);
  alignas(AesOpener) std::array<std::byte, sizeof(AesOpener)> memory{};
  auto* const opener = new (memory.data()) AesOpener(config);
  const auto holds_it = [&] {
    return std::search(memory.begin(), memory.end(), last_key.begin(), last_key.end()) != memory.end();
  };
  Change change;
  Sealed next = change.packets[4];
  EXPECT_EQ(opener->open(kStart, next.header, next.packet, kProbeTimeout), Opened::kYes);
  EXPECT_TRUE(holds_it());  // an expanded key begins with the key
  opener->tick(opener->deadline());
  EXPECT_FALSE(holds_it());
  opener->~AesOpener();
}

TEST(KeyPhase, ForgedPacketsDoNotMoveIt) {
  Change change;
  Link& link = change.link;
  const auto forge_all = [&] {
    for (const Sealed& sealed : change.packets) {
      EXPECT_EQ(link.open(other_phase(sealed)) == Opened::kYes, false) << sealed.header.packet_number;
      Sealed far = other_phase(sealed);
      far.header.packet_number += 1000;
      EXPECT_EQ(link.open(far), Opened::kBadTag);
    }
  };
  forge_all();
  EXPECT_EQ(link.opener().deadline(), kNever) << "a forged packet has begun a phase";
  for (const std::size_t i : {0U, 5U, 1U}) {
    EXPECT_EQ(link.open(change.packets[i]), Opened::kYes);
    const Instant deadline = link.opener().deadline();
    forge_all();
    EXPECT_EQ(link.opener().deadline(), deadline);
  }
  for (const Sealed& sealed : change.packets) {
    EXPECT_EQ(link.open(sealed), Opened::kYes);
  }
}

TEST(KeyPhase, ManyChanges) {
  Link link(small(Cipher::kAes256Gcm));
  for (std::uint64_t phase = 0; phase < 50; ++phase) {
    for (std::uint64_t i = 0; i < 4; ++i) {
      const Sealed sealed = link.seal();
      EXPECT_EQ(sealed.header.flags, phase % 2 == 0 ? 0 : wire::kFlagKeyPhase);
      ASSERT_EQ(link.open(sealed), Opened::kYes);
      link.confirm(sealed.header.packet_number);
    }
  }
}

TEST(KeyPhase, ForgeriesAreCountedOverAllKeys) {
  SealConfig config = small();
  config.limits.forgeries_max = 3;
  Link link(config);
  std::vector<Sealed> packets = link.seal_many(4);
  EXPECT_EQ(link.open(other_phase(packets[0])), Opened::kBadTag);
  EXPECT_EQ(link.open(packets[0]), Opened::kYes);
  link.confirm(3);
  const Sealed next = link.seal();
  EXPECT_EQ(link.open(next), Opened::kYes);
  EXPECT_EQ(link.open(other_phase(next)), Opened::kBadTag);
  EXPECT_FALSE(link.opener().forgeries_used_up());
  EXPECT_EQ(link.open(other_phase(packets[1])), Opened::kBadTag);
  EXPECT_TRUE(link.opener().forgeries_used_up());
}

TEST(KeyLimits, AreThoseOfRfc9001) {
  const KeyLimits limits;
  EXPECT_EQ(limits.packets_max, 8'388'608U);
  EXPECT_LE(limits.rekey_packets * 2, limits.packets_max);
  EXPECT_EQ(limits.forgeries_max, 4'503'599'627'370'496U);
  EXPECT_EQ(limits.rekey_age, (milliseconds(600'000)));
}

}  // namespace
}  // namespace godwit::transport
