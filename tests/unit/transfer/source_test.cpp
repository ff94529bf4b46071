// Source against a peer that the test plays: who sends what when, and what the table says after every ending.

#include "tests/unit/transfer/source_fixture.h"

namespace godwit::transfer {
namespace {

TEST_F(SourceTest, SendsNoPageBeforeTheDestinationTakesTheRound) {
  s.memory.fill(3, std::byte{1});
  make();
  EXPECT_TRUE(s.find<wire::Hello>(s.sent()));
  Work work;
  EXPECT_FALSE(source->next_work(1, work));
  answer_hello();
  EXPECT_TRUE(s.find<wire::RoundBegin>(s.sent()));
  EXPECT_FALSE(source->next_work(1, work));
  acknowledge_round(1);
  EXPECT_FALSE(source->next_work(transport::kPriorityLane, work));  // nobody waits for a page
  const auto works = take();
  ASSERT_EQ(works.size(), 1U);
  EXPECT_EQ(works[0].page, 3U);
  EXPECT_EQ(works[0].round, 1U);
}

TEST_F(SourceTest, ZeroPagesDoNotCrossToAnEmptyDestination) {
  s.memory.fill(3, std::byte{1});
  make();
  answer_hello();
  acknowledge_round(1);
  EXPECT_EQ(take().size(), 1U);
  EXPECT_EQ(source->stats(s.now).pages_zero, kPages - 1);
  EXPECT_EQ(source->stats(s.now).pages_reused, 0U);
}

TEST_F(SourceTest, SendsExactlyWhatIsNotReusableAndZeroPagesAsRuns) {
  // 0..9 have content of generation 7, of which the destination's image has 0..4; 10..19 were given back in this visit.
  pages::GenerationTable retained(kPages, pages::kNeverWritten);
  for (pages::PageNumber page = 0; page < 10; ++page) {
    s.memory.fill(page, std::byte{1});
  }
  s.memory.rearm();
  table.set_range(0, 10, 3);
  retained.set_range(0, 5, 3);
  retained.set_range(10, 10, 3);
  for (pages::PageNumber page = 10; page < 20; ++page) {
    s.memory.fill(page, std::byte{0});
  }
  make();
  answer_hello(retained);
  acknowledge_round(1);
  const auto works = take();
  ASSERT_EQ(works.size(), 6U);
  EXPECT_TRUE(works[0].zero);
  EXPECT_EQ(works[0].page, 10U);
  EXPECT_EQ(works[0].count, 10U);
  for (std::size_t i = 1; i < works.size(); ++i) {
    EXPECT_FALSE(works[i].zero);
    EXPECT_GE(works[i].page, 5U);
    EXPECT_LT(works[i].page, 10U);
  }
  EXPECT_EQ(source->stats(s.now).pages_reused, kPages - 15);
  EXPECT_EQ(table.get(12), kVisit);
}

TEST_F(SourceTest, UnknownPagesCountAsWrittenInThisVisit) {
  table.fill(pages::kUnknownGeneration);
  make();
  answer_hello(pages::GenerationTable(kPages, pages::kUnknownGeneration));
  EXPECT_EQ(table.count(kVisit), kPages);
  EXPECT_EQ(source->stats(s.now).pages_reused, 0U);
}

TEST_F(SourceTest, NextRoundBeginsOnlyWhenEveryPageIsAcknowledged) {
  for (pages::PageNumber page = 0; page < 4; ++page) {
    s.memory.fill(page, std::byte{1});
  }
  make();
  answer_hello();
  acknowledge_round(1);
  const auto works = take(false);
  s.memory.fill(2, std::byte{2});
  acknowledge({works[0], works[1], works[2]});
  advance(milliseconds(100));
  s.sent();
  EXPECT_EQ(table.get(2), kVisit);
  acknowledge({works[3]});
  const auto begin = s.find<wire::RoundBegin>(s.sent());
  ASSERT_TRUE(begin);
  EXPECT_EQ(begin->round, 2U);
  EXPECT_EQ(begin->pages_before, 4U);
  EXPECT_EQ(table.get(2), kEpochBase + 2);
  EXPECT_TRUE(take().empty());
  acknowledge_round(2);
  const auto second = take();
  ASSERT_EQ(second.size(), 1U);
  EXPECT_EQ(second[0].page, 2U);
  EXPECT_EQ(second[0].round, 2U);
}

TEST_F(SourceTest, AScanWhoseMigrationIsCancelledStillReachesTheTable) {
  first_round(4);
  acknowledge_round(2);
  s.memory.fill(1, std::byte{9});
  s.now = s.now + milliseconds(50);
  source->tick(s.now);
  ASSERT_EQ(s.executor.waiting(), 1U);
  s.executor.work_first();
  source->cancel(s.now, "enough");
  const std::uint32_t next = source->epoch_next();
  source.reset();
  s.executor.run_all();
  EXPECT_GT(table.get(1), kEpochBase);
  EXPECT_GT(next, table.get(1));
  EXPECT_EQ(s.events.failed, 1);
}

TEST_F(SourceTest, AFailedScanLeavesNothingKnown) {
  s.memory.fill(1, std::byte{1});
  make();
  s.memory.fail_next_call();
  answer_hello();
  EXPECT_EQ(s.events.failed, 1);
  EXPECT_EQ(s.events.failure, Failure::kGuestMemory);
  EXPECT_EQ(table.count(pages::kUnknownGeneration), kPages);
}

TEST_F(SourceTest, AnEmptyLastScanNeedsNoRoundOfItsOwn) {
  first_round(2);
  acknowledge_round(2);
  EXPECT_EQ(s.events.ready, 1);
  source->guest_stopped(s.now);
  s.settle(*source);
  std::vector<std::byte> state(100'000);
  EXPECT_TRUE(source->device_state(state));
  s.sent();
  source->device_state_end(s.now);
  s.settle(*source);
  const auto messages = s.sent();
  EXPECT_TRUE(s.find<wire::DeviceStateEnd>(messages));
  EXPECT_FALSE(s.find<wire::RoundBegin>(messages));
  const auto all_placed = s.find<wire::AllPlaced>(messages);
  ASSERT_TRUE(all_placed);
  EXPECT_EQ(all_placed->pages_checked, 2U);
  tell(*source, wire::Verified{});
  s.settle(*source);
  EXPECT_EQ(s.events.done, 1);
  EXPECT_EQ(s.events.stats.device_state_bytes, 100'000U);
  EXPECT_EQ(s.events.failed, 0);
}

TEST_F(SourceTest, WhatQemuWritesAfterStopIsSentBeforeTheEnd) {
  first_round(2);
  acknowledge_round(2);
  source->guest_stopped(s.now);
  s.settle(*source);
  EXPECT_TRUE(take().empty());
  s.memory.fill(7, std::byte{7});  // drained I/O
  source->device_state_end(s.now);
  s.settle(*source);
  for (std::uint32_t round = 2; round < 5; ++round) {
    if (const auto begin = s.find<wire::RoundBegin>(s.sent())) {
      acknowledge_round(begin->round);
    }
    EXPECT_FALSE(s.find<wire::AllPlaced>(s.sent()));
    const auto works = take(false);
    if (!works.empty()) {
      EXPECT_EQ(works[0].page, 7U);
      s.settle(*source);
      // Without waiting for the acknowledgement: the destination counts.
      const auto all_placed = s.find<wire::AllPlaced>(s.sent());
      ASSERT_TRUE(all_placed);
      EXPECT_EQ(all_placed->round, works[0].round);
      EXPECT_EQ(all_placed->pages, 1U);
      EXPECT_EQ(source->stats(s.now).pages_last_round, 1U);
      return;
    }
  }
  FAIL() << "page 7 was never sent";
}

TEST_F(SourceTest, PagesThatDifferGoAgainUnderAFreshEpoch) {
  first_round(2);
  acknowledge_round(2);
  source->device_state_end(s.now);
  s.settle(*source);
  ASSERT_TRUE(s.find<wire::AllPlaced>(s.sent()));
  tell(*source, wire::ChunkDigests{.last = true, .first_chunk = 0, .digests = {{1, 2}}});
  s.settle(*source);
  const auto begin = s.find<wire::RoundBegin>(s.sent());
  ASSERT_TRUE(begin);
  acknowledge_round(begin->round);
  std::uint64_t pages = 0;
  for (const Work& work : take()) {
    pages += work.count;
  }
  EXPECT_EQ(pages, kPages);  // the whole chunk
  EXPECT_EQ(table.count(kEpochBase + begin->round), kPages);
  ASSERT_TRUE(s.find<wire::AllPlaced>(s.sent()));
  tell(*source, wire::Verified{});
  s.settle(*source);
  EXPECT_EQ(s.events.done, 1);
}

TEST_F(SourceTest, GivesUpWhenMemoryStaysDifferent) {
  first_round(2);
  acknowledge_round(2);
  source->device_state_end(s.now);
  s.settle(*source);
  for (int i = 0; i < 10 && s.events.failed == 0; ++i) {
    tell(*source, wire::ChunkDigests{.last = true, .first_chunk = 0, .digests = {{1, 2}}});
    s.settle(*source);
    if (const auto begin = s.find<wire::RoundBegin>(s.sent())) {
      acknowledge_round(begin->round);
      take();
    }
  }
  EXPECT_EQ(s.events.failure, Failure::kVerify);
  EXPECT_EQ(s.events.failed, 1);
}

/// Keeps all pages written until the source says what it thinks of it.
class ConvergenceTest : public SourceTest {
 protected:
  void write_without_end(OnNoConvergence policy_choice) {
    Policy policy;
    policy.downtime_limit = microseconds(1);
    policy.rounds_max = 4;
    policy.on_no_convergence = policy_choice;
    make(policy);
    answer_hello();
    for (std::uint32_t round = 1; round < 10 && s.events.ready == 0 && s.events.failed == 0; ++round) {
      for (pages::PageNumber page = 0; page < kPages; ++page) {
        s.memory.fill(page, std::byte{1});
      }
      acknowledge_round(round);
      take();
      advance(milliseconds(10));
    }
  }
};

TEST_F(ConvergenceTest, AbortsWithTheFiguresThatExplainIt) {
  write_without_end(OnNoConvergence::kAbort);
  EXPECT_EQ(s.events.failed, 1);
  EXPECT_EQ(s.events.failure, Failure::kNoConvergence);
  EXPECT_NE(s.events.text.find("the guest writes"), std::string::npos) << s.events.text;
  EXPECT_NE(s.events.text.find("the link moves"), std::string::npos) << s.events.text;
  const auto abort = s.find<wire::Abort>(s.sent());
  ASSERT_TRUE(abort);
  EXPECT_EQ(abort->text, s.events.text);
}

TEST_F(ConvergenceTest, StopsAnywayWhenToldTo) {
  write_without_end(OnNoConvergence::kStopAnyway);
  EXPECT_EQ(s.events.ready, 1);
  EXPECT_EQ(s.events.failed, 0);
}

TEST_F(ConvergenceTest, PostcopyIsRefusedClearlyWhereTheDestinationCannotDoIt) {
  write_without_end(OnNoConvergence::kPostcopy);
  EXPECT_EQ(s.events.failure, Failure::kNoConvergence);
  EXPECT_NE(s.events.text.find("cannot catch the faults"), std::string::npos) << s.events.text;
}

TEST_F(SourceTest, TheTimeLimitHoldsInTheFirstRoundToo) {
  s.memory.fill(0, std::byte{1});
  Policy policy;
  policy.time_limit = milliseconds(50);
  make(policy);
  answer_hello();
  acknowledge_round(1);
  advance(milliseconds(51));
  EXPECT_EQ(s.events.failure, Failure::kNoConvergence);
  EXPECT_EQ(s.events.failed, 1);
}

TEST_F(SourceTest, WaitingForTheSwitchUsesUpNeitherTheLinkNorTheEpochs) {
  first_round(2);
  for (int i = 0; i < 3000; ++i) {
    if (const auto begin = s.find<wire::RoundBegin>(s.sent())) {
      acknowledge_round(begin->round);
    }
    advance(milliseconds(1));
  }
  EXPECT_EQ(s.events.failed, 0);
  EXPECT_EQ(s.events.ready, 1);
  s.memory.fill(9, std::byte{9});
  source->device_state_end(s.now);
  s.settle(*source);
  if (const auto begin = s.find<wire::RoundBegin>(s.sent())) {
    acknowledge_round(begin->round);
  }
  const auto works = take();
  ASSERT_EQ(works.size(), 1U);
  EXPECT_EQ(works[0].page, 9U);
  EXPECT_TRUE(s.find<wire::AllPlaced>(s.sent()));
}

TEST_F(SourceTest, DeviceStateWaitsWhenThePriorityLaneIsFull) {
  first_round(1);
  transport::fake(s.priority).room = 0;
  const std::vector<std::byte> chunk(60'000);
  int taken = 0;
  while (taken < 100 && source->device_state(chunk)) {
    ++taken;
  }
  EXPECT_GT(taken, 0);
  EXPECT_LT(taken, 20);
  transport::fake(s.priority).room = SIZE_MAX;
  advance(milliseconds(1));
  EXPECT_TRUE(source->device_state(chunk));
}

TEST_F(SourceTest, MemoryThatIsLostEndsTheMigrationAtOnce) {
  first_round(3);
  s.memory.lose(true);
  advance(milliseconds(1));
  EXPECT_EQ(s.events.failed, 1);
  EXPECT_EQ(s.events.failure, Failure::kGuestMemory);
  EXPECT_NE(s.events.text.find("cut short"), std::string::npos) << s.events.text;
  EXPECT_TRUE(s.find<wire::Abort>(s.sent()));
}

TEST_F(SourceTest, MemoryLostAfterTheLastScanIsNotConfirmed) {
  first_round(3);
  source->guest_stopped(s.now);
  source->device_state_end(s.now);
  s.settle(*source);
  acknowledge_round(2);
  ASSERT_TRUE(s.find<wire::AllPlaced>(s.sent()));
  s.memory.lose(false);
  tell(*source, wire::Verified{});
  s.settle(*source);
  EXPECT_EQ(s.events.done, 0);
  EXPECT_EQ(s.events.failure, Failure::kGuestMemory);
}

TEST_F(SourceTest, EveryEndingIsToldOnceAndThenThereIsSilence) {
  first_round(3);
  s.sent();
  source->on_message(std::as_bytes(std::span("garbage")));
  source->on_message(std::as_bytes(std::span("more")));
  s.settle(*source);
  source->cancel(s.now, "too late");
  advance(milliseconds(10'000));
  EXPECT_EQ(s.events.failed, 1);
  EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
  const auto messages = s.sent();
  ASSERT_EQ(messages.size(), 1U);
  EXPECT_TRUE(std::holds_alternative<wire::Abort>(messages[0]));
  Work work;
  EXPECT_FALSE(source->next_work(1, work));
}

TEST_F(SourceTest, ADestinationThatGivesUpIsNotAnswered) {
  first_round(3);
  s.sent();
  tell(*source, wire::Abort{"no room"});
  s.settle(*source);
  EXPECT_EQ(s.events.failure, Failure::kPeerFailed);
  EXPECT_NE(s.events.text.find("no room"), std::string::npos);
  EXPECT_TRUE(s.sent().empty());
}

TEST_F(SourceTest, ASilentPeerEndsTheMigration) {
  first_round(3);
  transport::fake(s.bulk2).dead = true;
  advance(milliseconds(1));
  EXPECT_EQ(s.events.failure, Failure::kPeerLost);
}

TEST_F(SourceTest, AClosedLaneEndsTheMigration) {
  first_round(3);
  s.sent();
  transport::fake(s.bulk2).fault = transport::LaneFault::kForgeries;
  advance(milliseconds(1));
  EXPECT_EQ(s.events.failure, Failure::kLaneClosed);
  EXPECT_NE(s.events.text.find("closed"), std::string::npos);
  EXPECT_FALSE(s.sent().empty()) << "the destination is told by a lane that still works";
}

TEST_F(SourceTest, MessagesOutOfTurnAreRefused) {
  const std::vector<wire::Message> wrong = {wire::RoundAck{.round = 1},
                                            wire::Verified{},
                                            wire::ChunkDigests{.last = true, .first_chunk = 0, .digests = {{}}},
                                            wire::RoundBegin{.round = 1},
                                            wire::DeviceStateEnd{},
                                            wire::AllPlaced{}};
  for (const auto& message : wrong) {
    Surroundings other;
    pages::GenerationTable other_table(kPages, pages::kNeverWritten);
    Source victim(make_config(), {}, {other.memory, other_table, kVisit}, other.executor, other.events);
    victim.start(other.now, other.lanes);
    victim.on_message(wire::encode_message(message));
    other.settle(victim);
    EXPECT_EQ(other.events.failure, Failure::kPeerProtocol) << wire::message_name(message);
    EXPECT_EQ(other.events.failed, 1) << wire::message_name(message);
  }
}

TEST_F(SourceTest, ATableThatIsShortOrDamagedIsRefused) {
  make();
  tell(*source, wire::HelloReply{.has_retained = true});
  std::vector<std::byte> piece;
  pages::encode_table_piece(pages::GenerationTable(kPages - 1, 3), 0, {}, piece);
  tell(*source, wire::TablePiece{.last = true, .bytes = piece});
  s.settle(*source);
  EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
}

TEST_F(SourceTest, EpochsThatDoNotFollowTheVisitsAreRefused) {
  MigrationConfig config = make_config();
  config.epoch_base = kVisit;
  make({}, config);
  EXPECT_EQ(s.events.failure, Failure::kEpochsExhausted);
}

TEST_F(SourceTest, TheBandwidthLimitHoldsWhileTheGuestRunsOnly) {
  for (pages::PageNumber page = 0; page < kPages; ++page) {
    s.memory.fill(page, std::byte{1});
  }
  Policy policy;
  policy.bandwidth_limit_bps = 8'000'000;  // 1 MB/s: 64 KiB at once, then a page in 4 ms
  make(policy);
  answer_hello();
  acknowledge_round(1);
  const std::size_t burst = take(false).size();
  EXPECT_LE(burst, 17U);
  transport::fake(s.bulk1).counters.bytes_sent = burst * 4200;
  EXPECT_LT(source->deadline(), s.now + milliseconds(100));
  advance(milliseconds(20));
  EXPECT_LE(take(false).size(), 6U);
  source->guest_stopped(s.now);
  EXPECT_GT(take(false).size(), 30U);
}

TEST_F(SourceTest, ContentThatLeftAndWasTakenBackCountsAsWritten) {
  s.memory = simulation::ModelMemory(kPages, true);
  for (pages::PageNumber page = 0; page < 4; ++page) {
    s.memory.fill(page, std::byte{1});
  }
  make();
  answer_hello();
  acknowledge_round(1);
  EXPECT_TRUE(source->wants_hash(2, 1408)) << "of each part";
  s.memory.fill(2, std::byte{2});
  s.memory.fill(3, std::byte{2});
  const std::vector<Work> works = take(false);
  s.memory.fill(2, std::byte{1});
  s.memory.fill(3, std::byte{1});
  EXPECT_EQ(s.memory.written().count(), 2U) << "pages 2 and 3 left as they are not";
  s.memory.rearm();
  s.memory.fill(2, std::byte{2});
  send_page(*source, 2);  // again, as a copy
  s.memory.fill(2, std::byte{1});
  EXPECT_EQ(s.memory.written().count(), 1U);
  EXPECT_TRUE(s.memory.written().test(2)) << "a retransmission counts too";
}

}  // namespace
}  // namespace godwit::transfer
