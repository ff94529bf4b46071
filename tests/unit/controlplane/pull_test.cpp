// The control plane while a VM runs at the destination and pages of it are still at the source: nothing but the last
// page, or the end of the guest, ends that. Fake agents on real gRPC streams play both hosts.
#include "tests/unit/controlplane/service_fixture.h"

namespace godwit::controlplane::testing {
namespace {

constexpr std::uint64_t kMissing = 1234;
constexpr const char* kMissingText = "1234 pages (4.8 MiB)";

class PullTest : public ServiceTest {
 protected:
  void SetUp() override {
    Cluster::SetUp();
    b_->info.set_postcopy(true);
  }

  /// The agent reports its part of the VM; it must be connected.
  void report(FakeAgent& agent, const std::string& id, bool connected, std::uint64_t missing = kMissing,
              bool complete = false, const std::string& reason = {}) {
    const bool source = &agent == a_.get();
    api::RunningVm vm;
    vm.set_uuid(uuid_.to_bytes());
    vm.set_name("demo");
    vm.set_run_state(source ? "serving" : "running");
    vm.set_migration_id(id);
    vm.set_role(source ? dpapi::ROLE_SOURCE : dpapi::ROLE_DESTINATION);
    auto& paging = *vm.mutable_paging();
    paging.set_connected(connected);
    paging.set_complete(complete);
    paging.set_reason(reason);
    paging.mutable_stats()->set_pages_missing(missing);
    paging.mutable_stats()->set_faults_per_s(source ? 0 : 77);
    agent.set_vms({vm});
    agent.report();
  }

  std::string begin_to_pull() {
    connect_and_start_vm();
    const std::string id = drive_to(Stage::kSwitching, *a_, *b_);
    Event loaded;
    loaded.set_pages_missing(kMissing);
    b_->event(id, Event::LOADED, loaded);
    confirm_pulling(id);
    const auto pulling = watch_until(id, [](const auto& m) {
      return m.connected() && m.stop_unix_us() > 0 && m.resume_unix_us() > 0;  // both have confirmed
    });
    EXPECT_EQ(pulling.note(), "pulling: 1234 pages (4.8 MiB) still on host-a");
    return id;
  }
  void confirm_pulling(const std::string& id) {
    const Agent resume = b_->expect(Agent::kOutcome);
    const Agent retire = a_->expect(Agent::kOutcome);
    for (const Agent& told : {resume, retire}) {
      EXPECT_EQ(told.outcome().state(), api::PULLING);
      EXPECT_EQ(told.outcome().ownership(), 2U);
    }
    Event times;
    times.set_stop_unix_us(1000);
    times.set_resume_unix_us(2000);
    report(*b_, id, true);
    b_->event(id, Event::RESUMED, times);
    b_->reply(resume);
    report(*a_, id, true);
    a_->event(id, Event::RETIRED, times);
    a_->reply(retire);
  }

  /// Both agents say that all is there, are told COMMITTED and obey.
  void complete(const std::string& id, const std::string& problem = {}) {
    report(*a_, id, true, 0, true);
    report(*b_, id, true, 0, true, problem);
    const Agent told_b = b_->expect(Agent::kOutcome);
    const Agent told_a = a_->expect(Agent::kOutcome);
    EXPECT_EQ(told_b.outcome().state(), api::COMMITTED);
    EXPECT_EQ(told_a.outcome().state(), api::COMMITTED);
    EXPECT_EQ(told_a.outcome().ownership(), 2U);
    runs_at(*b_, {});
    b_->reply(told_b);
    a_->set_vms({});
    a_->report();
    Event retired;
    retired.set_text("image retained");
    a_->event(id, Event::RETIRED, retired);
    a_->reply(told_a);
    EXPECT_EQ(watch_to_end(id).state(), api::COMMITTED);
    EXPECT_EQ(vm().host(), "host-b");
    EXPECT_EQ(vm().ownership(), 2U);
    EXPECT_EQ(vm().depends_on(), "");
  }

  /// Plays one attempt to begin the flow again; returns its secret.
  std::string expect_resume(const std::string& id) {
    const Agent at_b = b_->expect(Agent::kPrepareResume);
    EXPECT_EQ(at_b.prepare_resume().migration_id(), id);
    api::AgentReply prepared;
    prepared.mutable_resume_prepared()->mutable_endpoint()->set_address("10.0.0.2");
    prepared.mutable_resume_prepared()->mutable_endpoint()->set_flow_id(22);
    prepared.mutable_resume_prepared()->set_pages_missing(kMissing);
    b_->reply(at_b, prepared);
    const Agent at_a = a_->expect(Agent::kPrepareResume);
    prepared.mutable_resume_prepared()->mutable_endpoint()->set_address("10.0.0.1");
    prepared.mutable_resume_prepared()->mutable_endpoint()->set_flow_id(11);
    a_->reply(at_a, prepared);
    const Agent to_b = b_->expect(Agent::kResumeTransfer);
    EXPECT_EQ(to_b.resume_transfer().peer().flow_id(), 11U);
    EXPECT_EQ(a_->unread(), 0U) << "destination first";
    b_->reply(to_b);
    const Agent to_a = a_->expect(Agent::kResumeTransfer);
    EXPECT_EQ(to_a.resume_transfer().peer().flow_id(), 22U);
    EXPECT_EQ(to_a.resume_transfer().secret(), to_b.resume_transfer().secret());
    EXPECT_EQ(to_a.resume_transfer().secret().size(), 32U);
    EXPECT_EQ(to_a.resume_transfer().policy().downtime_limit_us(), 300'000U);
    report(*a_, id, true);
    report(*b_, id, true);
    a_->reply(to_a);
    return to_b.resume_transfer().secret();
  }

  template <typename Request, typename Response>
  std::string refusal(grpc::Status (api::Operators::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                      const Request& request) {
    const auto status = call(method, request).get().first;
    EXPECT_FALSE(status.ok());
    return status.error_message();
  }
};

TEST_F(PullTest, ModeAndItsRulesReachBothHosts) {
  connect_and_start_vm();
  api::MigrateRequest request;
  request.mutable_plan()->set_vm("demo");
  request.mutable_plan()->set_destination("host-b");
  request.mutable_plan()->set_mode(dpapi::HYBRID);
  request.mutable_plan()->set_postcopy_after_rounds(3);
  request.mutable_plan()->set_postcopy_after_ms(4000);
  request.mutable_plan()->set_background_order(dpapi::BACKGROUND_SEQUENTIAL);
  const auto [status, begun] = call(&api::Operators::Stub::Migrate, request).get();
  ASSERT_TRUE(status.ok()) << status.error_message();
  Agent command = a_->expect(Agent::kPrepareSource);
  EXPECT_EQ(command.prepare_source().mode(), dpapi::HYBRID);
  api::SwitchToPostcopyRequest switching;
  switching.set_migration_id(begun.migration_id());
  EXPECT_NE(refusal(&api::Operators::Stub::SwitchToPostcopy, switching).find("while it transfers"), std::string::npos);
  a_->reply(command, source_prepared());
  command = b_->expect(Agent::kPrepareDestination);
  EXPECT_EQ(command.prepare_destination().mode(), dpapi::HYBRID);
  b_->reply(command, destination_prepared());
  b_->reply(b_->expect(Agent::kStartTransfer));
  command = a_->expect(Agent::kStartTransfer);
  const auto& policy = command.start_transfer().policy();
  EXPECT_EQ(policy.mode(), dpapi::HYBRID);
  EXPECT_EQ(policy.postcopy_after_rounds(), 3U);
  EXPECT_EQ(policy.postcopy_after_ms(), 4000U);
  EXPECT_EQ(policy.background_order(), dpapi::BACKGROUND_SEQUENTIAL);
  a_->reply(command);
  watch_until(begun.migration_id(), [](const auto& m) { return m.note() == "transferring"; });
  auto asked = call(&api::Operators::Stub::SwitchToPostcopy, switching);
  const Agent told = a_->expect(Agent::kSwitchToPostcopy);
  EXPECT_EQ(told.switch_to_postcopy().migration_id(), begun.migration_id());
  a_->reply(told);
  EXPECT_TRUE(asked.get().first.ok());
}

TEST_F(PullTest, APrecopyIsNotSwitched) {
  connect_and_start_vm();
  api::SwitchToPostcopyRequest request;
  request.set_migration_id(drive_to(Stage::kTransferring, *a_, *b_));
  EXPECT_NE(refusal(&api::Operators::Stub::SwitchToPostcopy, request).find("of mode precopy"), std::string::npos);
  request.set_migration_id(Id128::random().to_bytes());
  EXPECT_NE(refusal(&api::Operators::Stub::SwitchToPostcopy, request).find("no migration"), std::string::npos);
}

TEST_F(PullTest, NothingMissingIsCommittedAtOnce) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kSwitching, *a_, *b_);
  commit(id, *a_, *b_, 2);  // LOADED with no page missing
  EXPECT_EQ(watch_to_end(id).state(), api::COMMITTED);
}

TEST_F(PullTest, UntilTheLastPageTheVmNeedsItsSource) {
  const std::string id = begin_to_pull();
  EXPECT_EQ(vm().host(), "host-b");
  EXPECT_EQ(vm().ownership(), 2U);
  EXPECT_EQ(vm().depends_on(), "host-a");
  EXPECT_EQ(vm().paging().stats().pages_missing(), kMissing);
  EXPECT_EQ(vm().paging().stats().faults_per_s(), 77U);
  const api::Migration pulling = migration(id);
  EXPECT_EQ(pulling.state(), api::PULLING);
  EXPECT_FALSE(pulling.ended());
  EXPECT_TRUE(pulling.connected());
  EXPECT_EQ(pulling.ended_unix_us(), 0);
  EXPECT_EQ(pulling.destination_stats().paging().pages_missing(), kMissing);

  const std::string busy = migrate("host-a").first.error_message();
  EXPECT_NE(busy.find("VM \"demo\" still needs " + std::string(kMissingText) + " that only host-a holds"),
            std::string::npos)
      << busy;
  api::CancelMigrationRequest cancel;
  cancel.set_migration_id(id);
  EXPECT_NE(refusal(&api::Operators::Stub::CancelMigration, cancel).find("there is no way back"), std::string::npos);
  dpapi::Image image;
  image.mutable_id()->set_vm_uuid(uuid_.to_bytes());
  image.mutable_id()->set_image_id(image_id_);
  a_->set_images({image});
  a_->report();
  b_->report();
  api::DropImageRequest drop;
  drop.set_host("host-a");
  drop.set_vm("demo");
  watch_until(id, [&](const auto&) {
    return call(&api::Operators::Stub::ListImages, api::ListImagesRequest()).get().second.images_size() == 1;
  });
  EXPECT_NE(refusal(&api::Operators::Stub::DropImage, drop)
                .find("VM \"demo\" on host-b still needs " + std::string(kMissingText)),
            std::string::npos);
  complete(id);
  EXPECT_GT(migration(id).ended_unix_us(), 0);
}

TEST_F(PullTest, WhatDiffersIsSaidAtTheEnd) {
  const std::string id = begin_to_pull();
  complete(id, "memory differs from what was sent");
  EXPECT_EQ(migration(id).reason(), "memory differs from what was sent");
}

TEST_F(PullTest, ACutFlowBeginsAgainUnderANewSecretEachTime) {
  const std::string id = begin_to_pull();
  report(*b_, id, false, kMissing, false, "the peer is silent");
  const std::string second = expect_resume(id);
  EXPECT_NE(second, secret_);
  const api::Migration begun =
      watch_until(id, [](const auto& m) { return m.note().find("no pages flow") != std::string::npos; });
  EXPECT_FALSE(begun.connected()) << "nothing has come on it yet";
  EXPECT_FALSE(vm().paging().connected());
  EXPECT_NE(begun.note().find("no pages flow: the peer is silent"), std::string::npos) << begun.note();
  report(*b_, id, true, kMissing - 1);
  watch_until(id, [](const auto& m) { return m.connected(); });
  EXPECT_TRUE(vm().paging().connected());
  report(*a_, id, false, kMissing, false, "the data plane was restarted");
  EXPECT_NE(expect_resume(id), second);
  complete(id);
}

TEST_F(PullTest, ItIsTriedWithoutEndAndTheReasonIsShown) {
  const std::string id = begin_to_pull();
  report(*b_, id, false, kMissing, false, "the peer is silent");
  for (int attempt = 0; attempt < 2; ++attempt) {
    b_->reply(b_->expect(Agent::kPrepareResume));
    a_->refuse(a_->expect(Agent::kPrepareResume), dpapi::Error::IMAGE_REFUSED, "its RAM file is gone");
    const auto shown =
        watch_until(id, [](const auto& m) { return m.note().find("its RAM file is gone") != std::string::npos; });
    EXPECT_NE(shown.note().find(kMissingText), std::string::npos) << shown.note();
    EXPECT_NE(shown.note().find("cannot serve them: host-a"), std::string::npos) << shown.note();
    EXPECT_FALSE(shown.connected());
    EXPECT_EQ(shown.state(), api::PULLING);
  }
  expect_resume(id);
  complete(id);
}

TEST_F(PullTest, ARestartOfTheControlPlaneLosesNothing) {
  const std::string id = begin_to_pull();
  restart();
  EXPECT_EQ(migration(id).state(), api::PULLING);
  EXPECT_EQ(vm().depends_on(), "host-a");
  EXPECT_NE(migration(id).note().find("host-a, which holds " + std::string(kMissingText)), std::string::npos)
      << migration(id).note();
  EXPECT_EQ(a_->connect().outcomes_size(), 0) << "both had confirmed";
  EXPECT_EQ(b_->connect().outcomes_size(), 0);
  watch_until(id, [](const auto& m) { return m.connected(); });
  report(*a_, id, false, kMissing, false, "cut meanwhile");
  expect_resume(id);
  complete(id);
}

TEST_F(PullTest, WhoWasNotToldHearsItAfterTheRestart) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kSwitching, *a_, *b_);
  Event loaded;
  loaded.set_pages_missing(kMissing);
  b_->event(id, Event::LOADED, loaded);
  (void)b_->expect(Agent::kOutcome);
  restart();
  EXPECT_EQ(b_->connect().outcomes(0).state(), api::PULLING);
  EXPECT_EQ(a_->connect().outcomes(0).state(), api::PULLING);
  confirm_pulling(id);
  watch_until(id, [](const auto& m) { return m.connected(); });
  complete(id);
}

TEST_F(PullTest, AbsentHostsAreNamedWithWhatTheyHold) {
  const std::string id = begin_to_pull();
  a_->disconnect();
  watch_until(id, [](const auto& m) {
    return m.note().starts_with("host-a, which holds 1234 pages (4.8 MiB) that the VM needs, is not connected");
  });
  a_->set_vms({});  // its journal is lost, or the host was installed anew
  a_->connect();
  const auto lost = watch_until(
      id, [](const auto& m) { return m.note().starts_with("host-a has lost 1234 pages (4.8 MiB) that the VM needs"); });
  EXPECT_EQ(lost.state(), api::PULLING) << "the operator decides";
  EXPECT_NE(lost.note().find("godwitctl stop"), std::string::npos);
  report(*a_, id, true);
  b_->set_vms({});
  b_->report();
  watch_until(id, [](const auto& m) { return m.note().starts_with("host-b does not run the VM any more"); });
  report(*b_, id, true);
  watch_until(id, [](const auto& m) { return m.connected(); });
  complete(id);
}

TEST_F(PullTest, StoppingTheVmEndsItAndSaysWhatWasNotFetched) {
  const std::string id = begin_to_pull();
  api::StopVmRequest stop;
  stop.set_vm("demo");
  auto stopped = call(&api::Operators::Stub::StopVm, stop);
  const Agent command = b_->expect(Agent::kStopVm);
  EXPECT_EQ(command.stop_vm().ownership(), 2U);
  b_->set_vms({});
  b_->report();
  b_->reply(command);
  EXPECT_TRUE(stopped.get().first.ok());
  const Agent told = a_->expect(Agent::kOutcome);
  EXPECT_EQ(told.outcome().state(), api::INCOMPLETE);
  a_->set_vms({});
  a_->report();
  a_->reply(told);
  const Agent told_too = b_->expect(Agent::kOutcome);
  b_->event(id, Event::RESUMED);  // its last word, said again to whoever asks of what is over
  b_->reply(told_too);
  const api::Migration ended = watch_to_end(id);
  EXPECT_EQ(ended.state(), api::INCOMPLETE);
  EXPECT_EQ(ended.reason(), "the VM was stopped before it had 1234 pages (4.8 MiB) of host-a");
  EXPECT_EQ(vm().run_state(), "stopped");
  EXPECT_EQ(vm().depends_on(), "");
}

TEST_F(PullTest, TheEndOfTheGuestEndsIt) {
  const std::string id = begin_to_pull();
  Event ended;
  ended.set_text("QEMU exited");
  b_->set_vms({});
  b_->report();
  b_->event(id, Event::ENDED, ended);
  const Agent told = a_->expect(Agent::kOutcome);
  EXPECT_EQ(told.outcome().state(), api::INCOMPLETE);
  a_->reply(told);
  b_->reply(b_->expect(Agent::kOutcome));
  const api::Migration last = watch_to_end(id);
  EXPECT_EQ(last.reason(), "the guest has ended on host-b (QEMU exited) before it had 1234 pages (4.8 MiB) of host-a");
}

TEST_F(PullTest, NeitherFailedNorReadyEndsIt) {
  const std::string id = begin_to_pull();
  Event failure;
  failure.mutable_error()->set_text("late news");
  b_->event(id, Event::FAILED, failure);
  a_->event(id, Event::FAILED, failure);
  a_->event(id, Event::READY_TO_SWITCH);
  a_->event(id, Event::ENDED);  // only the destination has a guest
  complete(id);
}

}  // namespace
}  // namespace godwit::controlplane::testing
