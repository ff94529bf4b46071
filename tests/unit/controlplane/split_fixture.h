#pragma once
// The cluster of the tests of split VMs: a third fake agent, what each reports of its part, and a VM that is split over
// host-a and host-b. One test's; its thread only.

#include <set>

#include "tests/unit/controlplane/service_fixture.h"

namespace godwit::controlplane::testing {

inline constexpr std::uint64_t kMiB = 1 << 20;
inline constexpr std::uint64_t kBudget = 32 * kMiB;

class SplitTest : public ServiceTest {
 protected:
  void SetUp() override {
    Cluster::SetUp();
    main_ = a_.get();
    c_ = std::make_unique<FakeAgent>(config_.listen[0], "host-c");
    for (FakeAgent* sub : {b_.get(), c_.get()}) {
      sub->info.set_memory_lend_bytes(256 * kMiB);
      sub->info.set_postcopy(true);
    }
  }
  void TearDown() override {
    c_.reset();
    Cluster::TearDown();
  }
  void connect_all() {
    c_->connect();
    connect_and_start_vm();
  }

  static api::SplitVmRequest order(std::uint64_t budget, const std::vector<std::string>& subs) {
    api::SplitVmRequest request;
    request.set_vm("demo");
    request.set_budget_bytes(budget);
    for (const auto& sub : subs) {
      request.add_sub_hosts(sub);
    }
    return request;
  }
  auto split(std::uint64_t budget, const std::vector<std::string>& subs) {
    return call(&api::Operators::Stub::SplitVm, order(budget, subs));
  }
  std::string refused(std::uint64_t budget, const std::vector<std::string>& subs) {
    const grpc::Status status = split(budget, subs).get().first;
    EXPECT_FALSE(status.ok());
    return status.error_message();
  }

  /// The main host's part, as its bridge reports it.
  api::RunningVm main_part(bool connected, std::uint64_t budget = kBudget, bool gathering = false) const {
    api::RunningVm vm;
    vm.set_uuid(uuid_.to_bytes());
    vm.set_name("demo");
    vm.set_run_state("running");
    vm.set_ownership(ownership_);
    auto& status = *vm.mutable_split();
    status.set_budget_bytes(budget);
    status.set_pages_total(kVmBytes / 4096);
    status.set_resident_bytes(resident_);
    status.set_gathering(gathering);
    for (const auto& [id, number] : stores_) {
      auto& sub = *status.add_subs();
      sub.set_store_id(id);
      sub.set_sub(number);
      sub.set_connected(connected);
      sub.set_reason(connected ? "" : "the flow died");
      sub.set_pages_held(drained_.contains(id) ? 0 : 100);
      sub.set_draining(draining_.contains(id));
      sub.set_drained(drained_.contains(id));
    }
    return vm;
  }
  /// So from now on.
  void main_reports(bool connected, std::uint64_t budget = kBudget, bool gathering = false) {
    main_->set_vms({main_part(connected, budget, gathering)});
    main_->report();
  }
  static void sub_reports(FakeAgent& sub, const std::string& id, bool connected) {
    api::HeldStore store;
    store.mutable_status()->set_store_id(id);
    store.mutable_status()->set_connected(connected);
    sub.set_stores({store});
    sub.report();
  }
  static api::AgentReply at(const char* address) {
    api::AgentReply reply;
    reply.mutable_flow_prepared()->mutable_endpoint()->set_address(address);
    return reply;
  }

  /// Plays one connection; returns its secret.
  std::string expect_flow(FakeAgent& sub, bool create) {
    const Agent prepare = sub.expect(Agent::kPrepareStore);
    const std::string id = prepare.prepare_store().store_id();
    EXPECT_EQ(prepare.prepare_store().create(), create);
    sub.reply(prepare, at("10.0.0.2"));
    EXPECT_EQ(prepare.prepare_store().main_host(), main_->info.name());
    EXPECT_EQ(prepare.prepare_store().ownership(), ownership_);
    const Agent at_main = main_->expect(Agent::kPrepareSub);
    EXPECT_EQ(at_main.prepare_sub().store_id(), id);
    EXPECT_EQ(sub.unread(), 0U);
    main_->reply(at_main, at("10.0.0.1"));
    const Agent start = sub.expect(Agent::kStartStore);
    EXPECT_EQ(start.start_store().peer().address(), "10.0.0.1");
    EXPECT_EQ(start.start_store().secret().size(), 32U);
    EXPECT_EQ(main_->unread(), 0U) << "sub host first";
    sub.reply(start);
    const Agent start_main = main_->expect(Agent::kStartSub);
    EXPECT_EQ(start_main.start_sub().peer().address(), "10.0.0.2");
    EXPECT_EQ(start_main.start_sub().secret(), start.start_store().secret());
    sub_reports(sub, id, true);
    main_reports(true);
    main_->reply(start_main);
    return start.start_store().secret();
  }

  /// The VM is split over host-a and host-b, and connected.
  void split_over_b() {
    connect_all();
    auto answer = split(kBudget, {"host-b"});
    const Agent prepare = b_->expect(Agent::kPrepareStore);
    EXPECT_TRUE(prepare.prepare_store().create());
    EXPECT_GE(prepare.prepare_store().bytes_lent(), kVmBytes - kBudget);
    EXPECT_EQ(prepare.prepare_store().pages(), kVmBytes / 4096);
    EXPECT_EQ(a_->unread(), 0U) << "the sub host has not agreed yet";
    store_ = prepare.prepare_store().store_id();
    stores_[store_] = 0;
    b_->reply(prepare, at("10.0.0.2"));
    const Agent begin = a_->expect(Agent::kSplitGuest);
    EXPECT_EQ(begin.split_guest().budget_bytes(), kBudget);
    EXPECT_EQ(begin.split_guest().subs_size(), 1);
    EXPECT_EQ(begin.split_guest().subs(0).store_id(), store_);
    main_reports(false);
    a_->reply(begin);
    const auto [status, response] = answer.get();
    ASSERT_TRUE(status.ok()) << status.error_message();
    first_secret_ = expect_flow(*b_, true);
    wait_for([](const api::Split& shown) { return shown.subs(0).state() == api::PAGE_STORE_CONNECTED; });
  }
  /// Until the operator is shown that.
  template <typename Wanted>
  api::Split wait_for(Wanted wanted) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    api::Split shown = vm().split();
    while (!(shown.subs_size() > 0 && wanted(shown)) && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // tidy-allow(sleep): polls a bounded wait
      shown = vm().split();
    }
    EXPECT_TRUE(shown.subs_size() > 0 && wanted(shown)) << shown.ShortDebugString();
    return shown;
  }
  void expect_dropped(FakeAgent& sub) {
    const Agent drop = sub.expect(Agent::kDropStore);
    EXPECT_EQ(drop.drop_store().store_id(), store_);
    sub.set_stores({});
    sub.report();
    sub.reply(drop);
  }
  void stop_vm() {
    api::StopVmRequest request;
    request.set_vm("demo");
    auto stopped = call(&api::Operators::Stub::StopVm, request);
    const Agent stop = a_->expect(Agent::kStopVm);
    a_->set_vms({});
    a_->report();
    a_->reply(stop);
    EXPECT_TRUE(stopped.get().first.ok());
  }
  void restart_all() {
    c_->disconnect();
    restart();
    for (FakeAgent* agent : {a_.get(), b_.get(), c_.get()}) {
      agent->connect();
    }
  }

  std::unique_ptr<FakeAgent> c_;
  FakeAgent* main_ = nullptr;  // host-a, until another one is the main host
  std::uint64_t ownership_ = 1, resident_ = kBudget;
  std::string store_, first_secret_;
  std::map<std::string, std::uint32_t> stores_;
  std::set<std::string> draining_, drained_;
};

}  // namespace godwit::controlplane::testing
