#pragma once
// The cluster of the service tests: two fake agents, and how far a migration is driven before something happens to it.
// One test's; its thread only.
#include <algorithm>
#include <string>

#include "tests/unit/controlplane/cluster.h"

namespace godwit::controlplane::testing {

using Agent = api::ToAgent;
using Event = api::MigrationEvent;

/// How far a migration is driven before something happens to it.
enum class Stage : std::uint8_t {
  kPreparingSource,
  kPreparingDestination,
  kStartingDestination,
  kStartingSource,
  kTransferring,
  kSwitching,
};

class ServiceTest : public Cluster {
 protected:
  /// Begins a migration and plays both agents up to the stage; commands of the stage itself are left unanswered.
  std::string drive_to(Stage stage, FakeAgent& from, FakeAgent& to, bool accept_image = false) {
    const auto [status, id] = migrate(to.info.name());
    EXPECT_TRUE(status.ok()) << status.error_message();
    last_ = from.expect(Agent::kPrepareSource);
    EXPECT_EQ(last_.prepare_source().migration_id(), id);
    epoch_base_ = last_.prepare_source().epoch_base();
    runs_at(from, id);
    if (stage == Stage::kPreparingSource) {
      return id;
    }
    from.reply(last_, source_prepared());
    last_ = to.expect(Agent::kPrepareDestination);
    EXPECT_EQ(last_.prepare_destination().epoch_base(), epoch_base_);
    reuse_ordered_ = last_.prepare_destination().reuse();
    runs_at(to, id);
    if (stage == Stage::kPreparingDestination) {
      return id;
    }
    to.reply(last_, destination_prepared(accept_image));
    last_ = to.expect(Agent::kStartTransfer);
    EXPECT_EQ(last_.start_transfer().peer().address(), "10.0.0.1");
    EXPECT_EQ(last_.start_transfer().secret().size(), 32U);
    secret_ = last_.start_transfer().secret();
    if (stage == Stage::kStartingDestination) {
      return id;
    }
    to.reply(last_);
    last_ = from.expect(Agent::kStartTransfer);
    EXPECT_EQ(last_.start_transfer().peer().address(), "10.0.0.2");
    EXPECT_EQ(last_.start_transfer().secret(), secret_);
    EXPECT_EQ(last_.start_transfer().policy().downtime_limit_us(), 300'000U);
    if (stage == Stage::kStartingSource) {
      return id;
    }
    from.reply(last_);
    if (stage == Stage::kTransferring) {
      watch_until(id, [](const auto& m) { return m.note() == "transferring"; });
      return id;
    }
    from.event(id, Event::READY_TO_SWITCH);
    last_ = from.expect(Agent::kSwitch);
    from.reply(last_);
    return id;
  }

  /// Both sides are told ABORTED, confirm it, and the VM is where it was, free to move again.
  void expect_aborted(const std::string& id, FakeAgent& from, FakeAgent* to, const std::string& reason) {
    const Agent outcome = from.expect(Agent::kOutcome);
    EXPECT_EQ(outcome.outcome().state(), api::ABORTED);
    EXPECT_EQ(outcome.outcome().migration_id(), id);
    EXPECT_EQ(outcome.outcome().ownership(), 1U);
    runs_at(from, {});
    from.event(id, Event::BACK);
    from.reply(outcome);
    if (to != nullptr) {
      const Agent told = to->expect(Agent::kOutcome);
      EXPECT_EQ(told.outcome().state(), api::ABORTED);
      to->set_vms({});
      to->report();
      to->reply(told);
    }
    const api::Migration ended = watch_to_end(id);
    EXPECT_EQ(ended.state(), api::ABORTED);
    EXPECT_NE(ended.reason().find(reason), std::string::npos) << ended.reason();
    EXPECT_EQ(vm().host(), "host-a");
    EXPECT_EQ(vm().ownership(), 1U);
    EXPECT_EQ(vm().migration_id(), "");
  }

  void expect_next_migration_begins() {
    const std::uint32_t used = epoch_base_;
    EXPECT_FALSE(drive_to(Stage::kPreparingSource, *a_, *b_).empty());
    EXPECT_GT(epoch_base_, used + 1024);
  }

  /// LOADED to the end, all confirmed.
  void commit(const std::string& id, FakeAgent& from, FakeAgent& to, std::uint64_t ownership_after) {
    to.event(id, Event::LOADED);
    const Agent resume = to.expect(Agent::kOutcome);
    EXPECT_EQ(resume.outcome().state(), api::COMMITTED);
    EXPECT_EQ(resume.outcome().ownership(), ownership_after);
    const Agent retire = from.expect(Agent::kOutcome);
    EXPECT_EQ(retire.outcome().state(), api::COMMITTED);
    Event resumed;
    resumed.set_resume_unix_us(1'000'012'000);
    resumed.mutable_stats()->set_pages_total(7);
    runs_at(to, {});
    to.event(id, Event::RESUMED, resumed);
    to.reply(resume);
    Event retired;
    retired.set_stop_unix_us(1'000'000'000);
    retired.mutable_stats()->set_wire_bytes(4096);
    from.set_vms({});
    from.report();
    from.event(id, Event::RETIRED, retired);
    from.reply(retire);
  }

  Agent last_;
  std::string secret_;  // of the migration under way
  std::uint32_t epoch_base_ = 0;
  bool reuse_ordered_ = false;
};

}  // namespace godwit::controlplane::testing
