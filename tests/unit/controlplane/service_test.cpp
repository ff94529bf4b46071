// The control plane whole, through its two doors: fake agents on real gRPC streams play both hosts. Each failure at
// each state must leave the VM with exactly one owner, tell both sides the same outcome, and let the next migration
// begin.
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <sstream>

#include "base/atomic_file.h"
#include "tests/unit/controlplane/service_fixture.h"

namespace godwit::controlplane::testing {
namespace {

TEST_F(ServiceTest, EncryptionOfThePlanReachesBothHosts) {
  connect_and_start_vm();
  api::MigrateRequest request;
  request.mutable_plan()->set_vm("demo");
  request.mutable_plan()->set_destination("host-b");
  request.mutable_plan()->set_encryption(dpapi::ENCRYPTION_NONE);
  const auto [status, begun] = call(&api::Operators::Stub::Migrate, request).get();
  ASSERT_TRUE(status.ok()) << status.error_message();
  const Agent source = a_->expect(Agent::kPrepareSource);
  EXPECT_EQ(source.prepare_source().encryption(), dpapi::ENCRYPTION_NONE);
  a_->reply(source, source_prepared());
  EXPECT_EQ(b_->expect(Agent::kPrepareDestination).prepare_destination().encryption(), dpapi::ENCRYPTION_NONE);
}

TEST_F(ServiceTest, HomeAndAway) {
  connect_and_start_vm();
  std::string id = drive_to(Stage::kSwitching, *a_, *b_);
  EXPECT_FALSE(reuse_ordered_);
  EXPECT_EQ(epoch_base_, 2U);
  dpapi::Image image;
  image.mutable_id()->set_vm_uuid(uuid_.to_bytes());
  image.mutable_id()->set_image_id(image_id_);
  image.set_bytes_total(kVmBytes);
  image.set_bytes_resident(kVmBytes / 2);
  a_->set_images({image});
  commit(id, *a_, *b_, 2);
  api::Migration ended = watch_to_end(id);
  EXPECT_EQ(ended.state(), api::COMMITTED);
  EXPECT_EQ(ended.resume_unix_us() - ended.stop_unix_us(), 12'000);
  EXPECT_EQ(ended.stats().wire_bytes(), 4096U);
  EXPECT_EQ(ended.destination_stats().pages_total(), 7U);
  EXPECT_EQ(ended.reuse_reason(), "none: no image of this VM was retained there");
  EXPECT_EQ(vm().host(), "host-b");
  EXPECT_EQ(vm().ownership(), 2U);

  id = drive_to(Stage::kSwitching, *b_, *a_, true);
  EXPECT_TRUE(reuse_ordered_);
  EXPECT_EQ(epoch_base_, 2U + 1024 + 1);
  commit(id, *b_, *a_, 3);
  ended = watch_to_end(id);
  EXPECT_TRUE(ended.reused());
  EXPECT_EQ(vm().host(), "host-a");
  EXPECT_EQ(vm().ownership(), 3U);
}

struct Blow {
  const char* name;
  Stage stage;
  enum class Kind : std::uint8_t {
    kSourceGone,
    kDestinationGone,
    kRefused,
    kSourceFails,
    kDestinationFails,
    kCancel,
    kRestart,
    kTimeout
  } kind;
};

std::vector<Blow> all_blows() {
  std::vector<Blow> blows;
  constexpr std::pair<Stage, const char*> kStages[] = {{Stage::kPreparingSource, "PreparingSource"},
                                                       {Stage::kPreparingDestination, "PreparingDestination"},
                                                       {Stage::kStartingDestination, "StartingDestination"},
                                                       {Stage::kStartingSource, "StartingSource"},
                                                       {Stage::kTransferring, "Transferring"},
                                                       {Stage::kSwitching, "Switching"}};
  using Kind = Blow::Kind;
  for (const auto& [stage, name] : kStages) {
    if (stage != Stage::kSwitching) {
      blows.push_back({name, stage, Kind::kSourceGone});  // in SWITCHING nothing is lost with it: see below
    }
    blows.push_back({name, stage, Kind::kDestinationGone});
    blows.push_back({name, stage, Kind::kCancel});
    blows.push_back({name, stage, Kind::kRestart});
    if (stage < Stage::kTransferring) {
      blows.push_back({name, stage, Kind::kRefused});
    } else {
      blows.push_back({name, stage, Kind::kDestinationFails});
      blows.push_back({name, stage, Kind::kSourceFails});
    }
    if (stage != Stage::kTransferring) {
      blows.push_back({name, stage, Kind::kTimeout});
    }
  }
  return blows;
}

const char* kind_name(Blow::Kind kind) {
  constexpr const char* kNames[] = {"SourceGone",       "DestinationGone", "Refused", "SourceFails",
                                    "DestinationFails", "Cancel",          "Restart", "Timeout"};
  return kNames[static_cast<std::size_t>(kind)];
}

class BlowTest : public ServiceTest, public ::testing::WithParamInterface<Blow> {
 protected:
  void SetUp() override {
    if (GetParam().kind == Blow::Kind::kTimeout) {
      config_.timeouts.prepare = config_.timeouts.switchover = milliseconds(300);
    }
    Cluster::SetUp();
  }
};

TEST_P(BlowTest, LeavesTheVmAtTheSource) {
  connect_and_start_vm();
  const auto [name, stage, kind] = GetParam();
  const std::string id = drive_to(stage, *a_, *b_);
  const bool told_b = stage != Stage::kPreparingSource;
  const bool command_of_a = stage == Stage::kPreparingSource || stage == Stage::kStartingSource;
  Event failure;
  failure.mutable_error()->set_text("broken");
  switch (kind) {
    case Blow::Kind::kSourceGone:
      a_->disconnect();
      watch_until_state(id, api::ABORTED);
      EXPECT_EQ(a_->connect().outcomes_size(), 1);
      expect_aborted(id, *a_, told_b ? b_.get() : nullptr, "host-a");
      break;
    case Blow::Kind::kDestinationGone:
      b_->disconnect();
      if (!told_b) {
        EXPECT_EQ(watch_until_state(id, api::ABORTED).state(), api::ABORTED);
        b_->connect();
        expect_aborted(id, *a_, nullptr, "host-b");
        break;
      }
      watch_until_state(id, api::ABORTED);
      b_->set_vms({});
      EXPECT_EQ(b_->connect().outcomes(0).state(), api::ABORTED);
      expect_aborted(id, *a_, b_.get(), "host-b was lost");
      break;
    case Blow::Kind::kRefused:
      (command_of_a ? *a_ : *b_).refuse(last_, dpapi::Error::KERNEL, "no room");
      expect_aborted(id, *a_, told_b ? b_.get() : nullptr, "no room");
      break;
    case Blow::Kind::kSourceFails:
      a_->event(id, Event::FAILED, failure);
      expect_aborted(id, *a_, b_.get(), "host-a: broken");
      break;
    case Blow::Kind::kDestinationFails:
      b_->event(id, Event::FAILED, failure);
      expect_aborted(id, *a_, b_.get(), "host-b: broken");
      break;
    case Blow::Kind::kCancel: {
      api::CancelMigrationRequest request;
      request.set_migration_id(id);
      EXPECT_TRUE(call(&api::Operators::Stub::CancelMigration, request).get().first.ok());
      expect_aborted(id, *a_, told_b ? b_.get() : nullptr, "cancelled");
      break;
    }
    case Blow::Kind::kRestart:
      restart();
      EXPECT_EQ(a_->connect().outcomes(0).state(), api::ABORTED);
      EXPECT_EQ(b_->connect().outcomes(0).migration_id(), id);
      expect_aborted(id, *a_, b_.get(), "the control plane was restarted");
      break;
    case Blow::Kind::kTimeout:
      expect_aborted(id, *a_, told_b ? b_.get() : nullptr,
                     stage == Stage::kSwitching ? "had not loaded" : "did not answer in time");
      break;
  }
  expect_next_migration_begins();
}

INSTANTIATE_TEST_SUITE_P(EachStage, BlowTest, ::testing::ValuesIn(all_blows()),
                         [](const auto& row) { return std::string(row.param.name) + kind_name(row.param.kind); });

TEST_F(ServiceTest, SourceLostInSwitchingDoesNotStopTheCommit) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kSwitching, *a_, *b_);
  a_->disconnect();
  b_->event(id, Event::LOADED);
  const Agent resume = b_->expect(Agent::kOutcome);
  EXPECT_EQ(resume.outcome().state(), api::COMMITTED);
  const api::Registered told = a_->connect();
  ASSERT_EQ(told.outcomes_size(), 1);
  EXPECT_EQ(told.outcomes(0).state(), api::COMMITTED);
  ASSERT_EQ(told.vms_size(), 1);
  EXPECT_FALSE(told.vms(0).here());
  EXPECT_EQ(a_->expect(Agent::kOutcome).outcome().state(), api::COMMITTED);
  EXPECT_EQ(vm().host(), "host-b");
}

TEST_F(ServiceTest, OutcomeIsToldAcrossRestartsUntilConfirmed) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kSwitching, *a_, *b_);
  b_->event(id, Event::LOADED);
  EXPECT_EQ(b_->expect(Agent::kOutcome).outcome().state(), api::COMMITTED);
  restart();
  EXPECT_EQ(b_->connect().outcomes(0).state(), api::COMMITTED);
  EXPECT_EQ(b_->expect(Agent::kOutcome).outcome().ownership(), 2U);
  b_->event(id, Event::RESUMED);
  a_->connect();
  const Agent retire = a_->expect(Agent::kOutcome);
  a_->event(id, Event::RETIRED);
  a_->reply(retire);
  // Both have confirmed; another restart has nothing to tell.
  watch_to_end(id);
  restart();
  EXPECT_EQ(a_->connect().outcomes_size(), 0);
  EXPECT_EQ(b_->connect().outcomes_size(), 0);
}

TEST_F(ServiceTest, DuplicateLoadedGetsTheSameAnswer) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kSwitching, *a_, *b_);
  b_->event(id, Event::LOADED);
  b_->event(id, Event::LOADED);
  for (int i = 0; i < 2; ++i) {
    const auto outcome = b_->expect(Agent::kOutcome).outcome();
    EXPECT_EQ(outcome.state(), api::COMMITTED);
    EXPECT_EQ(outcome.ownership(), 2U);
  }
  EXPECT_EQ(vm().ownership(), 2U);
}

TEST_F(ServiceTest, DestinationThatCannotResumeIsReported) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kSwitching, *a_, *b_);
  b_->event(id, Event::LOADED);
  const Agent resume = b_->expect(Agent::kOutcome);
  Event failure;
  failure.mutable_error()->set_text("QEMU has exited");
  b_->event(id, Event::FAILED, failure);
  b_->reply(resume);
  const Agent retire = a_->expect(Agent::kOutcome);
  a_->event(id, Event::RETIRED);
  a_->reply(retire);
  const api::Migration ended = watch_to_end(id);
  EXPECT_EQ(ended.state(), api::COMMITTED);
  EXPECT_EQ(ended.reason(), "host-b: QEMU has exited");
}

TEST_F(ServiceTest, WhatEndedIsSeenBeforeTheNextReport) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kTransferring, *a_, *b_);
  api::CancelMigrationRequest request;
  request.set_migration_id(id);
  EXPECT_TRUE(call(&api::Operators::Stub::CancelMigration, request).get().first.ok());
  // host-b's reports still name the VM until it has none: freeze them, as if they were late.
  b_->stop_reports();
  a_->stop_reports();
  a_->event(id, Event::BACK);
  a_->expect(Agent::kOutcome);
  b_->reply(b_->expect(Agent::kOutcome));
  EXPECT_EQ(watch_to_end(id).state(), api::ABORTED);
  const auto [status, next] = migrate("host-b");
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(ServiceTest, LoadedBeforeTheSwitchAborts) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kTransferring, *a_, *b_);
  b_->event(id, Event::LOADED);
  expect_aborted(id, *a_, b_.get(), "before the switch");
}

TEST_F(ServiceTest, LateEventsOfAnOlderMigrationChangeNothing) {
  connect_and_start_vm();
  const std::string old = drive_to(Stage::kTransferring, *a_, *b_);
  api::CancelMigrationRequest request;
  request.set_migration_id(old);
  EXPECT_TRUE(call(&api::Operators::Stub::CancelMigration, request).get().first.ok());
  expect_aborted(old, *a_, b_.get(), "cancelled");
  const std::string id = drive_to(Stage::kSwitching, *a_, *b_);
  b_->event(old, Event::LOADED);
  const auto outcome = b_->expect(Agent::kOutcome).outcome();
  EXPECT_EQ(outcome.migration_id(), old);
  EXPECT_EQ(outcome.state(), api::ABORTED);
  a_->event(old, Event::READY_TO_SWITCH);
  EXPECT_EQ(a_->expect(Agent::kOutcome).outcome().state(), api::ABORTED);
  // A side may speak for itself only, and of its own migrations only.
  a_->event(id, Event::LOADED);
  a_->event(Id128::random().to_bytes(), Event::LOADED);
  a_->ask_outcome(id);
  EXPECT_EQ(a_->expect(Agent::kOutcome).outcome().state(), api::SWITCHING);
  commit(id, *a_, *b_, 2);
  EXPECT_EQ(watch_to_end(id).state(), api::COMMITTED);
}

TEST_F(ServiceTest, AskedForAnUnknownMigrationItDecidesNothing) {
  connect_and_start_vm();
  a_->ask_outcome(Id128::random().to_bytes());
  EXPECT_EQ(a_->expect(Agent::kOutcome).outcome().state(), api::STATE_UNSPECIFIED);
  a_->ask_outcome("short");
  EXPECT_EQ(a_->expect(Agent::kOutcome).outcome().state(), api::STATE_UNSPECIFIED);
}

TEST_F(ServiceTest, ReconnectInTransferringGoesOn) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kTransferring, *a_, *b_);
  b_->disconnect();
  watch_until(id, [](const auto& m) { return m.note().find("waiting") != std::string::npos; });
  a_->event(id, Event::READY_TO_SWITCH);  // nobody could commit now
  b_->connect();
  const Agent command = a_->expect(Agent::kSwitch);
  a_->reply(command);
  commit(id, *a_, *b_, 2);
  EXPECT_EQ(watch_to_end(id).state(), api::COMMITTED);
}

TEST_F(ServiceTest, RestartedBridgeThatLostTheMigrationAborts) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kTransferring, *a_, *b_);
  b_->disconnect();
  b_->set_vms({});
  b_->connect();
  expect_aborted(id, *a_, b_.get(), "restarted");
}

TEST_F(ServiceTest, NewStreamOfAHostReplacesTheOld) {
  connect_and_start_vm();
  FakeAgent second(config_.listen[0], "host-b");
  EXPECT_TRUE(second.connect().accepted());
  EXPECT_TRUE(b_->wait_until_cut_off());
  const auto [status, id] = migrate("host-b");
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(ServiceTest, HostWithoutSignOfLifeIsLost) {
  config_.timeouts.host_heartbeat = milliseconds(200);
  server_.reset();
  start();
  const auto stub = api::Agents::NewStub(grpc::CreateChannel(config_.listen[0], grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  const auto stream = stub->Session(&context);
  api::FromAgent message;
  message.mutable_register_()->mutable_host()->set_name("host-c");
  stream->Write(message);
  api::ToAgent answer;
  ASSERT_TRUE(stream->Read(&answer));
  EXPECT_FALSE(stream->Read(&answer));
  const auto [status, hosts] = call(&api::Operators::Stub::ListHosts, api::ListHostsRequest()).get();
  ASSERT_EQ(hosts.hosts_size(), 1);
  EXPECT_FALSE(hosts.hosts(0).connected());
  context.TryCancel();
}

TEST_F(ServiceTest, HostnameIsChecked) {
  FakeAgent bad(config_.listen[0], "../etc");
  const api::Registered registered = bad.connect();
  EXPECT_FALSE(registered.accepted());
  EXPECT_FALSE(registered.reason().empty());
}

TEST_F(ServiceTest, VmThatTheStoreGivesToAnotherHostIsNotHere) {
  connect_and_start_vm();
  FakeAgent other(config_.listen[0], "host-c");
  api::RunningVm vm;
  vm.set_uuid(uuid_.to_bytes());
  other.set_vms({vm});
  const api::Registered registered = other.connect();
  ASSERT_EQ(registered.vms_size(), 1);
  EXPECT_FALSE(registered.vms(0).here());
  EXPECT_EQ(registered.vms(0).ownership(), 1U);
}

TEST_F(ServiceTest, RefusedStartGivesTheVmToNobody) {
  a_->connect();
  b_->connect();
  api::StartVmRequest request;
  request.set_host("host-a");
  *request.mutable_definition() = definition_of("demo", uuid_);
  auto first = call(&api::Operators::Stub::StartVm, request);
  a_->refuse(a_->expect(Agent::kStartVm), dpapi::Error::BAD_REQUEST, "no such machine");
  const auto [status, response] = first.get();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(status.error_message(), "host-a: no such machine");
  EXPECT_EQ(vm().host(), "");
  // Elsewhere it may be tried at once, under the next number, epoch and another image id.
  request.set_host("host-b");
  auto second = call(&api::Operators::Stub::StartVm, request);
  const Agent command = b_->expect(Agent::kStartVm);
  EXPECT_EQ(command.start_vm().ownership(), 2U);
  EXPECT_EQ(command.start_vm().epoch(), 2U);
  b_->reply(command);
  EXPECT_TRUE(second.get().first.ok());
}

TEST_F(ServiceTest, UnansweredStartKeepsTheVmFromOtherHosts) {
  config_.timeouts.command = milliseconds(200);
  server_.reset();
  start();
  a_->connect();
  b_->connect();
  api::StartVmRequest request;
  request.set_host("host-a");
  *request.mutable_definition() = definition_of("demo", uuid_);
  EXPECT_EQ(call(&api::Operators::Stub::StartVm, request).get().first.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  request.set_host("host-b");
  EXPECT_EQ(call(&api::Operators::Stub::StartVm, request).get().first.error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  a_->disconnect();
  EXPECT_EQ(call(&api::Operators::Stub::StartVm, request).get().first.error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  // Registered anew, it names no such VM: now it is certain.
  a_->connect();
  auto started = call(&api::Operators::Stub::StartVm, request);
  b_->reply(b_->expect(Agent::kStartVm));
  EXPECT_TRUE(started.get().first.ok());
}

TEST_F(ServiceTest, StopAndDropImage) {
  connect_and_start_vm();
  dpapi::Image image;
  image.mutable_id()->set_vm_uuid(uuid_.to_bytes());
  image.mutable_id()->set_image_id(image_id_);
  image.set_in_use(true);
  b_->set_images({image});
  b_->disconnect();
  b_->connect();
  api::DropImageRequest drop;
  drop.set_host("host-b");
  drop.set_vm("demo");
  EXPECT_EQ(call(&api::Operators::Stub::DropImage, drop).get().first.error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  image.set_in_use(false);
  b_->set_images({image});
  b_->disconnect();
  b_->connect();
  auto dropped = call(&api::Operators::Stub::DropImage, drop);
  const Agent command = b_->expect(Agent::kDropImage);
  EXPECT_EQ(command.drop_image().id().image_id(), image_id_);
  b_->set_images({});
  b_->reply(command);
  EXPECT_TRUE(dropped.get().first.ok());

  api::StopVmRequest stop;
  stop.set_vm(uuid_.text());
  auto stopped = call(&api::Operators::Stub::StopVm, stop);
  const Agent command_stop = a_->expect(Agent::kStopVm);
  a_->set_vms({});
  a_->reply(command_stop);
  EXPECT_TRUE(stopped.get().first.ok());
  EXPECT_EQ(vm().run_state(), "stopped");
  EXPECT_EQ(migrate("host-b").first.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(ServiceTest, PlannersRefusalsBecomeStatuses) {
  connect_and_start_vm();
  EXPECT_EQ(migrate("host-x").first.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(migrate("host-a").first.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(migrate("host-b", api::REUSE_REQUIRE).first.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  const std::string id = drive_to(Stage::kPreparingSource, *a_, *b_);
  EXPECT_EQ(migrate("host-b").first.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  api::CancelMigrationRequest cancel;
  cancel.set_migration_id("short");
  EXPECT_EQ(call(&api::Operators::Stub::CancelMigration, cancel).get().first.error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  cancel.set_migration_id(Id128::random().to_bytes());
  EXPECT_EQ(call(&api::Operators::Stub::CancelMigration, cancel).get().first.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, RequiredReuseThatTheDestinationRefusesAborts) {
  connect_and_start_vm();
  dpapi::Image image;
  image.mutable_id()->set_vm_uuid(uuid_.to_bytes());
  image.mutable_id()->set_image_id(image_id_);
  image.set_bytes_total(kVmBytes);
  b_->disconnect();
  b_->set_images({image});
  b_->connect();
  const auto [status, id] = migrate("host-b", api::REUSE_REQUIRE);
  ASSERT_TRUE(status.ok()) << status.error_message();
  a_->reply(a_->expect(Agent::kPrepareSource), source_prepared());
  const Agent prepare = b_->expect(Agent::kPrepareDestination);
  EXPECT_TRUE(prepare.prepare_destination().reuse());
  api::AgentReply reply = destination_prepared(false);
  reply.mutable_destination_prepared()->set_image_reason("another boot of the host");
  b_->reply(prepare, reply);
  expect_aborted(id, *a_, b_.get(), "another boot of the host");
}

/// All that the control plane has written down or says of itself: its files, its log, its answers.
class SecretsTest : public ServiceTest {
 protected:
  void SetUp() override {
    auto logger = std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_));
    logger->set_level(spdlog::level::trace);
    before_ = spdlog::default_logger();
    spdlog::set_default_logger(logger);
    ServiceTest::SetUp();
  }
  void TearDown() override {
    ServiceTest::TearDown();
    spdlog::set_default_logger(before_);
  }

  std::string files() const {
    std::string all;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      all += entry.is_regular_file() ? read_file(entry.path()).value_or("") : "";
    }
    return all;
  }
  std::string answers() {
    return call(&api::Operators::Stub::ListMigrations, api::ListMigrationsRequest()).get().second.SerializeAsString() +
           call(&api::Operators::Stub::ListVms, api::ListVmsRequest()).get().second.SerializeAsString() +
           call(&api::Operators::Stub::ListHosts, api::ListHostsRequest()).get().second.SerializeAsString();
  }

  std::ostringstream log_;
  std::shared_ptr<spdlog::logger> before_;
};

TEST_F(SecretsTest, AreNeitherStoredNorLoggedNorTold) {
  connect_and_start_vm();
  const std::string id = drive_to(Stage::kSwitching, *a_, *b_);
  std::vector<std::string> forms(2);  // as it is, and the ways that bytes are printed
  forms[0] = secret_;
  for (const char c : secret_) {
    forms[1] += fmt::format("{:02x}", static_cast<unsigned char>(c));
  }
  ASSERT_EQ(secret_.size(), 32U);
  const auto expect_absent = [&](const std::string& from, const char* where) {
    for (const auto& form : forms) {
      EXPECT_EQ(from.find(form.substr(0, form.size() / 4)), std::string::npos) << where;
    }
  };
  EXPECT_NE(files().find(id), std::string::npos) << "the migration itself is in the store";
  expect_absent(files(), "a file, while it moves");
  expect_absent(answers(), "an answer, while it moves");
  commit(id, *a_, *b_, 2);
  watch_to_end(id);
  expect_absent(files(), "a file");
  expect_absent(answers(), "an answer");
  server_.reset();
  EXPECT_NE(log_.str().find("is connected"), std::string::npos) << "the log is seen";
  expect_absent(log_.str(), "the log");
}

TEST_F(ServiceTest, PlaintextBeyondTheMachineNeedsInsecure) {
  config::ControlplaneConfig config = config_;
  config.listen = {"127.0.0.1:0"};
  config.database = directory_ / "other.db";
  const auto refused = Server::start(config);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().find("insecure = true"), std::string::npos);
  config.security.insecure = true;
  EXPECT_TRUE(Server::start(config).has_value());
}

TEST_F(ServiceTest, SecondControlPlaneOnTheSameStoreIsRefused) {
  config::ControlplaneConfig config = config_;
  config.listen = {"unix:" + (directory_ / "second.sock").string()};
  const auto refused = Server::start(config);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().find("another control plane"), std::string::npos);
}

}  // namespace
}  // namespace godwit::controlplane::testing
