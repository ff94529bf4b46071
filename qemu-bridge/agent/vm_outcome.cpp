// Vm's part in migrations once the store has decided: brought into effect until it is. What comes after PULLING is in
// vm_pull.cpp.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "qemu-bridge/agent/vm.h"

namespace godwit::bridge {

using controlplane::v1::AgentReply;
using controlplane::v1::MigrationEvent;

constexpr std::chrono::milliseconds kConnectTime{3'000};

AgentResult Vm::do_outcome(const controlplane::v1::Outcome& outcome) {
  if (!record_.migration || record_.migration->id.to_bytes() != outcome.migration_id()) {
    return std::unexpected(make_error(Error::NO_SUCH_MIGRATION, "Outcome: this migration is not under way here"));
  }
  if (outcome.state() != controlplane::v1::COMMITTED && outcome.state() != controlplane::v1::ABORTED &&
      outcome.state() != controlplane::v1::PULLING && outcome.state() != controlplane::v1::INCOMPLETE) {
    return AgentReply();  // not decided: stay as we are, and ask again
  }
  decided_ = outcome;
  in_doubt_ = false;
  if (!qmp_ && retires() && record_.process.pid > 0) {
    static_cast<void>(connect_monitor(kConnectTime));  // with a monitor it keeps its image
  }
  return settle();
}

/// Brings what is decided into effect; what fails is tried again each second, whether the store can be reached or not.
AgentResult Vm::settle() {
  const auto not_yet = [](const std::string& why) {
    return std::unexpected(make_error(Error::INTERNAL, "Outcome: not in effect yet, tried again each second: " + why));
  };
  const std::uint64_t ownership = std::max(decided_->ownership(), record_.ownership);
  if (pull_ || decided_->state() == controlplane::v1::PULLING || decided_->state() == controlplane::v1::INCOMPLETE) {
    auto settled = settle_pulling(ownership);
    if (!settled) {
      return not_yet(settled.error().text());
    }
    decided_.reset();
    return settled;
  }
  const bool outlived = is_source() && record_.process.pid < 0;
  if (!qmp_ && !outlived && !retires()) {
    return not_yet("QEMU's monitor is not connected");
  }
  const bool committed = decided_->state() == controlplane::v1::COMMITTED;
  if (record_.migration->role == MigrationRole::kSource) {
    record_.migration->phase = committed ? MigrationPhase::kCommitted : MigrationPhase::kAborted;
    record_.migration->ownership_after = ownership;
    if (committed) {
      record_.split.reset();  // another host is its main host now
    }
    if (auto saved = save(); !saved && committed) {
      return std::unexpected(saved.error());  // the guest stays paused
    }
    settle_source(committed, ownership);
  } else {
    settle_destination(committed, ownership);
  }
  if (record_.migration && !over_) {
    return not_yet("the guest could not be continued");
  }
  decided_.reset();
  return AgentReply();
}

void Vm::take_decision_from_journal() {
  if (!record_.migration) {
    return;
  }
  const auto phase = record_.migration->phase;
  if (phase == MigrationPhase::kCommitted || phase == MigrationPhase::kAborted) {
    decided_.emplace().set_ownership(record_.migration->ownership_after);
    decided_->set_state(phase == MigrationPhase::kCommitted ? controlplane::v1::COMMITTED : controlplane::v1::ABORTED);
  }
}

/// This host is the source, and the guest is another's: nothing of this QEMU is needed any more.
bool Vm::retires() const {
  return decided_ && decided_->state() == controlplane::v1::COMMITTED && record_.migration &&
         record_.migration->role == MigrationRole::kSource;
}

void Vm::settle_source(bool committed, std::uint64_t ownership) {
  if (!qmp_ && record_.process.pid < 0) {
    return settle_without_qemu(committed, ownership);
  }
  if (!source_) {
    make_migration();
  }
  MigrationEvent event;
  if (committed) {
    watch_.reset();  // its end is our doing
    Retirement retirement =
        source_ ? source_->commit(ownership) : retire_without_monitor(record_, services_.dataplane, ownership);
    event = std::move(retirement.event);
    if (retirement.ram_files_unused) {
      remove_files();
    }
    over_ = true;
  } else {
    event = source_->abort(ownership);
    record_.ownership = ownership;
    if (event.kind() != MigrationEvent::BACK && is_alive(record_.process)) {
      // The guest stands still and is nowhere else: never given up, neither by us nor by the journal (kAborted).
      emit_failure(std::move(event), "tried again each second");
      return;
    }
  }
  drop_migration();
  record_.migration.reset();
  if (!over_) {
    static_cast<void>(save());
    reattach();
  } else {
    gone();
  }
  emit(std::move(event));
}

void Vm::settle_destination(bool committed, std::uint64_t ownership) {
  if (!destination_) {
    make_migration();
  }
  MigrationEvent event;
  if (committed) {
    event = destination_->commit(ownership, [&] {
      if (record_.split) {
        own_guest(ownership, MigrationPhase::kCommitted);
      }
    });
    if (destination_->resumed()) {
      record_.ownership = ownership;
      drop_migration();
      record_.migration.reset();
      static_cast<void>(save());
      reattach();
      emit(std::move(event));
      return;
    }
    if (is_alive(record_.process)) {
      // The only copy of the guest, and it may even run: a monitor that does not answer is no reason to end it.
      emit_failure(std::move(event), "committed here: tried again each second");
      return;
    }
    spdlog::error("VM {}: committed here, but {}", record_.definition.name, text_of(event.error()));
  } else {
    event = destination_->abort(ownership);
  }
  const bool unused = !committed && destination_->ram_files_unused();
  drop_migration();
  end_qemu();
  if (unused) {
    remove_files();
  }
  over_ = true;
  gone();
  emit(std::move(event));
}

}  // namespace godwit::bridge
