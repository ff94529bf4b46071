// Of a guest that is split what its page stores have stays there: what either end says, sends and believes then.

#include "dataplane/transfer/kept_stores.h"

#include <algorithm>
#include <functional>

#include "dataplane/pages/table_codec.h"
#include "dataplane/transfer/page_sets.h"
#include "tests/simulation/paging_model.h"
#include "tests/unit/transfer/source_fixture.h"

namespace godwit::transfer {
namespace {

pages::Bitmap set_of(std::initializer_list<pages::PageNumber> pages) {
  pages::Bitmap set(kPages);
  for (const pages::PageNumber page : pages) {
    set.set(page);
  }
  return set;
}

/// Pages 3, 4 and 5 are in stores 0 and 1.
class Stores final : public KeptStores, public TakenStores {
 public:
  [[nodiscard]] bool at_rest() const override { return rests; }
  std::expected<pages::Bitmap, GuestError> set_apart() override { return apart; }
  void come_to_rest() override { ++asked_to_rest; }
  std::expected<Stored, GuestError> list(const pages::Bitmap&) override {
    Stored stored{.pages = {}, .version_next = 100};
    for (auto page = away.next_set(0); page < kPages; page = away.next_set(page + 1)) {
      stored.pages.push_back({page, page + 10, static_cast<std::uint16_t>(page % 2), page + 50});
    }
    return stored;
  }
  std::expected<void, GuestError> keep_stored(pages::Bitmap& stored, const pages::Bitmap&) override {
    stored &= away;
    return {};
  }
  [[nodiscard]] std::uint64_t budget_pages() const override { return 5; }
  [[nodiscard]] std::uint64_t budget_there_pages() const override { return 77; }
  [[nodiscard]] bool short_of_room() const override { return short_of; }
  void fetch(pages::PageNumber page) override { fetched.push_back(page); }
  [[nodiscard]] bool is_here(pages::PageNumber page) override { return !away.test(page); }
  [[nodiscard]] bool serve() const override { return serves; }
  void note(std::span<const wire::StoredPage> pages) override { noted.assign(pages.begin(), pages.end()); }
  std::expected<void, GuestError> settle(const pages::Bitmap& missing, const pages::Bitmap& stored,
                                         std::uint64_t version_next) override {
    settled_missing = missing;
    settled = stored;
    next = version_next;
    return {};
  }
  pages::Bitmap away = set_of({3, 4, 5});
  pages::Bitmap apart = set_of({3, 4, 5, 6, 7});
  bool rests = true;
  int asked_to_rest = 0;
  std::vector<wire::StoredPage> noted;
  pages::Bitmap settled, settled_missing;
  std::uint64_t next = 0;
  std::vector<pages::PageNumber> fetched;
  bool serves = true;
  bool short_of = false;
};

class SourceOfSplitTest : public SourceTest {
 protected:
  void open(Policy policy, const std::optional<pages::GenerationTable>& retained = std::nullopt) {
    for (pages::PageNumber page = 0; page < 8; ++page) {
      s.memory.fill(page, std::byte{1});
    }
    source.emplace(make_config(), policy, SourceGuest{s.memory, table, kVisit, nullptr, &stores}, s.executor, s.events);
    source->start(s.now, s.lanes);
    s.settle(*source);
    ASSERT_TRUE(s.find<wire::Hello>(s.sent())->keeps_stores);
    tell(*source,
         wire::HelloReply{.has_retained = retained.has_value(), .can_page = true, .budget_pages = budget_there_pages});
    if (retained) {
      std::vector<std::byte> piece;
      ASSERT_EQ(pages::encode_table_piece(*retained, 0, {}, piece), kPages);
      tell(*source, wire::TablePiece{.last = true, .bytes = piece});
    }
    s.settle(*source);
    const auto sent = s.sent();
    told = s.find<wire::StoredPages>(sent);
    if (const auto piece = s.find<wire::PageSetPiece>(sent)) {
      EXPECT_EQ(piece->kind, wire::PageSet::kApart);
      told_apart = *decode_page_set({{piece->bytes.begin(), piece->bytes.end()}}, kPages);
    }
    acknowledge_round(1);
  }
  /// Of a guest above its budget: what leaves has left.
  void come_to_rest(const pages::Bitmap& away) {
    stores.away = away;
    stores.rests = true;
    advance(milliseconds(2));
    const auto sent = s.sent();
    told = s.find<wire::StoredPages>(sent);
    ASSERT_TRUE(told && s.find<wire::RoundBegin>(sent));
    EXPECT_LT(std::ranges::find_if(sent, [](const auto& m) { return std::holds_alternative<wire::StoredPages>(m); }),
              std::ranges::find_if(sent, [](const auto& m) { return std::holds_alternative<wire::RoundBegin>(m); }));
    acknowledge_round(2);
  }
  std::vector<pages::PageNumber> pages_of(const std::vector<Work>& works) {
    std::vector<pages::PageNumber> pages;
    for (const Work& work : works) {
      pages.push_back(work.page);
    }
    std::ranges::sort(pages);
    return pages;
  }
  std::uint64_t budget_there_pages = kPages;
  Stores stores;
  std::optional<wire::StoredPages> told;
  std::optional<pages::Bitmap> told_apart;
};

constexpr Policy kRounds{.mode = Mode::kHybrid};
constexpr Policy kManyRounds{.downtime_limit = microseconds(1), .mode = Mode::kHybrid};

TEST_F(SourceOfSplitTest, WhatStoresHaveIsToldOfAndNeverSent) {
  open(kRounds);
  ASSERT_TRUE(told && told->last);
  EXPECT_EQ(told->version_next, 100U);
  ASSERT_EQ(told->pages.size(), 3U);
  EXPECT_EQ(told->pages[1], (wire::StoredPage{4, 14, 0, 54}));
  EXPECT_EQ(pages_of(take()), (std::vector<pages::PageNumber>{0, 1, 2, 6, 7}));
  EXPECT_EQ(source->stats(s.now).pages_stored, 3U);
}

TEST_F(SourceOfSplitTest, WhatTheDestinationHasIsNotToldOf) {
  pages::GenerationTable retained(kPages, pages::kUnknownGeneration);
  retained.set(4, kVisit);  // as the first scan will say
  open(kRounds, retained);
  ASSERT_EQ(told->pages.size(), 2U);
  EXPECT_EQ(told->pages[0].page, 3U);
  EXPECT_EQ(told->pages[1].page, 5U);
  for (const pages::PageNumber page : pages_of(take())) {
    EXPECT_NE(page, 4U);
  }
}

TEST_F(SourceOfSplitTest, WhatTheDestinationHasNoRoomForIsToldOfAllTheSame) {
  pages::GenerationTable retained(kPages, pages::kUnknownGeneration);
  retained.set(3, kVisit);
  retained.set(4, kVisit);
  budget_there_pages = 6;  // one more than here
  open(kRounds, retained);
  ASSERT_EQ(told->pages.size(), 2U);
  EXPECT_EQ(told->pages[0].page, 4U);
  EXPECT_EQ(told->pages[1].page, 5U);
}

TEST_F(SourceOfSplitTest, WhatNobodyCouldCompareIsToldOfAllTheSame) {
  pages::GenerationTable retained(kPages, pages::kUnknownGeneration);
  retained.set(4, kVisit);
  open({.verify = Verify::kFull, .mode = Mode::kHybrid}, retained);
  EXPECT_EQ(told->pages.size(), 3U);
}

TEST_F(SourceOfSplitTest, WhatCameBackGoesWithTheNextRound) {
  open({.downtime_limit = microseconds(1), .mode = Mode::kHybrid});
  stores.away.clear(4);
  take();
  acknowledge_round(2);
  EXPECT_EQ(pages_of(take(false)), std::vector<pages::PageNumber>{4}) << "nobody has written it";
  EXPECT_EQ(table.get(4), kEpochBase + 2);
  EXPECT_EQ(table.get(3), kVisit);
}

TEST_F(SourceOfSplitTest, TheEndIsPostcopysHoweverLittleIsLeft) {
  open(kRounds);
  take();
  acknowledge_round(2);
  ASSERT_EQ(s.events.ready, 1);
  source->guest_stopped(s.now);
  source->device_state_end(s.now);
  s.settle(*source);
  acknowledge_round(3);
  EXPECT_TRUE(s.find<wire::AllAnnounced>(s.sent()));
}

TEST_F(SourceOfSplitTest, WhenTheBudgetHasNoRoomThatIsTheEndOfTheRounds) {
  open({.downtime_limit = microseconds(1), .mode = Mode::kHybrid});
  take(false);
  advance(milliseconds(5));
  EXPECT_EQ(s.events.ready, 0);
  stores.short_of = true;
  advance(milliseconds(5));
  EXPECT_EQ(s.events.ready, 1);
}

TEST_F(SourceOfSplitTest, UntilTheCommitWhatAStoreHasIsFetchedForWhoAsks) {
  open({.mode = Mode::kPostcopy});
  tell(*source, wire::PageSetAck{.round = 1});
  s.settle(*source);
  source->guest_stopped(s.now);
  source->device_state_end(s.now);
  s.settle(*source);
  tell(*source, wire::Verified{});
  tell(*source, wire::DemandRequest{.again = false, .pages = {4}});
  tell(*source, wire::DemandRequest{.again = true, .pages = {4}});
  s.settle(*source);
  EXPECT_EQ(stores.fetched, std::vector<pages::PageNumber>{4});
  Work work;
  EXPECT_FALSE(source->next_work(transport::kPriorityLane, work)) << "it is not here yet";
  EXPECT_LE(source->deadline(), s.now + milliseconds(5));
  stores.away.clear(4);
  advance(milliseconds(5));
  ASSERT_TRUE(source->next_work(transport::kPriorityLane, work));
  EXPECT_EQ(work.page, 4U);
  source->committed(s.now);
  tell(*source, wire::DemandRequest{.again = false, .pages = {5}});
  s.settle(*source);
  EXPECT_EQ(stores.fetched.size(), 1U) << "from here on the stores are the destination's";
  EXPECT_FALSE(source->next_work(transport::kPriorityLane, work));
  EXPECT_EQ(s.events.lost, 0);
}

TEST_F(SourceOfSplitTest, WhatMayLeaveIsNoPartOfRoundOne) {
  stores.rests = false;
  open(kManyRounds);
  EXPECT_FALSE(told);
  ASSERT_TRUE(told_apart);
  EXPECT_EQ(*told_apart, stores.apart);
  EXPECT_EQ(stores.asked_to_rest, 0) << "round 1 reads memory";
  EXPECT_EQ(pages_of(take()), (std::vector<pages::PageNumber>{0, 1, 2}));
  EXPECT_EQ(stores.asked_to_rest, 1);
  advance(milliseconds(50));
  EXPECT_FALSE(s.find<wire::RoundBegin>(s.sent())) << "nobody knows yet what stays with stores";
  s.memory.fill(6, std::byte{9});
  come_to_rest(set_of({4, 5, 6}));
  ASSERT_EQ(told->pages.size(), 3U);
  EXPECT_EQ(told->pages[0], (wire::StoredPage{4, 14, 0, 54, false}));
  EXPECT_EQ(told->pages[2], (wire::StoredPage{6, 16, 0, 56, true}));
  EXPECT_EQ(pages_of(take(false)), (std::vector<pages::PageNumber>{3, 7})) << "one came back, one has stayed";
  EXPECT_EQ(table.get(3), kEpochBase + 2);
  EXPECT_EQ(table.get(4), kVisit);
  EXPECT_EQ(table.get(6), kEpochBase + 2);
  EXPECT_EQ(source->stats(s.now).pages_stored, 3U);
}

TEST_F(SourceOfSplitTest, OfWhatMayLeaveTheDestinationKeepsWhatIsAsItWas) {
  stores.rests = false;
  pages::GenerationTable retained(kPages, pages::kUnknownGeneration);
  for (const pages::PageNumber page : {4U, 5U, 6U, 7U}) {
    retained.set(page, kVisit);
  }
  open(kManyRounds, retained);
  EXPECT_EQ(*told_apart, set_of({3}));
  take();
  s.memory.fill(5, std::byte{9});
  s.memory.fill(7, std::byte{9});
  come_to_rest(set_of({3, 4, 5}));
  ASSERT_EQ(told->pages.size(), 2U);
  EXPECT_EQ(told->pages[0].page, 3U);
  EXPECT_EQ(told->pages[1], (wire::StoredPage{5, 15, 1, 55, true})) << "it was written, and has left";
  EXPECT_EQ(pages_of(take(false)), std::vector<pages::PageNumber>{7}) << "it was written, and is here";
}

TEST_F(SourceOfSplitTest, WhatRoundOneHasSentMayLeaveAfterIt) {
  stores.rests = false;
  open(kManyRounds);
  take();
  come_to_rest(set_of({1, 3, 4, 5, 6, 7}));
  ASSERT_EQ(told->pages.size(), 6U);
  EXPECT_EQ(told->pages[0], (wire::StoredPage{1, 11, 1, 51, false}));
}

TEST_F(SourceOfSplitTest, NothingEndsTheRoundsBeforeStoresAreAtRest) {
  stores.rests = false;
  open({.downtime_limit = microseconds(1),
        .time_limit = milliseconds(1),
        .mode = Mode::kHybrid,
        .hybrid_time = milliseconds(1)});
  stores.short_of = true;
  EXPECT_TRUE(source->switch_to_postcopy(s.now));
  take();
  advance(milliseconds(50));
  EXPECT_EQ(s.events.ready, 0);
  come_to_rest(set_of({3, 4, 5, 6, 7}));
  EXPECT_EQ(s.events.ready, 1);
}

class DestinationOfSplitTest : public ::testing::Test {
 protected:
  void open(bool keeps_stores = true) {
    destination.emplace(make_config(), DestinationGuest{s.memory, std::nullopt, &paging, &stores}, s.executor,
                        s.events);
    destination->start(s.now, s.lanes);
    wire::Hello hello = make_hello(wire::TransferMode::kHybrid);
    hello.keeps_stores = keeps_stores;
    tell(*destination, hello);
    s.settle(*destination);
    const auto reply = s.find<wire::HelloReply>(s.sent());
    if (keeps_stores) {
      ASSERT_TRUE(reply);
      EXPECT_EQ(reply->budget_pages, stores.budget_there_pages());
    }
    std::vector<std::byte> piece;
    ASSERT_EQ(pages::encode_table_piece(source_table, 0, {}, piece), kPages);
    tell(*destination, wire::TablePiece{.last = true, .bytes = piece});
    s.settle(*destination);
  }
  void tell_stored(bool last, std::vector<wire::StoredPage> pages) {
    tell(*destination, wire::StoredPages{.last = last, .version_next = 100, .pages = std::move(pages)});
    s.settle(*destination);
  }
  void tell_apart(const pages::Bitmap& apart) {
    std::vector<std::vector<std::byte>> messages;
    encode_page_set(apart, 0, wire::PageSet::kApart, 0, messages);
    for (const auto& message : messages) {
      tell(*destination, std::get<wire::PageSetPiece>(*wire::decode_message(message)));
    }
    s.settle(*destination);
  }
  void begin_round(std::uint32_t round, std::uint64_t pages_before) {
    tell(*destination, wire::RoundBegin{.round = round, .pages_before = pages_before});
    s.settle(*destination);
  }
  void give(std::uint32_t round, pages::PageNumber page) {
    std::array<std::byte, pages::kPageSize> bytes;
    bytes.fill(std::byte{7});
    destination->on_page(1, round, page, 0, bytes);
    destination->flush(s.now);
  }
  void announce(std::uint32_t round, std::uint64_t pages) {
    tell(*destination, wire::DeviceStateEnd{});
    tell(*destination, wire::AllAnnounced{.round = round, .pages = pages, .last_round = round});
    s.settle(*destination);
  }
  [[nodiscard]] pages::Generation claim(pages::PageNumber page) const { return destination->table().get(page); }

  Surroundings s;
  simulation::Random random{1};
  simulation::Verdict verdict;
  simulation::PagingModel paging{s.memory, random, verdict};
  Stores stores;
  pages::GenerationTable source_table{kPages, 50};
  std::optional<Destination> destination;
};

TEST_F(DestinationOfSplitTest, ItsTableIsTheGuestsOnceItMayRunAndClaimsNothingOfStoresBefore) {
  stores.serves = false;
  open();
  tell_stored(false, {{3, 13, 1, 53}});
  tell_stored(true, {{4, 14, 0, 54}});
  EXPECT_EQ(stores.noted.size(), 2U);
  tell(*destination, wire::RoundBegin{.round = 1, .pages_before = 0});
  s.settle(*destination);
  tell(*destination, wire::RoundBegin{.round = 2, .pages_before = 0});
  s.settle(*destination);
  EXPECT_EQ(claim(9), 50U) << "zero, here and there";
  EXPECT_EQ(claim(3), pages::kUnknownGeneration);
  std::array<std::byte, pages::kPageSize> bytes;
  bytes.fill(std::byte{7});
  destination->on_page(1, 2, 4, 0, bytes);
  destination->flush(s.now);
  tell(*destination, wire::DeviceStateEnd{});
  tell(*destination, wire::AllAnnounced{.round = 2, .pages = 1, .last_round = 2});
  s.settle(*destination);
  ASSERT_EQ(s.events.memory_ready, 1);
  EXPECT_TRUE(stores.settled.test(3));
  EXPECT_EQ(stores.settled.count(), 1U) << "page 4 has come";
  EXPECT_EQ(stores.next, 100U);
  EXPECT_TRUE(paging.missing_pages().test(3));
  EXPECT_EQ(claim(3), 50U);
  EXPECT_EQ(claim(4), kEpochBase + 2);
  EXPECT_FALSE(s.find<wire::Complete>(s.sent())) << "what QEMU touches may be asked for yet";
  stores.serves = true;
  destination->tick(s.now);
  s.settle(*destination);
  EXPECT_TRUE(s.find<wire::Complete>(s.sent())) << "nothing is to come";
  destination->cancel(s.now, "aborted");
  s.executor.run_all();
  EXPECT_EQ(claim(3), pages::kUnknownGeneration) << "its memory has nothing of it";
}

TEST_F(DestinationOfSplitTest, StrangePagesOfStoresEndTheMigration) {
  for (const std::vector<wire::StoredPage>& pages :
       {std::vector<wire::StoredPage>{{kPages, 1, 0, 0}}, std::vector<wire::StoredPage>{{3, 1, 0, 0}}}) {
    s.events = {};
    open();
    tell_stored(false, {{3, 13, 1, 53}});
    tell_stored(true, pages);
    EXPECT_EQ(s.events.failed, 1);
    EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
  }
}

TEST_F(DestinationOfSplitTest, WhatIsApartComesOrIsToldOf) {
  open();
  tell_apart(set_of({3, 4, 5}));
  begin_round(1, 0);
  EXPECT_TRUE(s.find<wire::RoundAck>(s.sent()));
  give(1, 6);
  give(1, 7);
  tell_stored(false, {{4, 14, 0, 54, true}});
  tell_stored(true, {{5, 15, 1, 55}, {7, 17, 1, 57}});
  EXPECT_EQ(stores.noted.size(), 3U);
  begin_round(2, 2);
  EXPECT_TRUE(s.find<wire::RoundAck>(s.sent()));
  EXPECT_EQ(claim(3), pages::kUnknownGeneration);
  EXPECT_EQ(claim(6), 50U);
  EXPECT_EQ(claim(7), pages::kUnknownGeneration) << "it has left since it came";
  EXPECT_EQ(claim(9), 50U) << "zero, here and there";
  give(2, 3);
  announce(2, 1);
  ASSERT_EQ(s.events.memory_ready, 1) << s.events.text;
  EXPECT_EQ(stores.settled, set_of({4, 5, 7}));
  EXPECT_EQ(claim(3), kEpochBase + 2);
  EXPECT_EQ(claim(4), kEpochBase + 2) << "written after the table";
  EXPECT_EQ(claim(5), 50U);
  EXPECT_EQ(claim(7), 50U);
}

TEST_F(DestinationOfSplitTest, WhatWasApartIsNotForgotten) {
  open();
  tell_apart(set_of({3, 4}));
  begin_round(1, 0);
  tell_stored(true, {{4, 14, 0, 54}});
  begin_round(2, 0);
  announce(2, 0);
  EXPECT_EQ(s.events.failed, 1);
  EXPECT_NE(s.events.text.find("never said which stores have 1 of"), std::string::npos) << s.events.text;
}

TEST_F(DestinationOfSplitTest, WhatIsApartIsToldOfBeforeRoundTwoAndOnce) {
  const std::vector<std::function<void()>> wrong = {
      [this] { begin_round(2, 0); },
      [this] { tell_apart(set_of({3})); },
      [this] { announce(1, 0); },
      [this] {
        tell_stored(true, {});
        tell_stored(true, {});
      },
  };
  for (const auto& says : wrong) {
    s.events = {};
    open();
    tell_apart(set_of({3}));
    begin_round(1, 0);
    says();
    EXPECT_EQ(s.events.failed, 1);
    EXPECT_EQ(s.events.failure, Failure::kPeerProtocol);
  }
  s.events = {};
  open();
  tell_stored(true, {});
  tell_apart(set_of({3}));
  EXPECT_EQ(s.events.failed, 1);
  s.events = {};
  open();
  tell_stored(true, {{3, 13, 1, 53, true}});
  EXPECT_EQ(s.events.failed, 1) << "written after the table, and never apart";
}

TEST_F(DestinationOfSplitTest, BothEndsMustMeanIt) {
  open(false);
  EXPECT_EQ(s.events.failed, 1);
  EXPECT_NE(s.events.text.find("not split there"), std::string::npos) << s.events.text;
}

TEST_F(DestinationOfSplitTest, NoRoundBeginsBeforeAllOfItIsTold) {
  open();
  tell_stored(false, {{3, 13, 1, 53}});
  tell(*destination, wire::RoundBegin{.round = 1, .pages_before = 0});
  s.settle(*destination);
  EXPECT_EQ(s.events.failed, 1);
}

}  // namespace
}  // namespace godwit::transfer
