#pragma once
// A Source against a peer that the test plays.

#include "dataplane/pages/table_codec.h"
#include "tests/unit/transfer/fixture.h"

namespace godwit::transfer {

using transport::Work;

class SourceTest : public ::testing::Test {
 protected:
  void make(const Policy& policy = {}, const MigrationConfig& config = make_config()) {
    source.emplace(config, policy, SourceGuest{s.memory, table, kVisit}, s.executor, s.events);
    source->start(s.now, s.lanes);
    s.settle(*source);
  }
  /// The destination's answer to Hello, up to the moment where round 1 is begun.
  void answer_hello(const std::optional<pages::GenerationTable>& retained = std::nullopt) {
    tell(*source, wire::HelloReply{.has_retained = retained.has_value()});
    if (retained) {
      std::vector<std::byte> piece;
      ASSERT_EQ(pages::encode_table_piece(*retained, 0, {}, piece), kPages);
      tell(*source, wire::TablePiece{.last = true, .bytes = piece});
    }
    s.settle(*source);
  }
  void acknowledge_round(std::uint32_t round) {
    tell(*source, wire::RoundAck{.round = round});
    s.settle(*source);
  }
  /// Takes all work there is as lanes do, reading every page once.
  std::vector<Work> take(bool acknowledge = true) {
    std::vector<Work> result;
    Work work;
    std::uint16_t lane = 1;
    while (source->next_work(lane, work)) {
      if (!work.zero) {
        send_page(*source, work.page);
      }
      result.push_back(work);
      lane = lane == 1 ? 2 : 1;
    }
    if (acknowledge) {
      this->acknowledge(result);
    }
    return result;
  }
  void acknowledge(const std::vector<Work>& works) {
    for (const Work& work : works) {
      source->on_acknowledged(work);
    }
    s.settle(*source);
  }
  void advance(Duration by) {
    s.now = s.now + by;
    source->tick(s.now);
    s.settle(*source);
  }
  /// Round 1 of `pages` written pages, all acknowledged.
  void first_round(std::uint64_t pages) {
    for (std::uint64_t page = 0; page < pages; ++page) {
      s.memory.fill(page, std::byte{1});
    }
    make();
    answer_hello();
    acknowledge_round(1);
    EXPECT_EQ(take().size(), pages);
  }

  Surroundings s;
  pages::GenerationTable table{kPages, pages::kNeverWritten};
  std::optional<Source> source;
};

}  // namespace godwit::transfer
