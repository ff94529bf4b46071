// Goal: a page that is sent from where it lies arrives as it was when its tag was made, or not at all; and it arrives
// in the end, however often the guest writes it.

#include "simulation/in_place.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <optional>
#include <set>
#include <thread>

#include "dataplane/transport/lane.h"
#include "dataplane/transport/seal.h"
#include "tests/unit/transport/lane_pair.h"

namespace godwit::transport {
namespace {

constexpr std::uint64_t kPages = 8;
constexpr std::size_t kPage = pages::kPageSize;
constexpr Cipher kCiphers[] = {Cipher::kNone, Cipher::kAes128Gcm, Cipher::kAes256Gcm};

/// A guest whose RAM lies open.
class Ram final : public LaneUser {
 public:
  Ram() : bytes(kPages * kPage) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<std::byte>(i * 131 >> 4);
    }
  }
  bool next_work(std::uint16_t lane, Work& out) override {
    if (lane == kPriorityLane || at == work.size()) {
      return false;
    }
    out = {.page = work[at++], .round = 1};
    return true;
  }
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override {
    ++copied;
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(page * kPage + offset), out.size(), out.begin());
  }
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool hash_in_tag) override {
    const bool copy = page == hole || (compares && !hash_in_tag);
    return copy ? std::span<const std::byte>() : std::span(bytes).subspan(page * kPage, kPage);
  }
  [[nodiscard]] bool wants_hash(pages::PageNumber, std::uint32_t) const override { return compares; }
  void note_sent(pages::PageNumber page, pages::PageHash hash) override { told[page].insert(hash); }
  void on_acknowledged(const Work&) override { ++acknowledged; }
  void on_page(std::uint16_t, std::uint32_t, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> part) override {
    std::copy(part.begin(), part.end(), bytes.begin() + static_cast<std::ptrdiff_t>(page * kPage + offset));
    placed_hashes.emplace_back(page, pages::hash_part(part));
    ++placed;
  }
  void on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) override {}
  void on_message(std::span<const std::byte>) override {}

  Bytes bytes;
  std::vector<pages::PageNumber> work;
  std::size_t at = 0;
  pages::PageNumber hole = kPages;
  bool compares = false;  // content, to find what was written
  std::array<std::set<pages::PageHash>, kPages> told;
  std::vector<std::pair<pages::PageNumber, pages::PageHash>> placed_hashes;
  std::uint64_t copied = 0, acknowledged = 0, placed = 0;
};

struct Hosts {
  explicit Hosts(Cipher cipher, std::uint32_t datagram_bytes = 8972)
      : a(config(true, 1, datagram_bytes, {.cipher = cipher, .limits = {}}), source, now),
        b(config(false, 1, datagram_bytes, {.cipher = cipher, .limits = {}}), destination, now),
        out(datagram_bytes) {
    destination.bytes.assign(destination.bytes.size(), std::byte{0});
  }
  struct Packet {
    Bytes buffer;
    PagesInPlace in_place;
    [[nodiscard]] Bytes sent() const { return simulation::as_sent(buffer, in_place); }
  };
  Packet poll() {
    Packet packet;
    const std::size_t length = a.poll_transmit(now, out, &packet.in_place);
    packet.buffer.assign(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(length));
    return packet;
  }
  Received give(Bytes datagram) { return b.on_packet(now, datagram); }
  /// Whatever is left, with the guest writing `written` between each tag and its sending.
  void run(std::optional<pages::PageNumber> written = {}) {
    for (int i = 0; i < 10'000 && source.acknowledged < source.work.size(); ++i) {
      now = now + milliseconds(1);
      a.tick(now);
      for (Packet packet = poll(); !packet.buffer.empty(); packet = poll()) {
        if (written) {
          std::byte& byte = source.bytes[*written * kPage + 77];
          byte = static_cast<std::byte>(std::to_integer<unsigned>(byte) + 1);
        }
        give(packet.sent());
      }
      while (const std::size_t length = b.poll_transmit(now, out)) {
        a.on_packet(now, std::span(out).first(length));
      }
    }
  }

  Ram source, destination;
  Instant now{1'000'000'000};
  Lane a, b;
  Bytes out;
};

TEST(InPlace, SealIsThatOfTheWholePacket) {
  for (const Cipher cipher : kCiphers) {
    for (const std::size_t count : {1U, 2U}) {
      SealConfig settings{.cipher = cipher, .secret = {}, .lane = 1, .direction = {}, .limits = {}};
      const auto whole_sealer = make_sealer(settings, {}), sealer = make_sealer(settings, {});
      Bytes whole(wire::kHeaderBytes + 56 + count * kPage + wire::kTagBytes);
      for (std::size_t i = 0; i < whole.size(); ++i) {
        whole[i] = static_cast<std::byte>(i * 37 >> 3);
      }
      const Bytes body(whole.begin() + wire::kHeaderBytes + 56, whole.end() - wire::kTagBytes);
      std::vector<std::span<const std::byte>> pages;
      for (std::size_t i = 0; i < count; ++i) {
        pages.push_back(std::span(body).subspan(i * kPage, kPage));
      }
      std::vector<pages::PageHash> hashes(count);
      std::transform(pages.begin(), pages.end(), hashes.begin(), pages::hash_part);
      constexpr std::size_t kAt = wire::kHeaderBytes + 56;
      PagesInPlace in_place;
      Bytes packet(whole);
      if (sealer->encrypts()) {
        std::fill_n(packet.begin() + wire::kHeaderBytes + 56, body.size(), std::byte{0xee});
      } else {
        packet.erase(packet.begin() + wire::kHeaderBytes + 56, packet.end() - wire::kTagBytes);
        std::copy(pages.begin(), pages.end(), in_place.pieces.begin());
        in_place.count = count;
      }
      ASSERT_TRUE(whole_sealer->ready({}, 5) && sealer->ready({}, 5));
      whole_sealer->seal(5, whole, {.at = kAt, .hashes = hashes});
      sealer->seal(5, packet, {.at = kAt, .in_place = pages, .hashes = hashes});
      EXPECT_EQ(simulation::as_sent(packet, in_place), whole);
    }
  }
}

TEST(InPlace, PagesArriveAndAreNotCopied) {
  for (const Cipher cipher : kCiphers) {
    Hosts hosts(cipher);
    hosts.source.work = {0, 1, 5, 3, 7};  // neighbours, others, and one alone
    hosts.run();
    EXPECT_EQ(hosts.source.copied, 0U);
    EXPECT_EQ(hosts.a.counters().pages_in_place, 5U);
    for (const pages::PageNumber page : hosts.source.work) {
      const auto at = static_cast<std::ptrdiff_t>(page * kPage);
      EXPECT_TRUE(std::equal(hosts.source.bytes.begin() + at, hosts.source.bytes.begin() + at + kPage,
                             hosts.destination.bytes.begin() + at));
    }
  }
}

TEST(InPlace, EncryptionLeavesNothingToTheDriver) {
  Hosts hosts(Cipher::kAes128Gcm);
  hosts.source.work = {2, 4};
  const Hosts::Packet packet = hosts.poll();
  EXPECT_EQ(packet.in_place.count, 0U);
  hosts.source.bytes[2 * kPage] ^= std::byte{1};
  EXPECT_EQ(hosts.give(packet.sent()), Received::kAccepted);
}

TEST(InPlace, AnEncryptedPacketOpensThoughItsPageIsWrittenMeanwhile) {
  for (const Cipher cipher : {Cipher::kAes128Gcm, Cipher::kAes256Gcm}) {
    const SealConfig settings{.cipher = cipher, .secret = {}, .lane = 1, .direction = {}, .limits = {}};
    const auto sealer = make_sealer(settings, {});
    const auto opener = make_opener(settings);
    std::vector<std::uint64_t> page(kPage / sizeof(std::uint64_t));
    const std::span<const std::byte> bytes = std::as_bytes(std::span(page));
    std::atomic<bool> stop{false};
    std::thread guest([&] {
      for (std::uint64_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
        std::atomic_ref<std::uint64_t>(page[i * 97 % page.size()]).store(i, std::memory_order_relaxed);
      }
    });
    std::uint64_t opened = 0;
    for (std::uint64_t number = 0; number < 20'000; ++number) {
      Bytes packet(wire::kHeaderBytes + 56 + kPage + wire::kTagBytes);
      const wire::PacketHeader header{.lane = 1, .flow_id = 7, .packet_number = number};
      wire::write_header(header, packet);
      EXPECT_TRUE(sealer->ready({}, number));
      sealer->seal(number, packet, {.at = wire::kHeaderBytes + 56, .in_place = {&bytes, 1}});
      opened += opener->open({}, header, packet, milliseconds(1)) == Opened::kYes ? 1U : 0U;
    }
    stop = true;
    guest.join();
    EXPECT_EQ(opened, 20'000U);
  }
}

TEST(InPlace, WhatIsWrittenBeforeItIsSentIsNotPlaced) {
  for (const pages::PageNumber torn : {0U, 1U}) {
    Hosts hosts(Cipher::kNone);
    hosts.source.work = {0, 1};
    const Hosts::Packet packet = hosts.poll();
    ASSERT_EQ(packet.in_place.bytes, 2 * kPage);
    hosts.source.bytes[torn * kPage + 4095] ^= std::byte{1};
    EXPECT_EQ(hosts.give(packet.sent()), Received::kBadTag);
    EXPECT_EQ(hosts.destination.placed, 0U);
  }
}

TEST(InPlace, WhatGoesOutAgainIsCopied) {
  Hosts hosts(Cipher::kNone);
  hosts.source.work = {0, 1, 2, 3};
  hosts.run(2);
  EXPECT_EQ(hosts.source.acknowledged, 4U);
  EXPECT_GE(hosts.b.counters().received[static_cast<std::size_t>(Received::kBadTag)], 1U);
  EXPECT_GE(hosts.source.copied, 1U);
  EXPECT_GE(hosts.a.counters().pages_retransmitted, 1U);
  EXPECT_EQ(hosts.a.counters().mtu_black_holes, 0U);
}

TEST(InPlace, WhatIsPlacedIsWhatTheSourceWasToldOf) {
  for (const Cipher cipher : kCiphers) {
    for (const std::uint32_t datagram_bytes : {8972U, 4240U, 1472U}) {
      Hosts hosts(cipher, datagram_bytes);
      hosts.source.compares = true;
      hosts.source.work = {0, 1, 2, 3};
      hosts.run(2);
      EXPECT_EQ(hosts.source.acknowledged, 4U);
      const bool in_place = cipher == Cipher::kNone && datagram_bytes != 1472U;
      EXPECT_EQ(hosts.a.counters().pages_in_place != 0, in_place);
      for (pages::PageNumber page = 0; page < 4; ++page) {
        const auto at = std::span(hosts.destination.bytes).subspan(page * kPage, kPage);
        const bool torn = page == 2 && datagram_bytes == 1472U;  // its parts are of several readings, each of them told
        EXPECT_TRUE(torn || hosts.source.told[page].contains(pages::hash_part(at))) << page;
      }
      EXPECT_EQ(hosts.source.told[2].size() > 1, in_place || datagram_bytes == 1472U);
    }
  }
}

TEST(InPlace, WhatIsPlacedWasToldThoughTheGuestWritesAllTheTime) {
  for (const Cipher cipher : kCiphers) {
    Hosts hosts(cipher, 4240);
    hosts.source.compares = true;
    for (int i = 0; i < 3000; ++i) {
      hosts.source.work.push_back(static_cast<pages::PageNumber>(i) % kPages);
    }
    std::atomic<bool> stop{false};
    std::thread guest([&] {
      auto* const words = reinterpret_cast<std::uint64_t*>(hosts.source.bytes.data());
      for (std::uint64_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
        std::atomic_ref<std::uint64_t>(words[i * 97 % (kPages * kPage / 8)]).store(i, std::memory_order_relaxed);
      }
    });
    hosts.run();
    stop = true;
    guest.join();
    EXPECT_EQ(hosts.source.acknowledged, 3000U);
    std::uint64_t untold = 0;
    for (const auto& [page, hash] : hosts.destination.placed_hashes) {
      untold += hosts.source.told[page].contains(hash) ? 0U : 1U;
    }
    EXPECT_EQ(untold, 0U);
  }
}

TEST(InPlace, OnlyWhereItCanBe) {
  Hosts hole(Cipher::kNone);
  hole.source.work = {0, 1};
  hole.source.hole = 1;
  EXPECT_EQ(hole.poll().in_place.count, 0U);
  EXPECT_EQ(hole.source.copied, 2U);

  Hosts parts(Cipher::kNone, 1472);
  parts.source.work = {0};
  EXPECT_EQ(parts.poll().in_place.count, 0U);

  Hosts copies(Cipher::kNone);  // a port that takes no references
  copies.source.work = {0, 1};
  EXPECT_GT(copies.a.poll_transmit(copies.now, copies.out), 2 * kPage);
  EXPECT_EQ(copies.source.copied, 2U);
}

}  // namespace
}  // namespace godwit::transport
