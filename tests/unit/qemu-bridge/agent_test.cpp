// The whole agent between a control plane that the test plays and a fake data plane: it registers, answers every
// command by its id, says what runs here, and registers again when the control plane comes back.
#include "qemu-bridge/agent/agent.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <deque>
#include <fstream>

#include "qemu-bridge/agent/definition.h"
#include "tests/unit/qemu-bridge/fake_dataplane.h"
#include "tests/unit/qemu-bridge/owned_qemu.h"
#include "tests/unit/qemu-bridge/temp_dir.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::FromAgent;
using controlplane::v1::ToAgent;

class FakeControlPlane : public controlplane::v1::Agents::Service {
 public:
  explicit FakeControlPlane(std::string target) : target_(std::move(target)) { begin(); }
  ~FakeControlPlane() override { end(); }
  void begin() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(target_, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  void end() {
    if (server_) {
      server_->Shutdown(std::chrono::system_clock::now());
      server_->Wait();
      server_.reset();
    }
  }
  grpc::Status Session(grpc::ServerContext*, grpc::ServerReaderWriter<ToAgent, FromAgent>* stream) override {
    FromAgent message;
    while (stream->Read(&message)) {
      const std::lock_guard lock(mutex_);
      if (message.has_register_()) {
        stream_ = stream;
        ToAgent registered;
        registered.mutable_registered()->set_accepted(true);
        stream->Write(registered);
      }
      received_.push_back(message);
      changed_.notify_all();
    }
    const std::lock_guard lock(mutex_);
    if (stream_ == stream) {
      stream_ = nullptr;
    }
    return grpc::Status::OK;
  }
  void send(const ToAgent& message) {
    const std::lock_guard lock(mutex_);
    ASSERT_NE(stream_, nullptr);
    stream_->Write(message);
  }
  /// Takes the first message that fits, waiting for it.
  std::optional<FromAgent> take(const std::function<bool(const FromAgent&)>& fits) {
    std::unique_lock lock(mutex_);
    const auto find = [&] { return std::ranges::find_if(received_, fits); };
    changed_.wait_for(lock, std::chrono::seconds(30), [&] { return find() != received_.end(); });
    const auto found = find();
    if (found == received_.end()) {
      return std::nullopt;
    }
    FromAgent message = *found;
    received_.erase(found);
    return message;
  }
  void forget() {
    const std::lock_guard lock(mutex_);
    received_.clear();
  }
  std::optional<FromAgent> reply(std::uint64_t id) {
    return take([&](const FromAgent& m) { return m.has_reply() && m.reply().id() == id; });
  }

 private:
  const std::string target_;
  std::unique_ptr<grpc::Server> server_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<FromAgent> received_;
  grpc::ServerReaderWriter<ToAgent, FromAgent>* stream_ = nullptr;
};

config::BridgeConfig config_in(const std::filesystem::path& dir, const std::filesystem::path& memory) {
  config::BridgeConfig config;
  config.host = "host-a";
  config.controlplane = "unix:" + (dir / "cp.sock").string();
  config.dataplane_socket = dir / "dp.sock";
  config.run_dir = dir / "run";
  config.state_dir = dir / "state";
  config.memory_dir_tmpfs = memory;
  return config;
}

config::VmDefinition small_vm() {
  config::VmDefinition definition;
  definition.name = "vm";
  definition.uuid = Id128::random();
  definition.machine = "pc";
  definition.accel = config::Accel::kTcg;
  definition.regions = {{"ram0", 32u << 20, config::Backing::kTmpfs}};
  definition.arguments = {"-nodefaults"};
  return definition;
}

TEST(Agent, RegistersAnswersAndComesBack) {
  constexpr const char* kQemu = "/usr/bin/qemu-system-x86_64";
  if (::access(kQemu, X_OK) != 0 || ::geteuid() != 0) {
    GTEST_SKIP() << "needs root and " << kQemu;
  }
  TempDir dir;
  TempDir memory("/dev/shm");
  FakeDataplane dataplane(dir.path() / "dp.sock");
  FakeControlPlane control("unix:" + (dir.path() / "cp.sock").string());
  const config::BridgeConfig config = config_in(dir.path(), memory.path());
  auto agent = Agent::start(config);
  ASSERT_TRUE(agent) << agent.error();
  const auto first = control.take([](const FromAgent& m) { return m.has_register_(); });
  ASSERT_TRUE(first);
  EXPECT_EQ(first->register_().host().name(), "host-a");
  EXPECT_TRUE(
      control.take([](const FromAgent& m) { return m.has_heartbeat() && m.heartbeat().host().dataplane_up(); }));

  ToAgent unknown;
  unknown.set_id(1);
  unknown.mutable_switch_()->set_migration_id(Id128::random().to_bytes());
  control.send(unknown);
  const auto refused = control.reply(1);
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->reply().error().code(), dataplane::v1::Error::NO_SUCH_VM);

  const config::VmDefinition definition = small_vm();
  ToAgent start;
  start.set_id(2);
  *start.mutable_start_vm()->mutable_definition() = to_proto(definition);
  start.mutable_start_vm()->set_image_id(Id128::random().to_bytes());
  start.mutable_start_vm()->set_ownership(1);
  control.send(start);
  const auto started = control.reply(2);
  ASSERT_TRUE(started);
  ASSERT_FALSE(started->reply().has_error()) << started->reply().error().text();
  const auto process = identify(started->reply().vm_started().pid());
  ASSERT_TRUE(process);
  const OwnedQemu owned(*process);

  control.forget();
  control.end();
  control.begin();
  const auto again = control.take([](const FromAgent& m) { return m.has_register_(); });
  ASSERT_TRUE(again);
  ASSERT_EQ(again->register_().vms_size(), 1);
  EXPECT_EQ(again->register_().vms(0).run_state(), "running");

  // The bridge ends and starts again: QEMU lives on and is taken over.
  agent->reset();
  EXPECT_TRUE(is_alive(*process));
  control.forget();
  *agent = std::move(*Agent::start(config));
  ASSERT_TRUE(control.take([](const FromAgent& m) { return m.has_register_(); }));
  EXPECT_TRUE(control.take([&](const FromAgent& m) {
    return m.has_heartbeat() && m.heartbeat().vms_size() == 1 && m.heartbeat().vms(0).pid() == process->pid &&
           m.heartbeat().vms(0).run_state() == "running";
  }));
  ToAgent stop;
  stop.set_id(3);
  stop.mutable_stop_vm()->set_uuid(definition.uuid.to_bytes());
  stop.mutable_stop_vm()->set_ownership(1);
  control.send(stop);
  const auto stopped = control.reply(3);
  ASSERT_TRUE(stopped);
  EXPECT_FALSE(stopped->reply().has_error()) << stopped->reply().error().text();
  EXPECT_FALSE(is_alive(*process));
  EXPECT_TRUE(std::filesystem::is_empty(memory.path()));
}

TEST(Agent, WhatAGuestElsewhereNeedsIsNeitherForgottenNorDropped) {
  TempDir dir;
  TempDir memory("/dev/shm");
  FakeDataplane dataplane(dir.path() / "dp.sock");
  FakeControlPlane control("unix:" + (dir.path() / "cp.sock").string());
  const config::BridgeConfig config = config_in(dir.path(), memory.path());
  VmRecord record;
  record.definition = small_vm();
  record.image_id = Id128::random();
  record.ownership = 1;
  record.ours = true;
  record.migration = MigrationRecord{Id128::random(), MigrationRole::kSource, MigrationPhase::kPulling, 2, true};
  Journal journal(config.state_dir);
  ASSERT_TRUE(journal.load());
  ASSERT_TRUE(journal.save(record));
  const auto ram = memory.path() / (record.definition.uuid.text() + ".ram0.ram");
  std::ofstream(ram) << "memory";
  auto agent = Agent::start(config);
  ASSERT_TRUE(agent) << agent.error();
  const auto told = control.take([](const FromAgent& m) {
    return m.has_heartbeat() && m.heartbeat().vms_size() == 1 && m.heartbeat().vms(0).has_paging();
  });
  ASSERT_TRUE(told);
  EXPECT_EQ(told->heartbeat().vms(0).run_state(), "serving");
  EXPECT_EQ(told->heartbeat().vms(0).role(), dataplane::v1::ROLE_SOURCE);
  EXPECT_FALSE(told->heartbeat().vms(0).paging().connected());

  ToAgent drop;
  drop.set_id(1);
  drop.mutable_drop_image()->mutable_id()->set_vm_uuid(record.definition.uuid.to_bytes());
  drop.mutable_drop_image()->mutable_id()->set_image_id(record.image_id.to_bytes());
  control.send(drop);
  const auto refused = control.reply(1);
  ASSERT_TRUE(refused);
  EXPECT_NE(refused->reply().error().text().find("still needs pages of this image"), std::string::npos);
  EXPECT_EQ(dataplane.count(dataplane::v1::ToDataplane::kDropImage), 0);

  ToAgent over;
  over.set_id(2);
  over.mutable_outcome()->set_migration_id(record.migration->id.to_bytes());
  over.mutable_outcome()->set_state(controlplane::v1::INCOMPLETE);
  over.mutable_outcome()->set_ownership(2);
  EXPECT_TRUE(std::filesystem::exists(ram));
  control.send(over);
  const auto done = control.reply(2);
  ASSERT_TRUE(done);
  EXPECT_FALSE(done->reply().has_error()) << done->reply().error().text();
  EXPECT_FALSE(std::filesystem::exists(ram));
  EXPECT_TRUE(journal.load()->records.empty());
}

}  // namespace
}  // namespace godwit::bridge
