#include "dataplane/daemon/figures.h"

#include <gtest/gtest.h>

namespace godwit::daemon {
namespace {

std::shared_ptr<FlowFigures> flow_of(std::uint32_t id, FlowRole role, std::uint16_t bulk_lanes) {
  auto flow = make_flow_figures(bulk_lanes);
  flow->flow_id = id;
  flow->role = role;
  return flow;
}

transfer::Stats stats_of(std::uint64_t pages_sent, std::uint32_t round) {
  transfer::Stats stats;
  stats.pages_sent = pages_sent;
  stats.round = round;
  stats.window_packets = 99;
  return stats;
}

TEST(PublishedStats, GivesBackWhatWasSet) {
  PublishedStats published;
  EXPECT_EQ(published.get().pages_sent, 0U);
  published.set(stats_of(7, 3));
  EXPECT_EQ(published.get().pages_sent, 7U);
  EXPECT_EQ(published.get().round, 3U);
  EXPECT_EQ(published.get().window_packets, 99U);
}

TEST(FigureBook, TotalsHoldWhatRunsAndWhatHasEnded) {
  FigureBook book;
  const auto first = flow_of(1, FlowRole::kSource, 1);
  const auto second = flow_of(2, FlowRole::kSource, 2);
  book.begin(first);
  book.begin(second);
  first->lanes[1]->packets_sent += 10;
  second->lanes[1]->packets_sent += 5;
  second->lanes[2]->packets_lost += 4;
  first->stats.set(stats_of(100, 2));
  second->stats.set(stats_of(20, 1));
  const auto source = static_cast<std::size_t>(FlowRole::kSource);
  EXPECT_EQ(book.totals().lanes.at(1).packets_sent, 15U);
  EXPECT_EQ(book.totals().lanes.at(2).packets_lost, 4U);
  EXPECT_EQ(book.totals().roles[source].pages_sent, 120U);

  // What it had sent at last counts, not what was published last.
  book.end(1, stats_of(130, 4), true);
  EXPECT_EQ(book.flow(1), nullptr);
  EXPECT_EQ(book.flows().size(), 1U);
  EXPECT_EQ(book.totals().lanes.at(1).packets_sent, 15U);
  EXPECT_EQ(book.totals().roles[source].pages_sent, 150U);
  EXPECT_EQ(book.totals().roles[source].rounds, 5U);
  EXPECT_EQ(book.totals().roles[source].committed, 1U);
  EXPECT_EQ(book.totals().roles[source].aborted, 0U);

  book.end(2, stats_of(20, 1), false);
  EXPECT_EQ(book.totals().lanes.at(2).packets_lost, 4U);
  EXPECT_EQ(book.totals().roles[source].aborted, 1U);
  EXPECT_EQ(book.totals().roles[static_cast<std::size_t>(FlowRole::kDestination)].pages_sent, 0U);
}

TEST(FigureBook, EndsWhatNeverBeganWithoutCounting) {
  FigureBook book;
  book.end(5, stats_of(9, 1), false);
  EXPECT_EQ(book.totals().roles[0].aborted, 0U);
  EXPECT_TRUE(book.totals().lanes.empty());
}

TEST(FigureBook, AFlowThatHasEndedMayStillBeRead) {
  FigureBook book;
  FigureBook::Flow held;
  {
    const auto flow = flow_of(3, FlowRole::kDestination, 1);
    flow->lanes[0]->bytes_received += 8;
    book.begin(flow);
    held = book.flow(3);
  }
  book.end(3, {}, true);
  EXPECT_EQ(held->lanes[0]->bytes_received, 8U);
}

}  // namespace
}  // namespace godwit::daemon
