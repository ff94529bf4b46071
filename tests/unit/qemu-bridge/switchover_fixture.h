#pragma once
// Two hosts and a guest that can move between them; each step of the control plane is a function. Needs root, QEMU and
// Debian's cloud kernel, and skips without them. Test thread.

#include <gtest/gtest.h>

#include "qemu-bridge/agent/definition.h"
#include "tests/unit/qemu-bridge/test_host.h"

namespace godwit::bridge {

class Switchover : public testing::Test {
 protected:
  void SetUp() override {
    if (::access("/usr/bin/qemu-system-x86_64", X_OK) != 0 || ::geteuid() != 0) {
      GTEST_SKIP() << "needs root and /usr/bin/qemu-system-x86_64";
    }
    std::string why;
    initramfs_ = make_initramfs(files_.path(), why);
    if (initramfs_.empty()) {
      GTEST_SKIP() << why;
    }
    source_.dataplane.set_peer(&destination_.dataplane);
  }

  VmRecord make_record() {
    VmRecord record;
    record.definition.name = "guest";
    record.definition.uuid = uuid_;
    record.definition.machine = "pc";
    record.definition.accel = config::Accel::kTcg;
    record.definition.vcpus = vcpus_;
    record.definition.regions = {{"ram0", 64u << 20, config::Backing::kTmpfs},
                                 {"ram1", 64u << 20, config::Backing::kTmpfs}};
    record.definition.arguments = {"-nodefaults",
                                   "-vga",
                                   "std",
                                   "-serial",
                                   "file:${run_dir}/serial.log",
                                   "-kernel",
                                   kernel_path(),
                                   "-initrd",
                                   initramfs_.string(),
                                   "-append",
                                   "console=ttyS0 quiet",
                                   "-device",
                                   "virtio-balloon-pci"};
    record.definition.arguments.insert(record.definition.arguments.end(), more_arguments_.begin(),
                                       more_arguments_.end());
    record.image_id = Id128::random();
    record.ownership = 5;
    record.epoch = 1;
    return record;
  }

  void boot() {
    auto vm = source_.make_vm(make_record());
    auto started = source_.run([&](Reply reply) { vm->start(std::move(reply)); });
    ASSERT_TRUE(started) << text_of(started.error());
    definition_ = started->vm_started().definition();
    ASSERT_TRUE(source_.wait_beat_after(uuid_, 3)) << "the guest does not boot";
  }

  /// Of the guest, over one page store, its number 3.
  [[nodiscard]] controlplane::v1::SplitGuest split_order(std::uint64_t ownership, std::uint64_t budget_bytes,
                                                         const Id128& store) const {
    controlplane::v1::SplitGuest command;
    command.set_vm_uuid(uuid_.to_bytes());
    command.set_ownership(ownership);
    command.set_budget_bytes(budget_bytes);
    auto& sub = *command.add_subs();
    sub.set_store_id(store.to_bytes());
    sub.set_number(3);
    sub.set_host("host-b");
    return command;
  }

  void prepare() {
    controlplane::v1::PrepareSource command;
    command.set_migration_id(migration_.to_bytes());
    command.set_vm_uuid(uuid_.to_bytes());
    command.set_ownership(5);
    command.set_mode(mode_);
    command.set_keeps_stores(kept_.has_value());
    auto prepared = source_.run([&](Reply reply) { source_.present()->prepare_source(command, std::move(reply)); });
    ASSERT_TRUE(prepared) << text_of(prepared.error());
    const auto& from = prepared->source_prepared();
    auto record = make_record();
    record.definition = definition_of(from.definition()).value();
    record.migration = MigrationRecord{migration_, MigrationRole::kDestination, MigrationPhase::kPreparing, 0};
    controlplane::v1::PrepareDestination there;
    there.set_migration_id(migration_.to_bytes());
    *there.mutable_definition() = from.definition();
    there.set_ownership(5);
    there.set_reuse(true);
    there.set_bytes_total(from.bytes_total());
    there.set_source_machine_type(from.machine_type());
    there.set_mode(mode_);
    there.set_epoch_base(4711);
    if (kept_) {
      *there.mutable_split() = *kept_;
    }
    auto vm = destination_.make_vm(record);
    auto arrived = destination_.run([&](Reply reply) { vm->prepare_destination(there, std::move(reply)); });
    ASSERT_TRUE(arrived) << text_of(arrived.error());
    for (TestHost* host : {&destination_, &source_}) {
      auto begun = host->run([&](Reply reply) { host->present()->start_transfer({}, std::move(reply)); });
      ASSERT_TRUE(begun) << text_of(begun.error());
    }
  }

  void switch_over() {
    auto switched = source_.run([&](Reply reply) { source_.present()->switch_over(std::move(reply)); });
    ASSERT_TRUE(switched) << text_of(switched.error());
  }

  AgentResult tell(TestHost& host, controlplane::v1::MigrationState state) {
    controlplane::v1::Outcome outcome;
    outcome.set_migration_id(migration_.to_bytes());
    outcome.set_state(state);
    outcome.set_ownership(6);
    return host.run([&](Reply reply) { host.present()->outcome(outcome, std::move(reply)); });
  }

  std::vector<std::string> more_arguments_;
  std::uint32_t vcpus_ = 1;
  dataplane::v1::Mode mode_ = dataplane::v1::PRECOPY;
  std::optional<controlplane::v1::SplitGuest> kept_;  // the main part alone moves; what the destination is told
  TempDir files_;
  std::filesystem::path initramfs_;
  const Id128 uuid_ = Id128::random();
  const Id128 migration_ = Id128::random();
  controlplane::v1::VmDefinition definition_;
  TestHost source_;
  TestHost destination_;
};

}  // namespace godwit::bridge
