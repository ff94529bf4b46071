// Post-copy of a Source and of a Destination, each against a peer that the test plays: what is announced when, what is
// a failure before the guest may run at the destination and what is not after it.

#include <map>

#include "dataplane/pages/table_codec.h"
#include "dataplane/transfer/page_sets.h"
#include "tests/simulation/paging_model.h"
#include "tests/unit/transfer/fixture.h"

namespace godwit::transfer {
namespace {

using Page = std::array<std::byte, pages::kPageSize>;

pages::Bitmap set_of(std::initializer_list<pages::PageNumber> pages) {
  pages::Bitmap set(kPages);
  for (const pages::PageNumber page : pages) {
    set.set(page);
  }
  return set;
}

template <class End>
void tell_set(End& end, const pages::Bitmap& set, std::uint32_t round, wire::PageSet kind) {
  std::vector<std::vector<std::byte>> messages;
  encode_page_set(set, round, kind, 0, messages);
  for (const auto& message : messages) {
    end.on_message(message);
  }
}

class SourcePostcopyTest : public ::testing::Test {
 protected:
  void make(Policy policy) {
    for (pages::PageNumber page = 0; page < 4; ++page) {
      s.memory.fill(page, std::byte{1});
    }
    source.emplace(make_config(), policy, SourceGuest{s.memory, table, kVisit}, s.executor, s.events);
    source->start(s.now, s.lanes);
    s.settle(*source);
    tell(*source, wire::HelloReply{.has_retained = false, .can_page = true});
    s.settle(*source);
    tell(*source, wire::RoundAck{.round = 1});
    s.settle(*source);
  }
  /// The sets sent since the last call, by round and kind.
  std::map<std::pair<std::uint32_t, wire::PageSet>, pages::Bitmap> sets(const std::vector<wire::Message>& messages) {
    std::map<std::pair<std::uint32_t, wire::PageSet>, pages::Bitmap> result;
    for (const auto& message : messages) {
      if (const auto* piece = std::get_if<wire::PageSetPiece>(&message)) {
        result[{piece->round, piece->kind}] = *decode_page_set({{piece->bytes.begin(), piece->bytes.end()}}, kPages);
      }
    }
    return result;
  }
  void stop() {
    source->guest_stopped(s.now);
    source->device_state_end(s.now);
    s.settle(*source);
  }
  /// Up to where the destination is armed.
  void verified() {
    make({.mode = Mode::kPostcopy});
    tell(*source, wire::PageSetAck{.round = 1});
    s.settle(*source);
    stop();
    ASSERT_TRUE(s.find<wire::AllAnnounced>(s.sent()));
    tell(*source, wire::Verified{});
  }
  /// Up to where the guest runs there.
  void serve() {
    verified();
    source->committed(s.now);
    s.settle(*source);
  }
  std::vector<transport::Work> take(std::uint16_t lane) {
    std::vector<transport::Work> works;
    transport::Work work;
    while (source->next_work(lane, work)) {
      works.push_back(work);
    }
    return works;
  }

  Surroundings s;
  pages::GenerationTable table{kPages, pages::kNeverWritten};
  std::optional<Source> source;
};

TEST_F(SourcePostcopyTest, AtOnceSendsSetsAheadAndNoPageBeforeTheDestinationIsArmed) {
  make({.mode = Mode::kPostcopy});
  auto ahead = sets(s.sent());
  EXPECT_EQ((ahead[{1, wire::PageSet::kMissing}]), set_of({0, 1, 2, 3}));
  EXPECT_EQ((ahead[{1, wire::PageSet::kZero}]).count(), kPages - 4);
  EXPECT_TRUE(take(1).empty());
  EXPECT_EQ(s.events.ready, 0);
  tell(*source, wire::PageSetAck{.round = 1});
  s.settle(*source);
  EXPECT_EQ(s.events.ready, 1);
  s.memory.fill(2, std::byte{0});
  s.memory.fill(9, std::byte{5});
  stop();
  const auto messages = s.sent();
  auto last = sets(messages);
  EXPECT_EQ((last[{2, wire::PageSet::kMissing}]), set_of({9}));
  EXPECT_EQ((last[{2, wire::PageSet::kZero}]), set_of({2}));
  EXPECT_EQ(s.find<wire::AllAnnounced>(messages)->last_round, 2U);
  EXPECT_TRUE(take(1).empty());
  tell(*source, wire::Verified{});
  source->committed(s.now);
  s.settle(*source);
  std::vector<pages::PageNumber> sent;
  for (const transport::Work& work : take(1)) {
    EXPECT_EQ(work.round, kPullRound);
    sent.push_back(work.page);
  }
  std::sort(sent.begin(), sent.end());
  EXPECT_EQ(sent, (std::vector<pages::PageNumber>{0, 1, 3, 9}));
}

TEST_F(SourcePostcopyTest, WhatWasLookedAtBeforeTheSwitchGoesOutAtOnceInTheBackground) {
  make({.mode = Mode::kPostcopy});
  tell(*source, wire::PageSetAck{.round = 1});
  s.settle(*source);
  stop();
  tell(*source, wire::Verified{});
  source->committed(s.now);
  source->tick(s.now);
  tell(*source, wire::DemandRequest{.again = false, .pages = {3}});
  const auto asked = take(transport::kPriorityLane), unasked = take(1);
  ASSERT_EQ(asked.size(), 1U);
  EXPECT_FALSE(asked[0].background);
  EXPECT_EQ(unasked.size(), 3U) << "without a job";
  for (const transport::Work& work : unasked) {
    EXPECT_TRUE(work.background);
  }
}

TEST_F(SourcePostcopyTest, UntilTheGuestRunsThereOnlyWhatIsAskedForIsGiven) {
  verified();
  tell(*source, wire::DemandRequest{.again = false, .pages = {3}});
  s.settle(*source);
  EXPECT_TRUE(take(1).empty()) << "QEMU loads its devices there";
  EXPECT_EQ(take(transport::kPriorityLane).size(), 1U);
  source->committed(s.now);
  s.settle(*source);
  EXPECT_EQ(take(1).size(), 3U);
}

TEST_F(SourcePostcopyTest, NobodysSilenceHoldsTheBackgroundBack) {
  verified();
  s.settle(*source);
  EXPECT_TRUE(take(1).empty());
  const Instant later = source->deadline();
  ASSERT_LE(later, s.now + milliseconds(100));
  s.now = later;
  s.settle(*source);
  EXPECT_EQ(take(1).size(), 4U);
}

TEST_F(SourcePostcopyTest, OneScanIsEnoughOnceNothingIsSent) {
  make({.mode = Mode::kPostcopy});
  tell(*source, wire::PageSetAck{.round = 1});
  s.settle(*source);
  static_cast<void>(s.sent());
  s.memory.fill(9, std::byte{5});
  source->guest_stopped(s.now);
  s.settle(*source);
  EXPECT_TRUE(s.memory.written().test(9)) << "the last scan finds it";
  source->device_state_end(s.now);
  s.settle(*source);
  EXPECT_EQ((sets(s.sent())[{2, wire::PageSet::kMissing}]), set_of({9}));
}

TEST_F(SourcePostcopyTest, ARoundInFlightIsAcknowledgedBeforeItsRestIsAnnounced) {
  make({.mode = Mode::kHybrid});
  transport::Work work;
  ASSERT_TRUE(source->next_work(1, work));
  send_page(*source, work.page);
  EXPECT_TRUE(source->switch_to_postcopy(s.now));
  s.settle(*source);
  EXPECT_EQ(s.events.ready, 1);
  stop();
  EXPECT_TRUE(take(1).empty()) << "nothing new once the guest stands still";
  EXPECT_FALSE(s.find<wire::AllAnnounced>(s.sent()));
  source->on_acknowledged(work);
  s.settle(*source);
  const auto messages = s.sent();
  const auto announced = s.find<wire::AllAnnounced>(messages);
  ASSERT_TRUE(announced);
  EXPECT_EQ(announced->round, 1U);
  EXPECT_EQ(announced->pages, 1U);
  EXPECT_EQ((sets(messages)[{1, wire::PageSet::kMissing}].count()), 3U);
  EXPECT_EQ(announced->pages_checked, 1U);
}

TEST_F(SourcePostcopyTest, WithoutConvergenceTheRestIsPulledIfThatIsThePolicy) {
  make({.on_no_convergence = OnNoConvergence::kPostcopy, .time_limit = milliseconds(5)});
  s.now = s.now + milliseconds(6);
  source->tick(s.now);
  s.settle(*source);
  EXPECT_EQ(s.events.ready, 1);
  EXPECT_EQ(s.events.failed, 0);
}

TEST_F(SourcePostcopyTest, PrecopyNeverSwitches) {
  make({});
  EXPECT_FALSE(source->switch_to_postcopy(s.now));
}

TEST_F(SourcePostcopyTest, ADestinationThatCannotPageIsRefusedWhereNothingElseIsWanted) {
  source.emplace(make_config(), Policy{.mode = Mode::kHybrid}, SourceGuest{s.memory, table, kVisit}, s.executor,
                 s.events);
  source->start(s.now, s.lanes);
  tell(*source, wire::HelloReply{});
  s.settle(*source);
  EXPECT_EQ(s.events.failed, 1);
  EXPECT_NE(s.events.text.find("choose precopy"), std::string::npos) << s.events.text;
}

TEST_F(SourcePostcopyTest, DemandGoesOutOnThePriorityLaneAndZeroPagesAsZero) {
  serve();
  tell(*source, wire::DemandRequest{.again = false, .pages = {3, 50}});
  const auto asked = take(transport::kPriorityLane);
  ASSERT_EQ(asked.size(), 2U);
  EXPECT_EQ(asked[0].page, 3U);
  EXPECT_FALSE(asked[0].zero);
  EXPECT_TRUE(asked[1].zero) << "never announced, and given all the same";
  for (const transport::Work& work : take(1)) {
    EXPECT_NE(work.page, 3U);
  }
}

TEST_F(SourcePostcopyTest, AfterTheSwitchNothingOfThePeerIsAFailure) {
  serve();
  tell(*source, wire::DemandRequest{.again = false, .pages = {kPages}});
  s.settle(*source);
  EXPECT_EQ(s.events.lost, 1);
  EXPECT_EQ(s.events.failed, 0);
  EXPECT_TRUE(take(1).empty());
  source->detach(s.now);
  source->resume(s.now, s.lanes);
  tell(*source, wire::Resume{.id = make_config().id});
  tell_set(*source, set_of({1, 3}), 0, wire::PageSet::kStillMissing);
  s.settle(*source);
  EXPECT_EQ(take(1).size(), 2U) << "what the destination says is missing, and nothing else";
}

TEST_F(SourcePostcopyTest, ASilentDestinationIsAwaited) {
  serve();
  transport::fake(s.bulk1).dead = true;
  source->tick(s.now);
  EXPECT_EQ(s.events.lost, 1);
  EXPECT_EQ(s.events.failed, 0);
  source->cancel(s.now, "aborted");
  EXPECT_EQ(s.events.failed, 1) << "but the store's word counts";
}

TEST_F(SourcePostcopyTest, ANewProcessServesWhatTheDestinationMisses) {
  for (pages::PageNumber page = 0; page < 4; ++page) {
    s.memory.fill(page, std::byte{1});
  }
  source.emplace(make_config(), Policy{}, SourceGuest{s.memory, table, kVisit}, s.executor, s.events);
  source->resume(s.now, s.lanes);
  tell(*source, wire::DemandRequest{.again = false, .pages = {2}});
  s.settle(*source);
  EXPECT_EQ(s.events.lost, 1) << "Resume comes first";
  source->detach(s.now);
  source->resume(s.now, s.lanes);
  tell(*source, wire::Resume{.id = make_config().id});
  tell(*source, wire::DemandRequest{.again = false, .pages = {2}});
  tell_set(*source, set_of({1, 2}), 0, wire::PageSet::kStillMissing);
  s.settle(*source);
  EXPECT_EQ(take(transport::kPriorityLane).size(), 1U);
  EXPECT_EQ(take(1).size(), 1U);
  tell(*source, wire::Complete{});
  s.settle(*source);
  EXPECT_EQ(s.events.complete, 1);
  EXPECT_EQ(s.events.stats.pages_demand, 1U);
  EXPECT_EQ(s.events.stats.pages_background, 1U);
}

TEST_F(SourcePostcopyTest, WhatTheDestinationGotIsComparedWithWhatIsHere) {
  serve();
  Page page;
  page.fill(std::byte{1});
  for (const bool equal : {true, false}) {
    Surroundings other;
    other.memory.fill(2, std::byte{1});
    Source again(make_config(), Policy{}, SourceGuest{other.memory, table, kVisit}, other.executor, other.events);
    again.resume(other.now, other.lanes);
    tell(again, wire::Resume{.id = make_config().id});
    tell_set(again, set_of({}), 0, wire::PageSet::kStillMissing);
    tell_set(again, set_of({2}), 0, wire::PageSet::kGot);
    page[77] = std::byte{equal ? std::uint8_t{1} : std::uint8_t{2}};
    tell(again, wire::Complete{.pages = 1, .digest = pages::digest_term(2, pages::hash_page(page))});
    other.settle(again);
    EXPECT_EQ(other.events.complete, 1);
    EXPECT_EQ(other.events.equal, equal);
    EXPECT_EQ(other.find<wire::Completed>(other.sent())->equal, equal);
  }
}

/// A destination and what the source would say to it.
struct DestinationPeer {
  void open(wire::TransferMode mode, wire::VerifyLevel verify = wire::VerifyLevel::kOff) {
    destination.emplace(make_config(), DestinationGuest{s.memory, std::nullopt, &paging}, s.executor, s.events);
    destination->start(s.now, s.lanes);
    tell(*destination, make_hello(mode, verify));
    s.settle(*destination);
    std::vector<std::byte> piece;
    ASSERT_EQ(pages::encode_table_piece(source_table, 0, {}, piece), kPages);
    tell(*destination, wire::TablePiece{.last = true, .bytes = piece});
    tell(*destination, wire::RoundBegin{.round = 1, .pages_before = 0});
    s.settle(*destination);
  }
  void announce(const pages::Bitmap& missing, const pages::Bitmap& zero, std::uint32_t round) {
    tell_set(*destination, missing, round, wire::PageSet::kMissing);
    tell_set(*destination, zero, round, wire::PageSet::kZero);
    s.settle(*destination);
  }
  void all_announced(std::uint32_t last_round) {
    tell(*destination, wire::DeviceStateEnd{});
    tell(*destination, wire::AllAnnounced{.round = 1, .pages = 0, .last_round = last_round});
    s.settle(*destination);
  }
  /// Pages 3 and 4 are missing, and the guest may run.
  void arm() {
    open(wire::TransferMode::kPostcopy);
    announce(set_of({3, 4, 5}), set_of({6}), 1);
    announce(set_of({4}), set_of({5}), 2);
    all_announced(2);
    ASSERT_EQ(s.events.memory_ready, 1);
    static_cast<void>(s.sent());
  }
  void arrive(std::uint16_t lane, pages::PageNumber page) {
    Page bytes;
    bytes.fill(std::byte{7});
    destination->on_page(lane, kPullRound, page, 0, bytes);
    destination->flush(s.now);
    s.settle(*destination);
  }
  void fault(pages::PageNumber page) {
    EXPECT_FALSE(paging.touch(page, true));
    EXPECT_TRUE(destination->pump());
    s.settle(*destination);
  }
  [[nodiscard]] pages::Generation claim(pages::PageNumber page) const { return destination->table().get(page); }

  Surroundings s;
  simulation::Random random{1};
  simulation::Verdict verdict;
  simulation::PagingModel paging{s.memory, random, verdict};
  pages::GenerationTable source_table{kPages, 50};
  std::optional<Destination> destination;
};

class DestinationPostcopyTest : public ::testing::Test, protected DestinationPeer {};

TEST_F(DestinationPostcopyTest, TheTableIsTheGuestsWhenItMayRun) {
  arm();
  EXPECT_EQ(claim(3), 50U);
  EXPECT_EQ(claim(4), kEpochBase + 2);
  EXPECT_EQ(claim(5), kEpochBase + 2);
  EXPECT_EQ(claim(6), 50U);
  EXPECT_EQ(paging.missing_pages(), set_of({3, 4}));
}

TEST_F(DestinationPostcopyTest, TheDeviceStateMayComeAheadWhereNothingIsPresent) {
  open(wire::TransferMode::kPostcopy);
  EXPECT_EQ(s.events.guarded, 0);
  announce(set_of({3, 4, 5}), set_of({6}), 1);
  EXPECT_EQ(s.events.guarded, 1);
  EXPECT_EQ(s.events.memory_ready, 0);
}

TEST_F(DestinationPostcopyTest, TheDeviceStateWaitsWhereAPageIsPresent) {
  s.memory.fill(9, std::byte{5});
  open(wire::TransferMode::kPostcopy);
  announce(set_of({3, 4, 5}), set_of({6}), 1);
  EXPECT_TRUE(paging.guarded());
  EXPECT_EQ(s.events.guarded, 0) << "page 9 may have been written since";
}

TEST_F(DestinationPostcopyTest, WhatIsPunchedIsUnknownIfTheMigrationFails) {
  open(wire::TransferMode::kPostcopy);
  announce(set_of({3, 4}), set_of({6}), 1);
  EXPECT_TRUE(s.find<wire::PageSetAck>(s.sent()));
  EXPECT_EQ(claim(3), pages::kUnknownGeneration);
  EXPECT_EQ(claim(6), 50U);
}

TEST_F(DestinationPostcopyTest, WhatIsMissingIsUnknownAfterAnAbortAndTheRestIsKept) {
  arm();
  arrive(1, 3);
  destination->cancel(s.now, "aborted");
  s.executor.run_all();
  EXPECT_EQ(claim(3), 50U);
  EXPECT_EQ(claim(4), pages::kUnknownGeneration);
  EXPECT_EQ(claim(5), kEpochBase + 2);
}

TEST_F(DestinationPostcopyTest, AFaultIsAskedForOnceAndItsPageEndsIt) {
  arm();
  fault(4);
  fault(4);
  const auto messages = s.sent();
  ASSERT_EQ(messages.size(), 1U);
  EXPECT_EQ(std::get<wire::DemandRequest>(messages[0]).pages, std::vector<std::uint64_t>{4});
  arrive(transport::kPriorityLane, 4);
  EXPECT_FALSE(paging.missing(4));
  EXPECT_EQ(destination->stats(s.now).all_there_us, 0U);
  s.now = s.now + milliseconds(5);
  const std::uint64_t there_us = destination->stats(s.now).elapsed_us;
  arrive(1, 3);
  const auto complete = s.find<wire::Complete>(s.sent());
  ASSERT_TRUE(complete);
  s.now = s.now + milliseconds(5);
  EXPECT_FALSE(paging.armed());
  EXPECT_EQ(s.events.complete, 0);
  tell(*destination, wire::Completed{.equal = true});
  s.settle(*destination);
  EXPECT_EQ(s.events.complete, 1);
  EXPECT_EQ(s.events.stats.pages_demand, 1U);
  EXPECT_EQ(s.events.stats.pages_background, 1U);
  EXPECT_EQ(s.events.stats.faults, 2U);
  EXPECT_EQ(s.events.stats.all_there_us, there_us);
}

TEST_F(DestinationPostcopyTest, WhatIsGivenBackIsNotMissedAnyMore) {
  arm();
  paging.give_back(3, 2);
  EXPECT_TRUE(destination->pump());
  s.settle(*destination);
  EXPECT_TRUE(s.find<wire::Complete>(s.sent()));
}

TEST_F(DestinationPostcopyTest, ALostConnectionIsNoFailureAndAllThatIsMissingIsAskedForOnTheNext) {
  arm();
  fault(4);
  transport::fake(s.priority).dead = true;
  destination->tick(s.now);
  EXPECT_EQ(s.events.lost, 1);
  EXPECT_EQ(s.events.failed, 0);
  fault(3);
  static_cast<void>(s.sent());
  destination->detach(s.now);
  transport::fake(s.priority).dead = false;
  destination->resume(s.now, s.lanes);
  s.settle(*destination);
  const auto messages = s.sent();
  ASSERT_GE(messages.size(), 3U);
  EXPECT_TRUE(std::holds_alternative<wire::Resume>(messages[0]));
  EXPECT_EQ(s.find<wire::DemandRequest>(messages)->pages, (std::vector<std::uint64_t>{3, 4}));
  const auto piece = s.find<wire::PageSetPiece>(messages);
  ASSERT_TRUE(piece);
  EXPECT_EQ(*decode_page_set({{piece->bytes.begin(), piece->bytes.end()}}, kPages), set_of({3, 4}));
}

TEST_F(DestinationPostcopyTest, ANewProcessGoesOnWithTheMissingSet) {
  ASSERT_TRUE(paging.arm(set_of({9})));
  destination.emplace(make_config(), DestinationGuest{s.memory, source_table, &paging}, s.executor, s.events);
  destination->resume(s.now, s.lanes);
  s.settle(*destination);
  const auto piece = s.find<wire::PageSetPiece>(s.sent());
  ASSERT_TRUE(piece);
  EXPECT_EQ(*decode_page_set({{piece->bytes.begin(), piece->bytes.end()}}, kPages), set_of({9}));
  EXPECT_EQ(destination->stats(s.now).pages_left, 1U);
  EXPECT_EQ(s.events.memory_ready, 0);
}

TEST_F(DestinationPostcopyTest, ASourceThatBreaksTheOrderEndsTheMigrationBeforeTheGuestRuns) {
  const auto refused = [](auto&& play) {
    DestinationPeer peer;
    play(peer);
    peer.s.settle(*peer.destination);
    return peer.s.events.failed == 1 && peer.s.events.failure == Failure::kPeerProtocol;
  };
  EXPECT_TRUE(refused([](auto& peer) {
    peer.open(wire::TransferMode::kPrecopy);
    tell_set(*peer.destination, set_of({3}), 1, wire::PageSet::kMissing);
  })) << "sets in pre-copy";
  EXPECT_TRUE(refused([](auto& peer) {
    peer.open(wire::TransferMode::kHybrid);
    tell_set(*peer.destination, set_of({3}), 1, wire::PageSet::kZero);
  })) << "the zero set first";
  EXPECT_TRUE(refused([](auto& peer) {
    peer.open(wire::TransferMode::kHybrid);
    tell_set(*peer.destination, set_of({3}), 3, wire::PageSet::kMissing);
  })) << "a round that cannot be";
  EXPECT_TRUE(refused([](auto& peer) {
    peer.open(wire::TransferMode::kHybrid);
    tell(*peer.destination, wire::AllAnnounced{.round = 1, .pages = 0, .last_round = 1});
  })) << "before the device state is complete";
  EXPECT_TRUE(refused([](auto& peer) {
    peer.open(wire::TransferMode::kHybrid);
    tell(*peer.destination, wire::DeviceStateEnd{});
    tell(*peer.destination, wire::AllAnnounced{.round = 1, .pages = 1, .last_round = 1});
  })) << "with a page in flight";
  EXPECT_TRUE(refused([](auto& peer) {
    peer.open(wire::TransferMode::kHybrid);
    peer.arrive(1, 3);
  })) << "a pulled page before anything is missing";
  EXPECT_TRUE(refused([](auto& peer) {
    peer.open(wire::TransferMode::kHybrid);
    Page bytes{};
    peer.destination->on_page(transport::kPriorityLane, 1, 3, 0, bytes);
  })) << "a page of a round on the priority lane";
}

}  // namespace
}  // namespace godwit::transfer
