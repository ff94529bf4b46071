// The SQLite store: every transition allowed and forbidden, races for one swap, epochs, and what a reopened file still
// knows.
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>
#include <vector>

#include "controlplane/store/sqlite_store.h"

namespace godwit::controlplane {
namespace {

using Code = StoreError::Code;

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::temp_directory_path() / ("godwit-store-" + Id128::random().text());
    std::filesystem::create_directory(directory_);
    open();
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(directory_);
  }
  void open() {
    store_.reset();
    auto store = open_sqlite_store(file());
    ASSERT_TRUE(store.has_value()) << store.error().text;
    store_ = std::move(*store);
  }
  [[nodiscard]] std::filesystem::path file() const { return directory_ / "cp.db"; }

  static VmClaim claim_of(const std::string& name, const Id128& uuid, const std::string& host, std::uint64_t seen) {
    VmClaim claim{.host = host, .image_id = Id128::random(), .ownership_seen = seen};
    claim.definition.set_name(name);
    claim.definition.set_uuid(uuid.to_bytes());
    return claim;
  }
  VmRecord start(const Id128& uuid) {
    auto vm = store_->claim_vm(claim_of("demo", uuid, "host-a", 0));
    EXPECT_TRUE(vm.has_value());
    return vm.value_or(VmRecord());
  }
  MigrationRecord begin(const VmRecord& vm, const api::Plan& plan = {}) {
    auto record = store_->begin_migration({.id = Id128::random(),
                                           .vm_uuid = vm.uuid,
                                           .ownership_seen = vm.ownership,
                                           .plan = plan,
                                           .destination = "host-b",
                                           .created_unix_us = 1000});
    EXPECT_TRUE(record.has_value());
    return record.value_or(MigrationRecord());
  }
  void bring_to(const MigrationRecord& record, api::MigrationState state) {
    static const std::map<api::MigrationState, std::vector<api::MigrationState>> kPaths = {
        {api::PREPARING, {}},
        {api::TRANSFERRING, {api::TRANSFERRING}},
        {api::SWITCHING, {api::TRANSFERRING, api::SWITCHING}},
        {api::COMMITTED, {api::TRANSFERRING, api::SWITCHING, api::COMMITTED}},
        {api::ABORTED, {api::ABORTED}},
        {api::PULLING, {api::TRANSFERRING, api::SWITCHING, api::PULLING}},
        {api::INCOMPLETE, {api::TRANSFERRING, api::SWITCHING, api::PULLING, api::INCOMPLETE}}};
    api::MigrationState now = api::PREPARING;
    for (const api::MigrationState next : kPaths.at(state)) {
      ASSERT_TRUE(store_->transition(record, now, next).value());
      now = next;
    }
  }
  VmRecord vm_now(const Id128& uuid) { return store_->vm(uuid).value().value(); }

  std::filesystem::path directory_;
  std::unique_ptr<Store> store_;
  const Id128 uuid_ = Id128::random();
};

constexpr api::MigrationState kStates[] = {api::PREPARING, api::TRANSFERRING, api::SWITCHING, api::COMMITTED,
                                           api::ABORTED,   api::PULLING,      api::INCOMPLETE};
constexpr std::size_t kStateCount = std::size(kStates);

TEST_F(StoreTest, EachPairOfStates) {
  // Rows: the state that is stored and expected; columns: the next, in the order of kStates.
  constexpr bool kAllowed[kStateCount][kStateCount] = {
      {false, true, false, false, true, false, false},   {false, false, true, false, true, false, false},
      {false, false, false, true, true, true, false},    {false, false, false, false, false, false, false},
      {false, false, false, false, false, false, false}, {false, false, false, true, false, false, true},
      {false, false, false, false, false, false, false}};
  for (std::size_t from = 0; from < kStateCount; ++from) {
    for (std::size_t to = 0; to < kStateCount; ++to) {
      const Id128 uuid = Id128::random();
      const auto vm = store_->claim_vm(claim_of("vm-" + uuid.text(), uuid, "host-a", 0)).value();
      const MigrationRecord record = begin(vm);
      bring_to(record, kStates[from]);
      const auto swapped = store_->transition(record, kStates[from], kStates[to]);
      EXPECT_EQ(swapped.has_value(), kAllowed[from][to]) << from << " to " << to;
      if (!swapped) {
        EXPECT_EQ(swapped.error().code, Code::kForbidden);
      }
      EXPECT_EQ(store_->migration(record.id).value()->state, kAllowed[from][to] ? kStates[to] : kStates[from]);
    }
  }
}

TEST_F(StoreTest, SwapFromAnotherStateThanStoredLoses) {
  const MigrationRecord record = begin(start(uuid_));
  EXPECT_FALSE(store_->transition(record, api::TRANSFERRING, api::SWITCHING).value());
  EXPECT_FALSE(store_->transition(record, api::SWITCHING, api::COMMITTED).value());
  EXPECT_EQ(vm_now(uuid_).host, "host-a");
  EXPECT_TRUE(store_->transition(record, api::PREPARING, api::ABORTED).value());
  EXPECT_FALSE(store_->transition(record, api::PREPARING, api::ABORTED).value());
}

TEST_F(StoreTest, CommitMovesOwnershipAndAbortDoesNot) {
  const VmRecord vm = start(uuid_);
  EXPECT_EQ(vm.ownership, 1U);
  const MigrationRecord aborted = begin(vm);
  bring_to(aborted, api::SWITCHING);
  ASSERT_TRUE(store_->transition(aborted, api::SWITCHING, api::ABORTED).value());
  EXPECT_EQ(vm_now(uuid_).host, "host-a");
  EXPECT_EQ(vm_now(uuid_).ownership, 1U);
  const MigrationRecord committed = begin(vm);
  bring_to(committed, api::COMMITTED);
  EXPECT_EQ(vm_now(uuid_).host, "host-b");
  EXPECT_EQ(vm_now(uuid_).ownership, 2U);
  EXPECT_EQ(store_->migration(committed.id).value()->ownership_after(), 2U);
  EXPECT_EQ(store_->migration(aborted.id).value()->ownership_after(), 1U);
}

TEST_F(StoreTest, CommitLosesWhenOwnershipHasMovedAndChangesNothing) {
  const MigrationRecord record = begin(start(uuid_));
  bring_to(record, api::SWITCHING);
  MigrationRecord stale = record;
  stale.ownership_before = 7;
  EXPECT_FALSE(store_->transition(stale, api::SWITCHING, api::COMMITTED).value());
  EXPECT_EQ(store_->migration(record.id).value()->state, api::SWITCHING);
  EXPECT_EQ(vm_now(uuid_).host, "host-a");
}

TEST_F(StoreTest, OneOfCommitAndAbortWins) {
  for (int round = 0; round < 20; ++round) {
    const Id128 uuid = Id128::random();
    const auto vm = store_->claim_vm(claim_of("vm-" + uuid.text(), uuid, "host-a", 0)).value();
    const MigrationRecord record = begin(vm);
    bring_to(record, api::SWITCHING);
    // Two processes, as far as SQLite can tell.
    const auto other = open_sqlite_store(file()).value();
    std::atomic<int> won_count = 0;
    std::thread aborting([&] { won_count += other->transition(record, api::SWITCHING, api::ABORTED).value() ? 1 : 0; });
    won_count += store_->transition(record, api::SWITCHING, api::COMMITTED).value() ? 1 : 0;
    aborting.join();
    EXPECT_EQ(won_count, 1);
    const bool committed = store_->migration(record.id).value()->state == api::COMMITTED;
    EXPECT_EQ(vm_now(uuid).host, committed ? "host-b" : "host-a");
    EXPECT_EQ(vm_now(uuid).ownership, committed ? 2U : 1U);
  }
}

TEST_F(StoreTest, OneActiveMigrationAVm) {
  const VmRecord vm = start(uuid_);
  std::atomic<int> begun_count = 0;
  const auto race = [&] {
    begun_count +=
        store_->begin_migration({.id = Id128::random(), .vm_uuid = uuid_, .ownership_seen = 1, .destination = "host-b"})
                .has_value()
            ? 1
            : 0;
  };
  std::thread other(race);
  race();
  other.join();
  EXPECT_EQ(begun_count, 1);
  const auto second = store_->begin_migration({.id = Id128::random(), .vm_uuid = uuid_, .ownership_seen = 1});
  EXPECT_EQ(second.error().code, Code::kMigrationActive);
  EXPECT_EQ(store_->claim_vm(claim_of("demo", uuid_, "host-b", 1)).error().code, Code::kMigrationActive);
}

TEST_F(StoreTest, EpochsOnlyGrow) {
  // Epochs that some copy may have: those of attempts. A visit's epoch is above all of them, below the next attempt's.
  VmRecord vm = start(uuid_);
  std::uint32_t used_max = 0;
  for (int i = 0; i < 5; ++i) {
    const std::uint32_t visit = vm.epoch_next;
    EXPECT_GT(visit, used_max);
    const MigrationRecord record = begin(vm);
    EXPECT_GT(record.epoch_base, visit);
    EXPECT_EQ(record.epoch_count, kEpochsPerAttempt);
    used_max = record.epoch_base + record.epoch_count - 1;
    bring_to(record, i % 2 == 0 ? api::ABORTED : api::SWITCHING);
    if (i % 2 != 0) {
      ASSERT_TRUE(store_->transition(record, api::SWITCHING, api::ABORTED).value());
    }
    vm = vm_now(uuid_);
    EXPECT_GT(vm.epoch_next, used_max);
    if (i == 3) {  // a cold boot between
      ASSERT_TRUE(store_->release_vm(uuid_, vm.ownership).value());
      const std::uint32_t before = vm.epoch_next;
      vm = store_->claim_vm(claim_of("demo", uuid_, "host-a", vm.ownership)).value();
      EXPECT_GT(vm.epoch_next, before);
    }
  }
}

TEST_F(StoreTest, ExhaustedEpochsAreRefused) {
  start(uuid_);
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(file().c_str(), &database), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(database, "UPDATE vms SET epoch_next = 4294967293 - 1024", nullptr, nullptr, nullptr),
            SQLITE_OK);
  sqlite3_close(database);
  const auto begun = store_->begin_migration({.id = Id128::random(), .vm_uuid = uuid_, .ownership_seen = 1});
  EXPECT_EQ(begun.error().code, Code::kEpochsExhausted);
}

TEST_F(StoreTest, ClaimsNeedTheOwnershipThatTheySaw) {
  const VmRecord vm = start(uuid_);
  EXPECT_EQ(store_->claim_vm(claim_of("demo", uuid_, "host-b", 0)).error().code, Code::kOwnershipMoved);
  const VmRecord again = store_->claim_vm(claim_of("demo", uuid_, "host-b", 1)).value();
  EXPECT_EQ(again.ownership, 2U);
  EXPECT_NE(again.image_id, vm.image_id);
  EXPECT_FALSE(store_->release_vm(uuid_, 1).value());
  EXPECT_EQ(vm_now(uuid_).host, "host-b");
  EXPECT_TRUE(store_->release_vm(uuid_, 2).value());
  EXPECT_EQ(vm_now(uuid_).host, "");
  EXPECT_EQ(store_->claim_vm(claim_of("demo", Id128::random(), "host-b", 0)).error().code, Code::kNameTaken);
  EXPECT_TRUE(store_->find_vm("demo").value().has_value());
  EXPECT_TRUE(store_->find_vm(uuid_.text()).value().has_value());
  EXPECT_FALSE(store_->find_vm("other").value().has_value());
}

TEST_F(StoreTest, ReopenedStoreKnowsAll) {
  MigrationRecord record = begin(start(uuid_));
  bring_to(record, api::SWITCHING);
  record.reason = "why";
  record.reused = true;
  record.stats.set_wire_bytes(12345);
  record.ended_unix_us = 2000;
  ASSERT_TRUE(store_->transition(record, api::SWITCHING, api::COMMITTED).value());
  api::Register last;
  last.mutable_host()->set_kernel("6.18");
  ASSERT_TRUE(store_->save_host({.name = "host-a", .last = last, .last_seen_unix_us = 5}).has_value());
  open();
  const MigrationRecord read = store_->migration(record.id).value().value();
  EXPECT_EQ(read.state, api::COMMITTED);
  EXPECT_EQ(read.reason, "why");
  EXPECT_TRUE(read.reused);
  EXPECT_EQ(read.stats.wire_bytes(), 12345U);
  EXPECT_EQ(read.ended_unix_us, 2000);
  EXPECT_EQ(vm_now(uuid_).host, "host-b");
  EXPECT_TRUE(store_->active_migrations().value().empty());
  EXPECT_EQ(store_->unsettled_migrations("host-a").value().size(), 1U);
  EXPECT_EQ(store_->unsettled_migrations("host-c").value().size(), 0U);
  ASSERT_EQ(store_->hosts().value().size(), 1U);
  EXPECT_EQ(store_->hosts().value()[0].last.host().kernel(), "6.18");
  MigrationRecord settled = read;
  settled.source_settled = true;
  ASSERT_TRUE(store_->save_details(settled).has_value());
  EXPECT_EQ(store_->unsettled_migrations("host-a").value().size(), 0U);
  EXPECT_EQ(store_->unsettled_migrations("host-b").value().size(), 1U);
}

TEST_F(StoreTest, WhilePullingTheVmIsTheDestinationsAndMovesNowhere) {
  MigrationRecord record = begin(start(uuid_));
  bring_to(record, api::PULLING);
  EXPECT_EQ(vm_now(uuid_).host, "host-b");
  EXPECT_EQ(vm_now(uuid_).ownership, 2U);
  const auto refused =
      store_->begin_migration({.id = Id128::random(), .vm_uuid = uuid_, .ownership_seen = 2, .destination = "host-a"});
  EXPECT_EQ(refused.error().code, Code::kMigrationActive);
  EXPECT_EQ(store_->claim_vm(claim_of("demo", uuid_, "host-a", 2)).error().code, Code::kMigrationActive);
  open();
  ASSERT_EQ(store_->active_migrations().value().size(), 1U);
  EXPECT_EQ(store_->unsettled_migrations("host-a").value().size(), 1U) << "both are told of PULLING";
  record = store_->migration(record.id).value().value();
  EXPECT_EQ(record.ownership_after(), 2U);
  ASSERT_TRUE(store_->transition(record, api::PULLING, api::COMMITTED).value());
  EXPECT_EQ(vm_now(uuid_).ownership, 2U) << "once";
  EXPECT_TRUE(store_->active_migrations().value().empty());
  EXPECT_TRUE(store_->begin_migration({.id = Id128::random(), .vm_uuid = uuid_, .ownership_seen = 2}).has_value());
}

TEST_F(StoreTest, ASplitVmMovesNowhereAndIsKnownAfterReopening) {
  const VmRecord vm = start(uuid_);
  const SplitRecord split{.vm_uuid = uuid_, .ownership = 1, .budget_bytes = 4096, .state = api::SPLIT};
  PageStoreRecord page_store{.id = Id128::random(),
                             .vm_uuid = uuid_,
                             .vm_name = "demo",
                             .main_host = "host-a",
                             .sub_host = "host-b",
                             .ownership = 1,
                             .bytes_lent = 8192,
                             .state = api::PAGE_STORE_PREPARING};
  const MigrationRecord moving = begin(vm);
  EXPECT_EQ(store_->save_split(split, {&page_store, 1}).error().code, Code::kMigrationActive);
  bring_to(moving, api::ABORTED);
  ASSERT_TRUE(store_->save_split(split, {&page_store, 1}).has_value());
  EXPECT_EQ(store_->begin_migration({.id = Id128::random(), .vm_uuid = uuid_, .ownership_seen = 1}).error().code,
            Code::kSplit);
  ASSERT_TRUE(store_->set_page_store_state(page_store.id, api::PAGE_STORE_CONNECTED).has_value());
  open();
  ASSERT_EQ(store_->splits().value().size(), 1U);
  EXPECT_EQ(store_->splits().value()[0].budget_bytes, 4096U);
  ASSERT_EQ(store_->page_stores().value().size(), 1U);
  EXPECT_EQ(store_->page_stores().value()[0].state, api::PAGE_STORE_CONNECTED);
  EXPECT_EQ(store_->page_stores().value()[0].bytes_lent, 8192U);
  ASSERT_TRUE(store_->end_split(uuid_).has_value());
  EXPECT_EQ(store_->page_stores().value().at(0).state, api::PAGE_STORE_RETIRING) << "until its host has confirmed";
  EXPECT_TRUE(store_->begin_migration({.id = Id128::random(), .vm_uuid = uuid_, .ownership_seen = 1}).has_value());
  ASSERT_TRUE(store_->forget_page_store(page_store.id).has_value());
  EXPECT_TRUE(store_->page_stores().value().empty());
  SplitRecord late = split;
  late.ownership = 2;
  EXPECT_EQ(store_->save_split(late, {}).error().code, Code::kOwnershipMoved);
}

TEST_F(StoreTest, AVmThatIsGatheredMayBeginToMoveButNotTransfer) {
  const VmRecord vm = start(uuid_);
  SplitRecord split{.vm_uuid = uuid_, .ownership = 1, .budget_bytes = 4096, .state = api::SPLITTING};
  for (const api::SplitState state : {api::SPLITTING, api::SPLIT}) {
    split.state = state;
    ASSERT_TRUE(store_->save_split(split, {}).has_value());
    EXPECT_EQ(store_->begin_migration({.id = Id128::random(), .vm_uuid = uuid_, .ownership_seen = 1}).error().code,
              Code::kSplit);
  }
  split.state = api::GATHERING;
  ASSERT_TRUE(store_->save_split(split, {}).has_value());
  const MigrationRecord moving = begin(vm);
  EXPECT_EQ(store_->transition(moving, api::PREPARING, api::TRANSFERRING).error().code, Code::kSplit);
  EXPECT_EQ(store_->migration(moving.id).value()->state, api::PREPARING);
  ASSERT_TRUE(store_->end_split(uuid_).has_value());
  EXPECT_TRUE(store_->transition(moving, api::PREPARING, api::TRANSFERRING).value());
}

TEST_F(StoreTest, TheSplitMovesWithTheOwnershipOrNotAtAll) {
  api::Plan plan;
  plan.set_keeps_stores(true);
  plan.set_resident_budget_bytes(8192);
  for (const bool whole : {false, true}) {
    const Id128 uuid = Id128::random();
    auto claim = claim_of(whole ? "whole" : "part", uuid, "host-a", 0);
    const VmRecord vm = store_->claim_vm(claim).value();
    plan.set_whole(whole);
    plan.set_resident_budget_bytes(whole ? 0 : 8192);
    const MigrationRecord moving = begin(vm, plan);  // it waits until the VM is split
    SplitRecord split{.vm_uuid = uuid, .ownership = 1, .budget_bytes = 4096, .state = api::SPLITTING};
    const PageStoreRecord kept{.id = Id128::random(),
                               .vm_uuid = uuid,
                               .vm_name = "demo",
                               .main_host = "host-a",
                               .sub_host = "host-c",
                               .ownership = 1,
                               .number = 0,
                               .bytes_lent = 4096,
                               .state = api::PAGE_STORE_CONNECTED};
    PageStoreRecord goes = kept;
    goes.id = Id128::random();
    goes.number = 1;
    goes.sub_host = "host-d";
    goes.state = api::PAGE_STORE_RETIRING;
    ASSERT_TRUE(store_->save_split(split, std::array{kept, goes}).has_value());
    EXPECT_EQ(store_->transition(moving, api::PREPARING, api::TRANSFERRING).error().code, Code::kSplit);
    split.state = api::SPLIT;
    ASSERT_TRUE(store_->save_split(split, {}).has_value());
    bring_to(moving, api::SWITCHING);
    EXPECT_EQ(store_->save_split(split, {}).error().code, Code::kMigrationActive) << "it is on its way";
    const auto of_vm = [&](const auto& each) { return each.vm_uuid == uuid; };
    const auto before = store_->splits().value();
    const auto it = std::ranges::find_if(before, of_vm);
    ASSERT_NE(it, before.end());
    EXPECT_EQ(it->ownership, 1U);
    ASSERT_TRUE(store_->transition(moving, api::SWITCHING, api::PULLING).value());
    open();
    const auto splits = store_->splits().value();
    const auto now = std::ranges::find_if(splits, of_vm);
    ASSERT_NE(now, splits.end());
    EXPECT_EQ(now->ownership, 2U);
    EXPECT_EQ(now->budget_bytes, whole ? 4096U : 8192U);
    EXPECT_EQ(now->state, whole ? api::GATHERING : api::SPLIT);
    const auto stores = store_->page_stores().value();
    for (const PageStoreRecord& store : stores) {
      if (of_vm(store)) {
        EXPECT_EQ(store.main_host, store.id == kept.id ? "host-b" : "host-a");
        EXPECT_EQ(store.ownership, store.id == kept.id ? 2U : 1U);
      }
    }
    EXPECT_TRUE(store_->save_split(*now, {}).has_value()) << "the new main host's, while it pulls";
  }
}

TEST_F(StoreTest, WithoutItsSplitAMainPartIsNotCommitted) {
  api::Plan plan;
  plan.set_keeps_stores(true);
  const VmRecord vm = start(uuid_);
  SplitRecord split{.vm_uuid = uuid_, .ownership = 1, .budget_bytes = 4096, .state = api::SPLIT};
  ASSERT_TRUE(store_->save_split(split, {}).has_value());
  const MigrationRecord moving = begin(vm, plan);
  bring_to(moving, api::SWITCHING);
  ASSERT_TRUE(store_->end_split(uuid_).has_value());
  EXPECT_EQ(store_->transition(moving, api::SWITCHING, api::PULLING).error().code, Code::kSplit);
  EXPECT_EQ(vm_now(uuid_).host, "host-a");
  EXPECT_TRUE(store_->transition(moving, api::SWITCHING, api::ABORTED).value());
}

TEST_F(StoreTest, AStandingOrderIsKeptUntilTheVmIsStartedAnew) {
  const VmRecord vm = start(uuid_);
  StandingOrder order{
      .vm_uuid = uuid_, .source = "host-a", .at_source = {}, .destination = "host-b", .at_destination = {}};
  order.at_source.set_budget_bytes(4096);
  ASSERT_TRUE(store_->save_standing_order(order).has_value());
  order.at_source.add_sub_hosts("host-c");
  ASSERT_TRUE(store_->save_standing_order(order).has_value());
  open();
  const auto orders = store_->standing_orders().value();
  ASSERT_EQ(orders.size(), 1U) << "one a VM";
  EXPECT_EQ(orders[0].vm_uuid, uuid_);
  EXPECT_EQ(orders[0].source + orders[0].destination, "host-ahost-b");
  EXPECT_EQ(orders[0].at_source.budget_bytes(), 4096U);
  EXPECT_EQ(orders[0].at_source.sub_hosts(0), "host-c");
  EXPECT_EQ(orders[0].at_destination.budget_bytes(), 0U);
  ASSERT_TRUE(store_->release_vm(uuid_, vm.ownership).value());
  ASSERT_TRUE(store_->claim_vm(claim_of("demo", uuid_, "host-a", vm.ownership)).has_value());
  EXPECT_TRUE(store_->standing_orders().value().empty());
  ASSERT_TRUE(store_->save_standing_order(order).has_value());
  ASSERT_TRUE(store_->forget_standing_order(uuid_).has_value());
  ASSERT_TRUE(store_->forget_standing_order(uuid_).has_value());
  EXPECT_TRUE(store_->standing_orders().value().empty());
}

void run_sql(const std::filesystem::path& file, const char* sql) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(file.c_str(), &database), SQLITE_OK);
  char* error = nullptr;
  EXPECT_EQ(sqlite3_exec(database, sql, nullptr, nullptr, &error), SQLITE_OK) << error;
  sqlite3_close(database);
}

/// Makes of today's file one as version 1 wrote it: its table knew no state above 5.
void make_version_1(const std::filesystem::path& file) {
  run_sql(file,
          "PRAGMA writable_schema = ON;"
          "UPDATE sqlite_schema SET sql = replace(sql, 'BETWEEN 1 AND 7', 'BETWEEN 1 AND 5');"
          "UPDATE sqlite_schema SET sql = replace(sql, '(state < 4 OR state = 6)', 'state < 4');"
          "PRAGMA writable_schema = OFF; DROP TABLE page_stores; DROP TABLE splits; DROP TABLE standing_orders;"
          "PRAGMA user_version = 1");
}

/// As version 3 wrote it: it knew neither how flows are encrypted nor that stores are drained.
void make_version_3(const std::filesystem::path& file) {
  run_sql(file,
          "ALTER TABLE splits DROP COLUMN encryption; DROP TABLE standing_orders; PRAGMA writable_schema = ON;"
          "UPDATE sqlite_schema SET sql = replace(sql, '(1, 2, 4, 5)', '(1, 2, 4)');"
          "UPDATE sqlite_schema SET sql = replace(sql, 'state <> 4', 'state < 4');"
          "PRAGMA writable_schema = OFF; PRAGMA user_version = 3");
}

TEST_F(StoreTest, AFileOfVersion1IsTakenOver) {
  const VmRecord vm = start(uuid_);
  const MigrationRecord first = begin(vm);
  bring_to(first, api::ABORTED);
  const MigrationRecord second = begin(vm);
  bring_to(second, api::SWITCHING);
  store_.reset();
  make_version_1(file());
  open();
  const auto all = store_->migrations(0).value();
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(all[0].id, second.id) << "in their order";
  EXPECT_EQ(all[1].state, api::ABORTED);
  EXPECT_TRUE(store_->transition(second, api::SWITCHING, api::PULLING).value());
  EXPECT_EQ(store_->begin_migration({.id = Id128::random(), .vm_uuid = uuid_, .ownership_seen = 2}).error().code,
            Code::kMigrationActive);
  open();
  EXPECT_EQ(store_->active_migrations().value().size(), 1U);
}

TEST_F(StoreTest, AFileOfVersion3IsTakenOver) {
  start(uuid_);
  const SplitRecord split{.vm_uuid = uuid_, .ownership = 1, .budget_bytes = 4096, .state = api::SPLIT};
  const PageStoreRecord page_store{.id = Id128::random(),
                                   .vm_uuid = uuid_,
                                   .vm_name = "demo",
                                   .main_host = "host-a",
                                   .sub_host = "host-b",
                                   .ownership = 1,
                                   .bytes_lent = 4096,
                                   .state = api::PAGE_STORE_CONNECTED};
  ASSERT_TRUE(store_->save_split(split, {&page_store, 1}).has_value());
  store_.reset();
  make_version_3(file());
  open();
  ASSERT_EQ(store_->splits().value().size(), 1U);
  EXPECT_EQ(store_->splits().value().at(0).encryption, dpapi::ENCRYPTION_AES_128_GCM);
  EXPECT_TRUE(store_->set_page_store_state(page_store.id, api::PAGE_STORE_DRAINING).has_value());
  PageStoreRecord second = page_store;
  second.id = Id128::random();
  second.number = 1;
  EXPECT_FALSE(store_->save_split(split, {&second, 1}).has_value()) << "two of one VM at one host";
  open();
  EXPECT_EQ(store_->page_stores().value().at(0).state, api::PAGE_STORE_DRAINING);
}

TEST_F(StoreTest, AFileOfVersion4IsTakenOver) {
  start(uuid_);
  store_.reset();
  run_sql(file(), "DROP TABLE standing_orders; PRAGMA user_version = 4");
  open();
  EXPECT_TRUE(store_->save_standing_order({.vm_uuid = uuid_}).has_value());
  open();
  EXPECT_EQ(store_->standing_orders().value().size(), 1U);
}

TEST_F(StoreTest, ForeignFilesAreRefused) {
  const auto text = directory_ / "text";
  std::ofstream(text) << std::string(5000, 'x');
  EXPECT_EQ(open_sqlite_store(text).error().code, Code::kDatabase);
  EXPECT_EQ(open_sqlite_store(directory_ / "no" / "such").error().code, Code::kDatabase);
  const auto newer = directory_ / "newer";
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(newer.c_str(), &database), SQLITE_OK);
  sqlite3_exec(database, "PRAGMA user_version = 99", nullptr, nullptr, nullptr);
  sqlite3_close(database);
  const auto refused = open_sqlite_store(newer);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().text.find("schema version 99"), std::string::npos);
}

}  // namespace
}  // namespace godwit::controlplane
