#pragma once
// A control plane with two fake agents and one VM on the first, over a unix socket in a directory of its own.

#include <filesystem>
#include <future>
#include <memory>
#include <string>

#include "controlplane/service/server.h"
#include "tests/unit/controlplane/fake_agent.h"

namespace godwit::controlplane::testing {

inline constexpr std::uint64_t kVmBytes = 64ULL << 20;

inline api::VmDefinition definition_of(const std::string& name, const Id128& uuid) {
  api::VmDefinition definition;
  definition.set_name(name);
  definition.set_uuid(uuid.to_bytes());
  definition.set_machine("q35");
  definition.set_vcpus(1);
  auto& region = *definition.add_regions();
  region.set_name("ram0");
  region.set_bytes(kVmBytes);
  region.set_backing("tmpfs");
  return definition;
}

class Cluster : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::temp_directory_path() / ("godwit-cp-" + Id128::random().text());
    std::filesystem::create_directory(directory_);
    config_.listen = {"unix:" + (directory_ / "cp.sock").string()};
    config_.database = directory_ / "cp.db";
    config_.timeouts.host_heartbeat = milliseconds(2000);
    start();
    a_ = std::make_unique<FakeAgent>(config_.listen[0], "host-a");
    b_ = std::make_unique<FakeAgent>(config_.listen[0], "host-b");
    operators_ = api::Operators::NewStub(grpc::CreateChannel(config_.listen[0], grpc::InsecureChannelCredentials()));
  }
  void TearDown() override {
    a_.reset();
    b_.reset();
    server_.reset();
    std::filesystem::remove_all(directory_);
  }

  void start() {
    auto server = Server::start(config_);
    ASSERT_TRUE(server.has_value()) << server.error();
    server_ = std::move(*server);
  }
  /// The control plane dies and comes back; the agents must connect() again.
  void restart() {
    server_.reset();
    a_->disconnect();
    b_->disconnect();
    start();
  }

  /// Calls an operator's method without blocking the test, which plays the agents.
  template <typename Request, typename Response>
  std::future<std::pair<grpc::Status, Response>> call(
      grpc::Status (api::Operators::Stub::*method)(grpc::ClientContext*, const Request&, Response*), Request request) {
    return std::async(std::launch::async, [this, method, request = std::move(request)] {
      grpc::ClientContext context;
      context.set_wait_for_ready(true);
      context.set_deadline(std::chrono::system_clock::now() + kPatience);
      Response response;
      const grpc::Status status = (operators_.get()->*method)(&context, request, &response);
      return std::pair(status, response);
    });
  }

  void connect_and_start_vm() {
    a_->connect();
    b_->connect();
    api::StartVmRequest request;
    request.set_host("host-a");
    *request.mutable_definition() = definition_of("demo", uuid_);
    auto started = call(&api::Operators::Stub::StartVm, request);
    const api::ToAgent command = a_->expect(api::ToAgent::kStartVm);
    image_id_ = command.start_vm().image_id();
    EXPECT_EQ(command.start_vm().ownership(), 1U);
    EXPECT_EQ(command.start_vm().epoch(), 1U);
    runs_at(*a_, {});
    a_->reply(command);
    const auto [status, response] = started.get();
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.vm().host(), "host-a");
  }

  /// The agent reports the VM, in this migration. It must be connected.
  void runs_at(FakeAgent& agent, const std::string& migration_id) {
    api::RunningVm vm;
    vm.set_uuid(uuid_.to_bytes());
    vm.set_name("demo");
    vm.set_run_state("running");
    vm.set_migration_id(migration_id);
    agent.set_vms({vm});
    agent.report();
  }

  std::pair<grpc::Status, std::string> migrate(const std::string& to, api::ReusePolicy reuse = api::REUSE_AUTO) {
    api::MigrateRequest request;
    request.mutable_plan()->set_vm("demo");
    request.mutable_plan()->set_destination(to);
    request.mutable_plan()->set_reuse(reuse);
    auto [status, response] = call(&api::Operators::Stub::Migrate, request).get();
    return {status, response.migration_id()};
  }

  api::AgentReply source_prepared() const {
    api::AgentReply reply;
    auto& prepared = *reply.mutable_source_prepared();
    *prepared.mutable_definition() = definition_of("demo", uuid_);
    prepared.set_image_id(image_id_);
    prepared.set_bytes_total(kVmBytes);
    prepared.mutable_endpoint()->set_address("10.0.0.1");
    prepared.set_tracker(dpapi::TRACKER_PAGEMAP_SCAN);
    return reply;
  }
  static api::AgentReply destination_prepared(bool accepted = false) {
    api::AgentReply reply;
    reply.mutable_destination_prepared()->mutable_endpoint()->set_address("10.0.0.2");
    reply.mutable_destination_prepared()->set_image_accepted(accepted);
    return reply;
  }

  api::Migration migration(const std::string& id) {
    const auto [status, response] = call(&api::Operators::Stub::ListMigrations, api::ListMigrationsRequest()).get();
    for (const auto& each : response.migrations()) {
      if (each.id() == id) {
        return each;
      }
    }
    ADD_FAILURE() << "no such migration listed";
    return {};
  }
  /// Watches until `wanted` holds or the stream ends.
  template <typename Wanted>
  api::Migration watch_until(const std::string& id, Wanted wanted) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    api::WatchMigrationRequest request;
    request.set_migration_id(id);
    const auto reader = operators_->WatchMigration(&context, request);
    api::Migration migration;
    while (reader->Read(&migration)) {
      if (wanted(migration)) {
        context.TryCancel();
        return migration;
      }
    }
    EXPECT_TRUE(wanted(migration)) << reader->Finish().error_message() << migration.ShortDebugString();
    return migration;
  }
  api::Migration watch_until_state(const std::string& id, api::MigrationState state) {
    return watch_until(id, [&](const auto& migration) { return migration.state() == state; });
  }
  api::Migration watch_to_end(const std::string& id) {
    return watch_until(id, [](const auto& migration) { return migration.ended(); });
  }
  api::Vm vm() {
    const auto [status, response] = call(&api::Operators::Stub::ListVms, api::ListVmsRequest()).get();
    EXPECT_EQ(response.vms_size(), 1);
    return response.vms_size() == 1 ? response.vms(0) : api::Vm();
  }

  config::ControlplaneConfig config_;
  std::filesystem::path directory_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<FakeAgent> a_, b_;
  std::unique_ptr<api::Operators::Stub> operators_;
  const Id128 uuid_ = Id128::random();
  std::string image_id_;
};

}  // namespace godwit::controlplane::testing
