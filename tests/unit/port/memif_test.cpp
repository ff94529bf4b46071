// memif: two ports in one process, and a peer that shakes hands wrongly or writes what it likes into the rings.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "dataplane/pages/read_ahead.h"
#include "dataplane/port/event_signal.h"
#include "dataplane/port/memif_link.h"
#include "dataplane/port/memif_port.h"
#include "dataplane/port/memif_queue.h"
#include "tests/unit/port/memif_frames.h"

namespace godwit::port::memif {
namespace {

constexpr std::uint32_t kBufferBytes = 9152;

class MemifPorts : public testing::Test {
 protected:
  MemifPorts() : directory_("/tmp/godwit-memif-test-" + std::to_string(getpid())) {
    std::filesystem::create_directories(directory_);
  }
  ~MemifPorts() override { std::filesystem::remove_all(directory_); }

  std::unique_ptr<Port> open_end(bool server) {
    PortOptions options;
    options.driver = Driver::kMemif;
    options.socket = directory_ + "/socket";
    options.memif_server = server;
    options.mtu = kMtu;
    auto port = open(options);
    EXPECT_TRUE(port.has_value());
    return port ? std::move(*port) : nullptr;
  }
  static bool both_up(const Port& one, const Port& other) {
    return wait_until([&] { return one.link_up() && other.link_up(); });
  }

 private:
  const std::string directory_;
};

TEST_F(MemifPorts, CarryFramesOfAnySizeBothWaysUnchangedAndInOrder) {
  auto server = open_end(true);
  auto client = open_end(false);
  ASSERT_TRUE(both_up(*server, *client));
  for (auto [from, to] : {std::pair{client.get(), server.get()}, {server.get(), client.get()}}) {
    to->queue(0).receive();
    from->queue(0).receive();
    std::vector<Bytes> sent;
    for (unsigned i = 0; i < 2000; ++i) {  // the ring goes round
      sent.push_back(frame_of(14 + i * 577 % (kFrameBytesMax - 13), i));
    }
    std::vector<Bytes> got;
    for (std::size_t at = 0; at < sent.size();) {
      while (at < sent.size() && send(from->queue(0), Priority::kBulk, sent[at])) {
        ++at;
      }
      from->queue(0).flush();
      for (Bytes& frame : receive_all(to->queue(0))) {
        got.push_back(std::move(frame));
      }
    }
    EXPECT_TRUE(got == sent);
  }
}

TEST_F(MemifPorts, UrgentFramesPassBulkThatWaits) {
  auto server = open_end(true);
  auto client = open_end(false);
  ASSERT_TRUE(both_up(*server, *client));
  client->queue(0).receive();
  ASSERT_TRUE(send(client->queue(0), Priority::kBulk, frame_of(3000, 1)));
  ASSERT_TRUE(send(client->queue(0), Priority::kUrgent, frame_of(60, 2)));
  client->queue(0).flush();
  const auto got = receive_all(server->queue(0));
  ASSERT_EQ(got.size(), 2U);
  EXPECT_EQ(got[0], frame_of(60, 2));
}

TEST_F(MemifPorts, AFrameMayBePutIntoTheRingAroundItsEnds) {
  auto server = open_end(true);
  auto client = open_end(false);
  ASSERT_TRUE(both_up(*server, *client));
  for (auto [from, to, use] : {std::tuple{client.get(), server.get(), RoomFor::kClearText},
                               {server.get(), client.get(), RoomFor::kClearText},
                               {client.get(), server.get(), RoomFor::kCipherText},
                               {server.get(), client.get(), RoomFor::kCipherText}}) {
    to->queue(0).receive();
    from->queue(0).receive();
    const Bytes frame = frame_of(114 + 8192 + 16, 7);
    const auto head = from->queue(0).next_frame(Priority::kBulk);
    const auto room = from->queue(0).room(Priority::kBulk, 114, use);
    ASSERT_EQ(room.size(), kFrameBytesMax);
    std::copy_n(frame.begin(), 114, head.begin());
    std::copy_n(frame.end() - 16, 16, head.begin() + 114);
    std::copy_n(frame.begin() + 114, 8192, room.begin() + 114);
    from->queue(0).commit_around(Priority::kBulk, 114 + 16, 16, 8192);
    from->queue(0).flush();
    EXPECT_EQ(receive_all(to->queue(0)), std::vector<Bytes>{frame});
  }
}

TEST_F(MemifPorts, TellWhatTheNextReceiveWillBring) {
  auto server = open_end(true);
  auto client = open_end(false);
  ASSERT_TRUE(both_up(*server, *client));
  Queue& to = server->queue(0);
  client->queue(0).receive();
  to.receive();
  std::vector<Bytes> sent;
  for (unsigned i = 0; i < kBurst + 3; ++i) {
    sent.push_back(frame_of(3000 + i, i));
    ASSERT_TRUE(send(client->queue(0), Priority::kBulk, sent.back()));
    client->queue(0).flush();
  }
  EXPECT_EQ(to.receive().size(), kBurst);
  for (std::size_t i = kBurst; i < sent.size(); ++i) {
    const auto lines = pages::ReadAhead::of_this_thread().take(kFrameBytesMax);
    EXPECT_FALSE(std::ranges::search(lines, sent[i]).empty()) << "frame " << i << " lies there already";
  }
  EXPECT_TRUE(pages::ReadAhead::of_this_thread().take(kFrameBytesMax).empty());
  EXPECT_EQ(to.receive().size(), 3U);
  EXPECT_TRUE(pages::ReadAhead::of_this_thread().take(kFrameBytesMax).empty()) << "it is being read";
}

TEST_F(MemifPorts, APeerMayComeAgain) {
  auto server = open_end(true);
  for (int life = 0; life < 3; ++life) {
    auto client = open_end(false);
    ASSERT_TRUE(both_up(*server, *client));
    client->queue(0).receive();
    ASSERT_TRUE(send(client->queue(0), Priority::kBulk, frame_of(100, 1)));
    client->queue(0).flush();
    EXPECT_EQ(receive_all(server->queue(0)).size(), 1U);
    client.reset();
    EXPECT_TRUE(wait_until([&] { return !server->link_up(); }));
    EXPECT_TRUE(server->queue(0).receive().empty());
    EXPECT_TRUE(server->queue(0).next_frame(Priority::kBulk).empty());
  }
}

TEST_F(MemifPorts, AClientWaitsForItsServer) {
  auto client = open_end(false);
  auto server = open_end(true);
  EXPECT_TRUE(both_up(*server, *client));
}

/// Both ends' links, by a handshake without sockets.
struct Pair {
  std::shared_ptr<Link> client, server;
};

Pair connect_pair() {
  Handshake client({.client = true, .rings = 2, .buffer_bytes = kBufferBytes});
  Handshake server({.client = false, .rings = 2, .buffer_bytes = kBufferBytes});
  std::optional<Outgoing> message = server.hello();
  for (bool to_client = true; message; to_client = !to_client) {
    auto answer = (to_client ? client : server)
                      .on_message(message->message, UniqueFd(message->file >= 0 ? dup(message->file) : -1));
    EXPECT_TRUE(answer.has_value()) << (answer ? "" : answer.error());
    message = answer ? *answer : std::nullopt;
  }
  EXPECT_TRUE(client.done() && server.done());
  return {client.take(), server.take()};
}

TEST(MemifRings, WhateverThePeerWritesNoFrameLeavesTheMemory) {
  std::mt19937 random(1);
  for (const bool victim_is_server : {true, false}) {
    const Pair pair = connect_pair();
    MemifQueue victim(0, kFrameBytesMax, KeptFrames());
    victim.connect(victim_is_server ? pair.server : pair.client);
    victim.receive();
    std::size_t frames_seen = 0;
    for (int turn = 0; turn < 20'000; ++turn) {
      for (const auto* rings : {&pair.client->send, &pair.client->receive}) {
        for (const auto& ring : *rings) {
          Descriptor& descriptor = ring->descriptors()[random() % ring->slots];
          const auto wild = static_cast<std::uint32_t>(random() % 4 == 0 ? random() : random() % 20'000);
          switch (random() % 6) {
            case 0:
              descriptor.length = wild;
              break;
            case 1:
              descriptor.offset = wild;
              break;
            case 2:
              descriptor.region = static_cast<std::uint16_t>(random() % 3 == 0 ? random() : 0);
              break;
            case 3:
              descriptor.flags = static_cast<std::uint16_t>(random());
              break;
            case 4:
              ring->head->head = static_cast<std::uint16_t>(random() % 3 == 0 ? random() : ring->head->head + 3);
              break;
            default:
              ring->head->tail = static_cast<std::uint16_t>(random() % 3 == 0 ? random() : ring->head->tail + 3);
          }
        }
      }
      const auto frames = victim.receive();
      for (std::size_t i = 0; i < frames.size(); ++i) {
        ASSERT_LE(frames[i].size(), kFrameBytesMax);
        frames_seen += whole(victim, i, frames[i]).size() != 0 ? 1U : 0U;
      }
      if (const auto frame = victim.next_frame(Priority::kBulk); !frame.empty()) {
        if (const auto room = victim.room(Priority::kBulk, 114, RoomFor::kClearText); !room.empty()) {
          std::fill(room.begin(), room.end(), std::byte{1});
          victim.commit_around(Priority::kBulk, 130, 16, 8192);
        } else {
          victim.commit(Priority::kBulk, 9000);
        }
      }
      victim.flush();
    }
    EXPECT_GT(frames_seen, 100U);
  }
}

/// Both ends of an eventfd have one counter and one O_NONBLOCK.
TEST(MemifRings, APeerWhoFillsItsEventfdStopsNobody) {
  const Pair pair = connect_pair();
  MemifQueue sender(0, kFrameBytesMax, KeptFrames());
  ASSERT_TRUE(sender.valid());
  sender.connect(pair.server);
  sender.receive();
  for (const auto& ring : pair.client->receive) {
    const std::uint64_t full = UINT64_MAX - 1;
    ASSERT_EQ(fcntl(ring->interrupt.get(), F_SETFL, 0), 0);
    ASSERT_EQ(write(ring->interrupt.get(), &full, sizeof full), static_cast<ssize_t>(sizeof full));
    ring->head->head = static_cast<std::uint16_t>(ring->slots);
    ring->head->flags = 0;  // it wants to be told
  }
  std::atomic<bool> done{false};
  std::thread lcore([&] {
    EXPECT_TRUE(send(sender, Priority::kBulk, frame_of(60, 1)));
    sender.flush();
    done = true;
  });
  EXPECT_TRUE(wait_until([&] { return done.load(); })) << "waits for the peer to read";
  for (const auto& ring : pair.client->receive) {
    std::uint64_t count = 0;
    EXPECT_EQ(read(ring->interrupt.get(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
  }
  lcore.join();
}

/// How a handshake between ends of so many rings goes: as the client or the server ends it; nothing: it stands.
std::string handshake(std::uint16_t client_rings, std::uint16_t server_rings) {
  Handshake client({.client = true, .rings = client_rings, .buffer_bytes = kBufferBytes});
  Handshake server({.client = false, .rings = server_rings, .buffer_bytes = kBufferBytes});
  std::optional<Outgoing> message = server.hello();
  for (bool to_client = true; message; to_client = !to_client) {
    auto answer = (to_client ? client : server)
                      .on_message(message->message, UniqueFd(message->file >= 0 ? dup(message->file) : -1));
    if (!answer) {
      return answer.error();
    }
    message = *answer;
  }
  return "";
}

/// One that has the same for all does with it; one that has lcores, each with lanes of its own, cannot.
TEST(MemifHandshake, EachOfSeveralLcoresHasItsRing) {
  EXPECT_EQ(handshake(2, 2), "");
  EXPECT_EQ(handshake(1, 2), "");
  EXPECT_EQ(handshake(2, 1), "");
  EXPECT_EQ(handshake(3, 3), "");
  EXPECT_NE(handshake(3, 2).find("2 rings and we need 3"), std::string::npos) << handshake(3, 2);
  EXPECT_NE(handshake(2, 3).find("2 rings and we need 3"), std::string::npos) << handshake(2, 3);
}

Message init() {
  return message_of(Type::kInit, Init{.version = kVersion, .id = 0, .mode = 0, .secret = {}, .name = {}});
}

UniqueFd memory(std::uint64_t bytes, bool sealed) {
  UniqueFd file(memfd_create("test", MFD_ALLOW_SEALING));
  EXPECT_EQ(ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(fcntl(file.get(), F_ADD_SEALS, sealed ? F_SEAL_SHRINK : F_SEAL_GROW), 0);
  return file;
}

TEST(EventSignal, AddsOneEachTimeAndOnlyToAnEventfd) {
  const EventSignal signal;
  ASSERT_TRUE(signal.valid());
  const UniqueFd file(eventfd(0, EFD_NONBLOCK));
  for (int i = 0; i < 10'000; ++i) {
    signal.raise(file.get());
  }
  std::uint64_t count = 0;
  ASSERT_EQ(read(file.get(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
  EXPECT_EQ(count, 10'000U);
  signal.raise(memory(4096, true).get());
  signal.raise(-1);
  EXPECT_LT(read(file.get(), &count, sizeof count), 0);
}

bool takes_region(std::uint64_t claimed, std::uint64_t real, bool sealed, std::uint16_t index = 0) {
  Handshake server({.client = false, .rings = 2, .buffer_bytes = kBufferBytes});
  EXPECT_TRUE(server.on_message(init(), {}).has_value());
  return server
      .on_message(message_of(Type::kAddRegion, AddRegion{.index = index, .bytes = claimed}), memory(real, sealed))
      .has_value();
}

TEST(MemifRegion, LiesWhereHugePagesWould) {
  for (const std::uint64_t bytes : {std::uint64_t{4096}, std::uint64_t{5} << 20}) {
    const auto region = Region::make(bytes);
    ASSERT_TRUE(region.has_value());
    EXPECT_EQ(region->bytes().size(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(region->bytes().data()) % (2U << 20), 0U);
    region->bytes().back() = std::byte{1};
  }
}

TEST(MemifHandshake, RefusesMemoryThatMayBeTakenAway) {
  EXPECT_TRUE(takes_region(65536, 65536, true));
  EXPECT_FALSE(takes_region(65536, 65536, false)) << "not sealed";
  EXPECT_FALSE(takes_region(65537, 65536, true)) << "too short";
  EXPECT_FALSE(takes_region(0, 65536, true));
  EXPECT_FALSE(takes_region(65536, 65536, true, 1)) << "out of turn";
}

bool takes_ring(AddRing ring, UniqueFd file) {
  Handshake server({.client = false, .rings = 2, .buffer_bytes = kBufferBytes});
  EXPECT_TRUE(server.on_message(init(), {}).has_value());
  EXPECT_TRUE(
      server.on_message(message_of(Type::kAddRegion, AddRegion{.index = 0, .bytes = 65536}), memory(65536, true))
          .has_value());
  return server.on_message(message_of(Type::kAddRing, ring), std::move(file)).has_value();
}

UniqueFd interrupt() { return UniqueFd(eventfd(0, EFD_NONBLOCK)); }

TEST(MemifHandshake, RefusesRingsThatAreNotWholeInMemory) {
  const AddRing good{.flags = kToServer, .index = 1, .region = 0, .offset = 64, .log2_slots = 9, .private_bytes = 0};
  EXPECT_TRUE(takes_ring(good, interrupt()));
  EXPECT_FALSE(takes_ring(good, {})) << "no eventfd";
  EXPECT_FALSE(takes_ring(good, memory(4096, true))) << "not an eventfd";
  const auto with = [&](auto change) {
    AddRing ring = good;
    change(ring);
    return takes_ring(ring, interrupt());
  };
  EXPECT_FALSE(with([](AddRing& ring) { ring.index = 2; }));
  EXPECT_FALSE(with([](AddRing& ring) { ring.region = 1; }));
  EXPECT_FALSE(with([](AddRing& ring) { ring.offset = 65536; }));
  EXPECT_FALSE(with([](AddRing& ring) { ring.offset = UINT32_MAX - 63; }));
  EXPECT_FALSE(with([](AddRing& ring) { ring.offset = 63; }));
  EXPECT_FALSE(with([](AddRing& ring) { ring.log2_slots = 12; })) << "longer than the memory";
  EXPECT_FALSE(with([](AddRing& ring) { ring.log2_slots = 64; }));
}

TEST(MemifHandshake, RefusesWhatIsOutOfTurn) {
  for (const Type type : {Type::kAck, Type::kAddRegion, Type::kAddRing, Type::kConnect, Type::kConnected,
                          static_cast<Type>(0), static_cast<Type>(77), Type::kDisconnect}) {
    Handshake server({.client = false, .rings = 1, .buffer_bytes = kBufferBytes});
    EXPECT_FALSE(server.on_message({.type = type}, {}).has_value());
    Handshake client({.client = true, .rings = 1, .buffer_bytes = kBufferBytes});
    EXPECT_FALSE(client.on_message({.type = type}, {}).has_value());
  }
  Handshake server({.client = false, .rings = 1, .buffer_bytes = kBufferBytes});
  ASSERT_TRUE(server.on_message(init(), {}).has_value());
  EXPECT_FALSE(server.on_message({.type = Type::kConnect}, {}).has_value()) << "without rings";
}

}  // namespace
}  // namespace godwit::port::memif
