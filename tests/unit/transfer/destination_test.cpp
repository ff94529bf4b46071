// Destination against a source that the test plays: what it places, what its table claims at every moment, when it says
// "ready".

#include "dataplane/pages/table_codec.h"
#include "tests/unit/transfer/fixture.h"

namespace godwit::transfer {
namespace {

using Page = std::array<std::byte, pages::kPageSize>;

Page page_of(std::uint8_t value) {
  Page page;
  page.fill(std::byte{value});
  return page;
}

class DestinationTest : public ::testing::Test {
 protected:
  void make(std::optional<pages::GenerationTable> retained = std::nullopt) {
    destination.emplace(make_config(), DestinationGuest{s.memory, std::move(retained)}, s.executor, s.events);
    destination->start(s.now, s.lanes);
    s.settle(*destination);
  }
  void hello(wire::VerifyLevel verify = wire::VerifyLevel::kSent) {
    tell(*destination, make_hello(wire::TransferMode::kPrecopy, verify));
    s.settle(*destination);
  }
  void send_table(const pages::GenerationTable& table) {
    std::vector<std::byte> piece;
    ASSERT_EQ(pages::encode_table_piece(table, 0, {}, piece), kPages);
    tell(*destination, wire::TablePiece{.last = true, .bytes = piece});
    s.settle(*destination);
  }
  void begin(std::uint32_t round, std::uint64_t pages_before) {
    tell(*destination, wire::RoundBegin{.round = round, .pages_before = pages_before});
    s.settle(*destination);
  }
  /// Up to where round 1 is open; the source's pages all have generation 50 + page.
  void open(std::optional<pages::GenerationTable> retained = std::nullopt,
            wire::VerifyLevel verify = wire::VerifyLevel::kSent) {
    make(std::move(retained));
    hello(verify);
    for (pages::PageNumber page = 0; page < kPages; ++page) {
      source_table.set(page, generation(page));
    }
    send_table(source_table);
    begin(1, 0);
    const auto ack = s.find<wire::RoundAck>(s.sent());
    ASSERT_TRUE(ack);
    EXPECT_EQ(ack->round, 1U);
  }
  void arrive(std::uint32_t round, pages::PageNumber page, const Page& content) {
    destination->on_page(1, round, page, 0, content);
    destination->flush(s.now);
    s.settle(*destination);
  }
  static pages::Generation generation(pages::PageNumber page) { return 50 + static_cast<pages::Generation>(page % 40); }
  [[nodiscard]] pages::Generation claim(pages::PageNumber page) const { return destination->table().get(page); }
  static pages::PageDigest digest_of(std::initializer_list<std::pair<pages::PageNumber, std::uint8_t>> known) {
    pages::PageHashes hashes(kPages);
    for (const auto& [page, value] : known) {
      hashes.set(page, pages::hash_page(page_of(value)));
    }
    return hashes.digest();
  }
  void all_placed(std::uint32_t round, std::uint64_t count, std::uint64_t checked, pages::PageDigest digest) {
    tell(*destination, wire::DeviceStateEnd{});
    tell(*destination, wire::AllPlaced{.round = round, .pages = count, .pages_checked = checked, .digest = digest});
    s.settle(*destination);
  }

  Surroundings s;
  pages::GenerationTable source_table{kPages, 50};
  std::optional<Destination> destination;
};

TEST_F(DestinationTest, RoundOneWaitsForTheSourceTable) {
  make();
  hello();
  begin(1, 0);
  EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
  EXPECT_EQ(s.events.failed, 1);
}

TEST_F(DestinationTest, APlacedPageHasTheGenerationOfItsRound) {
  open();
  EXPECT_EQ(claim(4), pages::kUnknownGeneration);
  arrive(1, 4, page_of(1));
  EXPECT_EQ(claim(4), generation(4));
  begin(2, 1);
  arrive(2, 4, page_of(2));
  EXPECT_EQ(claim(4), kEpochBase + 2);
  EXPECT_EQ(s.memory.page(4), page_of(2));
}

TEST_F(DestinationTest, APageIsUnknownUntilItsLastFragmentIsPlaced) {
  open(pages::GenerationTable(kPages, 9));
  EXPECT_EQ(claim(4), 9U);
  const Page page = page_of(3);
  destination->on_page(1, 1, 4, 2816, std::span(page).subspan(2816));
  EXPECT_EQ(claim(4), pages::kUnknownGeneration);
  destination->flush(s.now);
  destination->on_page(1, 1, 4, 0, std::span(page).first(1408));
  destination->on_page(1, 1, 4, 0, std::span(page).first(1408));  // a duplicate completes nothing
  destination->flush(s.now);
  EXPECT_EQ(claim(4), pages::kUnknownGeneration);
  destination->on_page(1, 1, 4, 1408, std::span(page).subspan(1408, 1408));
  EXPECT_EQ(claim(4), pages::kUnknownGeneration) << "it is still in the packet buffer";
  destination->flush(s.now);
  EXPECT_EQ(claim(4), generation(4));
  EXPECT_EQ(s.memory.page(4), page);
}

TEST_F(DestinationTest, ALatePacketOfAnOlderRoundChangesNothing) {
  open();
  arrive(1, 4, page_of(1));
  begin(2, 1);
  arrive(2, 4, page_of(2));
  arrive(1, 4, page_of(1));
  destination->on_zero_run(1, 1, 4, 1);
  EXPECT_EQ(s.memory.page(4), page_of(2));
  EXPECT_EQ(claim(4), kEpochBase + 2);
  EXPECT_EQ(s.events.failed, 0);
}

TEST_F(DestinationTest, APageIsPlacedOnceARound) {
  open();
  arrive(1, 4, page_of(1));
  arrive(1, 4, page_of(9));
  destination->on_zero_run(1, 1, 3, 3);
  s.settle(*destination);
  EXPECT_EQ(s.memory.page(4), page_of(1));
  EXPECT_EQ(s.memory.page(3), page_of(0));
  begin(2, 3);
  EXPECT_EQ(s.events.failed, 0) << s.events.text;
}

TEST_F(DestinationTest, ABurstIsOnePlacement) {
  open();
  const Page page = page_of(1);
  for (pages::PageNumber i = 0; i < 20; ++i) {
    destination->on_page(1, 1, i, 0, page);
  }
  EXPECT_EQ(s.memory.place_calls(), 0U);
  destination->flush(s.now);
  EXPECT_EQ(s.memory.place_calls(), 1U);
}

TEST_F(DestinationTest, PagesOfARoundNotBegunEndTheMigration) {
  open();
  arrive(2, 4, page_of(1));
  EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
  EXPECT_EQ(s.memory.page(4), page_of(0));
}

TEST_F(DestinationTest, PagesThatTheVmDoesNotHaveEndTheMigration) {
  open();
  arrive(1, kPages, page_of(1));
  EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
}

TEST_F(DestinationTest, PagesThatNobodyDemandedEndTheMigration) {
  for (const bool zero : {false, true}) {
    SCOPED_TRACE(zero);
    s.events = {};
    open();
    if (zero) {
      destination->on_zero_run(transport::kPriorityLane, 1, 4, 1);
    } else {
      destination->on_page(transport::kPriorityLane, 1, 4, 0, page_of(1));
    }
    destination->flush(s.now);
    s.settle(*destination);
    EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
    EXPECT_EQ(destination->table().get(4), pages::kUnknownGeneration);
  }
}

TEST_F(DestinationTest, ARunPastTheEndEndsTheMigration) {
  open();
  destination->on_zero_run(1, 1, 1, UINT64_MAX);
  s.settle(*destination);
  EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
}

TEST_F(DestinationTest, ARoundThatLostPagesIsNotClosed) {
  open();
  arrive(1, 4, page_of(1));
  begin(2, 2);
  EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
}

TEST_F(DestinationTest, ZeroPagesThatNeverCrossedGetTheirGenerationWhenTheRoundIsOver) {
  open();
  arrive(1, 4, page_of(1));
  EXPECT_EQ(claim(5), pages::kUnknownGeneration);
  begin(2, 1);
  EXPECT_EQ(claim(5), generation(5));
  EXPECT_EQ(destination->table(), source_table);
}

TEST_F(DestinationTest, ReusablePagesKeepTheirGeneration) {
  pages::GenerationTable retained(kPages, pages::kUnknownGeneration);
  retained.set(8, generation(8));
  open(retained);
  arrive(1, 4, page_of(1));
  begin(2, 1);
  EXPECT_EQ(claim(8), generation(8));
  EXPECT_EQ(claim(9), pages::kUnknownGeneration) << "neither placed nor reusable";
}

TEST_F(DestinationTest, ReadyWhenEverythingIsPlacedAndEqual) {
  open();
  arrive(1, 4, page_of(1));
  all_placed(1, 2, 2, digest_of({{4, 1}, {5, 2}}));
  EXPECT_EQ(s.events.memory_ready, 0) << "page 5 is missing";
  arrive(1, 5, page_of(2));
  EXPECT_EQ(s.events.memory_ready, 1);
  EXPECT_EQ(s.events.pages_checked, 2U);
  EXPECT_TRUE(s.find<wire::Verified>(s.sent()));
  EXPECT_EQ(destination->table(), source_table);
  arrive(1, 6, page_of(6));
  EXPECT_EQ(s.memory.page(6), page_of(0)) << "memory is QEMU's now";
  EXPECT_EQ(s.events.failed, 0);
}

TEST_F(DestinationTest, NotReadyBeforeTheDeviceStateIsComplete) {
  open();
  tell(*destination, wire::AllPlaced{.round = 1});
  s.settle(*destination);
  EXPECT_EQ(s.events.memory_ready, 0);
  EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
}

TEST_F(DestinationTest, NotReadyWhenWhatWasPlacedIsLost) {
  for (const bool noticed : {false, true}) {
    s.events = {};
    s.memory = simulation::ModelMemory(kPages);
    open(std::nullopt, wire::VerifyLevel::kOff);  // so that no digest finds it
    arrive(1, 4, page_of(1));
    s.memory.lose(noticed);
    if (noticed) {
      s.now = s.now + milliseconds(1);
      destination->tick(s.now);
    } else {
      all_placed(1, 1, 0, {});
    }
    EXPECT_EQ(s.events.memory_ready, 0);
    EXPECT_EQ(s.events.failed, 1);
    EXPECT_EQ(s.events.failure, Failure::kGuestMemory);
  }
}

TEST_F(DestinationTest, WhatDiffersIsAskedForAgain) {
  open();
  s.memory.damage_placement(1);
  arrive(1, 4, page_of(1));
  all_placed(1, 1, 1, digest_of({{4, 1}}));
  EXPECT_EQ(s.events.memory_ready, 0);
  EXPECT_TRUE(s.find<wire::ChunkDigests>(s.sent()));
  begin(2, 1);
  arrive(2, 4, page_of(1));
  tell(*destination, wire::AllPlaced{.round = 2, .pages = 1, .pages_checked = 1, .digest = digest_of({{4, 1}})});
  s.settle(*destination);
  EXPECT_EQ(s.events.memory_ready, 1);
  EXPECT_EQ(claim(4), kEpochBase + 2);
}

TEST_F(DestinationTest, AnImageThatDifferedClaimsNothing) {
  open();
  s.memory.damage_placement(1);
  arrive(1, 4, page_of(1));
  all_placed(1, 1, 1, digest_of({{4, 1}}));
  tell(*destination, wire::Abort{"cannot be mended"});
  s.settle(*destination);
  EXPECT_EQ(s.events.failure, Failure::kPeerFailed);
  EXPECT_EQ(destination->table().count(pages::kUnknownGeneration), kPages);
}

TEST_F(DestinationTest, FullVerificationReadsReusedPagesToo) {
  pages::GenerationTable retained(kPages, pages::kUnknownGeneration);
  for (pages::PageNumber page = 0; page < kPages; ++page) {
    retained.set(page, generation(page));
  }
  s.memory.fill(7, std::byte{7});  // the disk it was kept on was not honest
  open(retained, wire::VerifyLevel::kFull);
  pages::PageHashes hashes(kPages);
  hashes.set_zero(0, kPages);
  all_placed(1, 0, kPages, hashes.digest());
  EXPECT_EQ(s.events.memory_ready, 0);
  EXPECT_TRUE(s.find<wire::ChunkDigests>(s.sent()));
}

TEST_F(DestinationTest, WhatARoundBroughtIsHashedWhenItIsOverNotAtTheEnd) {
  open();
  begin(2, 0);
  arrive(2, 4, page_of(1));
  const std::size_t before = s.executor.submitted();
  begin(3, 1);
  EXPECT_EQ(s.executor.submitted(), before + 1);
  begin(4, 0);
  EXPECT_EQ(s.executor.submitted(), before + 1) << "nothing came, but something was hashed";
  all_placed(4, 0, 1, digest_of({{4, 1}}));
  EXPECT_EQ(s.events.memory_ready, 1);
}

TEST_F(DestinationTest, WithoutVerificationTheCountDecides) {
  open(std::nullopt, wire::VerifyLevel::kOff);
  arrive(1, 4, page_of(1));
  all_placed(1, 1, 0, {});
  EXPECT_EQ(s.events.memory_ready, 1);
}

TEST_F(DestinationTest, APartialImageClaimsOnlyWholePages) {
  open(pages::GenerationTable(kPages, 9));
  arrive(1, 4, page_of(1));
  const Page page = page_of(2);
  destination->on_page(1, 1, 5, 0, std::span(page).first(1024));
  destination->flush(s.now);
  destination->on_page(1, 1, 6, 0, page);  // in the buffer when the end comes
  destination->cancel(s.now, "no more");
  destination->flush(s.now);
  EXPECT_EQ(claim(4), generation(4));
  EXPECT_EQ(claim(5), pages::kUnknownGeneration);
  EXPECT_EQ(claim(6), pages::kUnknownGeneration);
  EXPECT_EQ(claim(7), 9U);
  EXPECT_EQ(s.memory.page(6), page_of(0));
  EXPECT_EQ(s.events.failed, 1);
  EXPECT_GT(destination->epoch_next(), kEpochBase + 1);
}

TEST_F(DestinationTest, APlacementThatFailsLeavesThePageUnknown) {
  open();
  s.memory.fail_next_call();
  arrive(1, 4, page_of(1));
  EXPECT_EQ(s.events.failure, Failure::kGuestMemory);
  EXPECT_EQ(claim(4), pages::kUnknownGeneration);
  EXPECT_TRUE(s.find<wire::Abort>(s.sent()));
}

TEST_F(DestinationTest, ASourceThatDoesNotFitIsToldWhatDiffers) {
  const auto refused = [](wire::Hello hello) {
    Surroundings other;
    Destination victim(make_config(), {other.memory, std::nullopt}, other.executor, other.events);
    victim.start(other.now, other.lanes);
    victim.on_message(wire::encode_message(hello));
    other.settle(victim);
    EXPECT_EQ(other.events.failed, 1);
    EXPECT_TRUE(other.find<wire::Abort>(other.sent()));
    return other.events.text;
  };
  const MigrationConfig config = make_config();
  const wire::Hello good{
      .id = config.id, .epoch_base = config.epoch_base, .epoch_count = config.epoch_count, .regions = config.regions};
  wire::Hello hello = good;
  hello.version = 1;
  EXPECT_NE(refused(hello).find("version 1"), std::string::npos);
  hello = good;
  hello.regions[1].pages = 25;
  EXPECT_NE(refused(hello).find("'ram1' of 25 pages there"), std::string::npos);
  hello = good;
  hello.regions.pop_back();
  EXPECT_NE(refused(hello).find("1 RAM regions there, 2 here"), std::string::npos);
  hello = good;
  hello.epoch_base += 1;
  EXPECT_NE(refused(hello).find("epochs"), std::string::npos);
}

TEST_F(DestinationTest, AClosedLaneEndsTheMigration) {
  open();
  transport::fake(s.priority).fault = transport::LaneFault::kForgeries;
  destination->tick(s.now);
  EXPECT_EQ(s.events.failure, Failure::kLaneClosed);
}

TEST_F(DestinationTest, FramesOfOthersPutNothingOff) {
  open();
  s.settle(*destination);
  destination->tick(s.now);
  const Instant due = destination->deadline();
  ASSERT_NE(due, kNever);
  s.now = s.now + milliseconds(100);
  destination->flush(s.now);  // after every burst of its lcore, whosever the frames were
  EXPECT_EQ(destination->deadline(), due);
}

TEST_F(DestinationTest, ASourceThatFallsSilentIsGivenUp) {
  open();
  s.now = s.now + milliseconds(9000);
  transport::fake(s.priority).counters.packets_received = 1;  // a keepalive
  s.settle(*destination);
  destination->tick(s.now);
  s.now = s.now + milliseconds(9000);
  destination->tick(s.now);
  EXPECT_EQ(s.events.failed, 0);
  s.now = s.now + milliseconds(2000);
  destination->tick(s.now);
  EXPECT_EQ(s.events.failure, Failure::kPeerLost);
}

}  // namespace
}  // namespace godwit::transfer
