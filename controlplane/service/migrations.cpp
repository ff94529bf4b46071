#include "controlplane/service/migrations.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "config/units.h"

namespace godwit::controlplane {
namespace {

constexpr std::size_t kSecretBytes = 32;
constexpr const char* kTransferring = "transferring";
constexpr Duration kStoreRetry = milliseconds(1000);
// The source hears of a commit when the guest runs, or after this: until then the destination has the processors.
constexpr Duration kResumeWait = milliseconds(20);

}  // namespace

std::string draw_secret() {
  std::string secret(kSecretBytes, '\0');
  GW_ASSERT(getrandom(secret.data(), secret.size(), 0) == static_cast<ssize_t>(secret.size()));
  return secret;
}

Migrations::Migrations(Store& store, Hosts& hosts, Timers& timers, const config::TimeoutConfig& timeouts)
    : store_(store), hosts_(hosts), timers_(timers), timeouts_(timeouts) {}

std::expected<void, StoreError> Migrations::take_up_interrupted() {
  auto interrupted = store_.active_migrations();
  if (!interrupted) {
    return std::unexpected(interrupted.error());
  }
  for (MigrationRecord& record : *interrupted) {
    const api::MigrationState was = record.state;
    if (was == api::PULLING) {
      take_up(std::move(record));
      continue;
    }
    record.reason = fmt::format("the control plane was restarted in {}", api::MigrationState_Name(was));
    record.ended_unix_us = unix_us_now();
    if (auto won = store_.transition(record, was, api::ABORTED); !won) {
      return std::unexpected(won.error());
    }
    spdlog::warn("migration {} of VM {} aborted: {}", record.id.text(), record.vm_name, record.reason);
  }
  return {};
}

void Migrations::freeze() {
  frozen_ = true;
  for (auto& [id, m] : active_) {
    timers_.cancel(m->timer);
    timers_.cancel(m->absence_timer);
    timers_.cancel(m->resume_timer);
    timers_.cancel(m->source_timer);
  }
  active_.clear();
}

std::expected<Id128, StoreError> Migrations::begin(const api::Plan& plan, const VmRecord& vm, bool held) {
  if (frozen_) {
    return std::unexpected(StoreError{StoreError::Code::kForbidden, "the control plane is ending"});
  }
  const Id128 id = Id128::random();
  auto record = store_.begin_migration({.id = id,
                                        .vm_uuid = vm.uuid,
                                        .ownership_seen = vm.ownership,
                                        .plan = plan,
                                        .destination = plan.destination(),
                                        .created_unix_us = unix_us_now()});
  if (!record) {
    return std::unexpected(record.error());
  }
  auto& m = *active_.emplace(id, std::make_unique<Active>()).first->second;
  m.record = std::move(*record);
  m.definition = vm.definition;
  m.record.tracker = vm.tracker;
  spdlog::info("migration {}: VM {} from {} to {}", id.text(), vm.name, vm.host, plan.destination());
  if (held) {
    m.step = Step::kHeld;
  } else {
    prepare_source(m);
  }
  return id;
}

std::vector<Migrations::Held> Migrations::all_held() const {
  std::vector<Held> held;
  for (const auto& [id, m] : active_) {
    if (m->step == Step::kHeld) {
      held.push_back({id, m->record.vm_uuid, m->record.plan});
    }
  }
  return held;
}

void Migrations::waits_for(const Id128& id, const std::string& what) {
  Active* m = find(id);
  if (m != nullptr && m->step == Step::kHeld && m->note != what) {
    m->note = what;
    notify(*m);
  }
}

std::vector<Id128> Migrations::moving_main_parts() const {
  std::vector<Id128> vms;
  for (const auto& [id, m] : active_) {
    if (m->step == Step::kTransferring && m->record.plan.keeps_stores()) {
      vms.push_back(m->record.vm_uuid);
    }
  }
  return vms;
}

void Migrations::held_up(const Id128& vm_uuid, const std::string& by) {
  const auto id = of_vm(vm_uuid);
  Active* m = id ? find(*id) : nullptr;
  const std::string note = by.empty() ? kTransferring : by;
  if (m != nullptr && m->step == Step::kTransferring && m->note != note) {
    m->note = note;
    notify(*m);
  }
}

void Migrations::go_on(const Id128& id) {
  if (Active* m = find(id); m != nullptr && m->step == Step::kHeld) {
    prepare_source(*m);
  }
}

std::expected<void, ServiceError> Migrations::cancel(const Id128& id, const std::string& reason) {
  if (Active* m = find(id); m != nullptr && !is_decided(m->record.state)) {
    decide(*m, api::ABORTED, reason);
    // A LOADED cannot have come between, but the store may have refused. One that was held has ended.
    if (const Active* now = find(id); now != nullptr && !is_decided(now->record.state)) {
      return std::unexpected(ServiceError{ServiceError::Code::kStore, "the store failed; it will be tried again"});
    }
    return {};
  }
  const auto record = store_.migration(id);
  if (!record) {
    return std::unexpected(ServiceError{ServiceError::Code::kStore, record.error().text});
  }
  if (!*record) {
    return std::unexpected(ServiceError{ServiceError::Code::kNotFound, fmt::format("no migration {}", id.text())});
  }
  return std::unexpected(ServiceError{
      ServiceError::Code::kNotNow,
      fmt::format("migration {} is {} already{}", id.text(), api::MigrationState_Name((*record)->state),
                  (*record)->state == api::PULLING
                      ? fmt::format(": the VM runs on {}, and there is no way back", (*record)->destination)
                      : "")});
}

// ---- the sequence ---------------------------------------------------------------------------------------------------

void Migrations::command(Active& m, const std::string& host, api::ToAgent message, Duration timeout, const char* doing,
                         std::function<void(Active&, const api::AgentReply&)> next) {
  (host == m.record.source ? m.source : m.destination).told = true;
  notify(m);
  hosts_.request(host, std::move(message), timeout,
                 [this, id = m.record.id, step = m.step, doing, next = std::move(next)](const auto& answer) {
                   Active* now = find(id);
                   if (now == nullptr || now->step != step) {
                     return;  // decided meanwhile
                   }
                   if (!answer) {
                     decide(*now, api::ABORTED, fmt::format("{} failed: {}", doing, answer.error().text));
                     return;
                   }
                   next(*now, *answer);
                 });
}

void Migrations::prepare_source(Active& m) {
  m.step = Step::kPreparingSource;
  m.note = fmt::format("preparing {}{}", m.record.source,
                       m.record.plan.keeps_stores() ? "; its main part moves, its sub hosts keep the rest" : "");
  api::ToAgent message;
  auto& prepare = *message.mutable_prepare_source();
  prepare.set_migration_id(m.record.id.to_bytes());
  prepare.set_vm_uuid(m.record.vm_uuid.to_bytes());
  prepare.set_ownership(m.record.ownership_before);
  prepare.set_epoch_base(m.record.epoch_base);
  prepare.set_epoch_count(m.record.epoch_count);
  prepare.set_encryption(m.record.plan.encryption());
  prepare.set_mode(mode_of(m.record.plan));
  prepare.set_keeps_stores(m.record.plan.keeps_stores());
  command(m, m.record.source, std::move(message), timeouts_.prepare, "preparing the source",
          [this](Active& now, const api::AgentReply& reply) {
            now.source_prepared = reply.source_prepared();
            prepare_destination(now);
          });
}

void Migrations::prepare_destination(Active& m) {
  const api::SourcePrepared& source = m.source_prepared;
  if (source.image_id() != m.record.image_id.to_bytes()) {
    decide(m, api::ABORTED,
           fmt::format("{} runs another boot of VM \"{}\" than the store knows: attach it anew", m.record.source,
                       m.record.vm_name));
    return;
  }
  if (source.definition().uuid() != m.record.vm_uuid.to_bytes() || source.bytes_total() == 0) {
    decide(m, api::ABORTED, fmt::format("{} sent no proper definition of the VM", m.record.source));
    return;
  }
  m.definition = source.definition();
  m.source_endpoint = source.endpoint();
  m.record.tracker = source.tracker();
  m.record.tracker_reason = printable(source.tracker_reason());
  const Hosts::Host* host = hosts_.find(m.record.destination);
  const auto reuse = decide_reuse({m.record.plan, m.record.vm_uuid, m.record.image_id, source.bytes_total()},
                                  host == nullptr ? std::span<const dpapi::Image>() : host->view.images);
  m.record.reuse_reason = reuse.reason;
  m.planned_image = reuse.image_id;
  m.step = Step::kPreparingDestination;
  m.note = fmt::format("preparing {}; reuse: {}", m.record.destination, reuse.reason);
  api::ToAgent message;
  auto& prepare = *message.mutable_prepare_destination();
  prepare.set_migration_id(m.record.id.to_bytes());
  *prepare.mutable_definition() = m.definition;
  prepare.set_ownership(m.record.ownership_before);
  prepare.set_epoch_base(m.record.epoch_base);
  prepare.set_epoch_count(m.record.epoch_count);
  prepare.set_image_id(m.record.image_id.to_bytes());
  prepare.set_reuse(reuse.reuse);
  prepare.set_source_machine_type(source.machine_type());
  prepare.set_source_qemu_version(source.qemu_version());
  prepare.set_bytes_total(source.bytes_total());
  prepare.set_encryption(m.record.plan.encryption());
  prepare.set_mode(mode_of(m.record.plan));
  if (m.record.plan.keeps_stores()) {
    auto split = main_part_.split_there(m.record);
    if (!split) {
      decide(m, api::ABORTED, fmt::format("VM \"{}\" is not split any more", m.record.vm_name));
      return;
    }
    *prepare.mutable_split() = std::move(*split);
  }
  const auto vm = store_.vm(m.record.vm_uuid);
  prepare.set_tracker(vm && *vm ? (*vm)->tracker : dpapi::TRACKER_AUTO);
  command(
      m, m.record.destination, std::move(message), timeouts_.prepare, "preparing the destination",
      [this](Active& now, const api::AgentReply& reply) { destination_prepared(now, reply.destination_prepared()); });
}

void Migrations::destination_prepared(Active& m, const api::DestinationPrepared& prepared) {
  m.destination_endpoint = prepared.endpoint();
  m.record.reused = !m.planned_image.empty() && prepared.image_accepted();
  if (!m.planned_image.empty() && !prepared.image_accepted()) {
    m.record.reuse_reason =
        fmt::format("none: {} refused its image: {}", m.record.destination, printable(prepared.image_reason()));
  }
  if (m.record.plan.reuse() == api::REUSE_REQUIRE && !m.record.reused) {
    decide(m, api::ABORTED, fmt::format("the plan requires reuse; {}", m.record.reuse_reason));
    return;
  }
  if (advance(m, api::TRANSFERRING)) {
    start_destination(m);
  }
}

void Migrations::start_destination(Active& m) {
  m.step = Step::kStartingDestination;
  m.note = fmt::format("starting; reuse: {}", m.record.reuse_reason);
  m.secret = draw_secret();
  api::ToAgent message;
  auto& start = *message.mutable_start_transfer();
  start.set_migration_id(m.record.id.to_bytes());
  *start.mutable_peer() = m.source_endpoint;
  start.set_secret(m.secret);
  command(m, m.record.destination, std::move(message), timeouts_.prepare, "starting the destination",
          [this](Active& now, const api::AgentReply&) { start_source(now); });
}

void Migrations::start_source(Active& m) {
  m.step = Step::kStartingSource;
  api::ToAgent message;
  auto& start = *message.mutable_start_transfer();
  start.set_migration_id(m.record.id.to_bytes());
  *start.mutable_peer() = m.destination_endpoint;
  start.set_secret(std::exchange(m.secret, {}));
  *start.mutable_policy() = policy_of(m.record.plan);
  command(m, m.record.source, std::move(message), timeouts_.prepare, "starting the source",
          [this](Active& now, const api::AgentReply&) {
            now.step = Step::kTransferring;
            now.note = kTransferring;
            notify(now);
          });
}

void Migrations::switch_over(Active& m) {
  if (!connected(m.record.destination) || !connected(m.record.source)) {
    m.ready = true;  // nobody could commit: the rounds go on until both are back
    return;
  }
  if (!advance(m, api::SWITCHING)) {
    return;
  }
  m.step = Step::kSwitching;
  m.note = "switching over";
  send_switch(m);
  arm(m, m.timer, timeouts_.switchover, [this](Active& now) {
    decide(now, api::ABORTED,
           fmt::format("the destination had not loaded the guest {} after the switch",
                       config::format_duration(timeouts_.switchover)));
  });
  notify(m);
}

void Migrations::send_switch(Active& m) {
  api::ToAgent message;
  message.mutable_switch_()->set_migration_id(m.record.id.to_bytes());
  hosts_.request(m.record.source, std::move(message), timeouts_.switchover,
                 [this, id = m.record.id](const auto& answer) {
                   Active* now = find(id);
                   const bool refused = !answer && answer.error().code != ServiceError::Code::kHostGone &&
                                        answer.error().code != ServiceError::Code::kTimeout;
                   if (now != nullptr && now->step == Step::kSwitching && refused) {
                     decide(*now, api::ABORTED, fmt::format("switching over failed: {}", answer.error().text));
                   }
                 });
}

// ---- transitions ----------------------------------------------------------------------------------------------------

bool Migrations::advance(Active& m, api::MigrationState next) {
  const auto won = store_.transition(m.record, m.record.state, next);
  if (won && *won) {
    m.record.state = next;
    spdlog::debug("migration {}: {}", m.record.id.text(), api::MigrationState_Name(next));
    return true;
  }
  decide(m, api::ABORTED, won ? "its state in the store was changed by someone else" : won.error().text);
  return false;
}

void Migrations::decide(Active& m, api::MigrationState outcome, const std::string& reason) {
  const bool was_decided = is_decided(m.record.state);
  if (is_terminal(m.record.state) || (was_decided && !may_follow(m.record.state, outcome))) {
    return;
  }
  MigrationRecord record = m.record;
  record.reason = reason;
  record.ended_unix_us = is_terminal(outcome) ? unix_us_now() : 0;
  // A side that never heard of the migration has nothing to confirm.
  record.source_settled = !m.source.told;
  record.destination_settled = !m.destination.told;
  const auto won = store_.transition(record, m.record.state, outcome);
  if (won && *won) {
    m.record = std::move(record);
    m.record.state = outcome;
    announce(m);
    return;
  }
  if (won) {
    // Somebody else decided: the store's word counts.
    const auto stored = store_.migration(m.record.id);
    if (stored && *stored && is_decided((*stored)->state)) {
      m.record = **stored;
      announce(m);
      return;
    }
    // Not in the state expected and not decided either: ownership has moved, so this attempt cannot commit.
    if (stored && *stored) {
      m.record.state = (*stored)->state;
    }
  }
  // Undecided: nobody is told anything. A commit that failed is not repeated, as more time in doubt is more downtime.
  const std::string why = won ? "ownership of the VM had moved" : won.error().text;
  spdlog::error("migration {}: cannot store {}: {}", m.record.id.text(), api::MigrationState_Name(outcome), why);
  if (was_decided) {
    arm(m, m.timer, kStoreRetry, [this, outcome, reason](Active& now) { decide(now, outcome, reason); });
    return;
  }
  const std::string next_reason = outcome == api::ABORTED ? reason : why;
  m.step = Step::kSettling;
  arm(m, m.timer, kStoreRetry, [this, next_reason](Active& now) { decide(now, api::ABORTED, next_reason); });
}

void Migrations::announce(Active& m) {
  const bool pulling = m.record.state == api::PULLING;
  m.step = pulling ? Step::kPulling : Step::kSettling;
  m.source.replied = m.destination.replied = false;
  // The guest stands still until the destination hears of a commit, or the source of an abort.
  const bool committed = is_committed(m.record.state);
  tell_outcome(m.record, !committed);
  if (committed && !m.pulled) {
    arm(m, m.source_timer, kResumeWait, [this](Active& now) { tell_source(now); });
  } else {
    tell_outcome(m.record, committed);
  }
  if (committed && !m.pulled && m.record.plan.keeps_stores()) {
    main_part_.moved(m.record);
  }
  timers_.cancel(m.absence_timer);
  timers_.cancel(m.timer);
  m.note = pulling ? pull_note(m) : committed ? "committed" : "aborted";
  spdlog::info("migration {} of VM {}: {}{}{}", m.record.id.text(), m.record.vm_name,
               api::MigrationState_Name(m.record.state), m.record.reason.empty() ? "" : ": ", m.record.reason);
  timers_.cancel(m.resume_timer);
  if (pulling) {
    m.pulled = true;
    notify(m);
    return;
  }
  arm(m, m.timer, timeouts_.cancel, [this](Active& now) {
    now.record.source_settled |= now.source.replied;
    now.record.destination_settled |= now.destination.replied;
    if (!now.record.source_settled) {
      now.note = fmt::format("{} has not confirmed; it will be told again when it registers", now.record.source);
    } else if (!now.record.destination_settled) {
      now.note = fmt::format("{} has not confirmed; it will be told again when it registers", now.record.destination);
    }
    end(now);
  });
  notify(m);
  end_if_settled(m);
}

void Migrations::tell_source(Active& m) {
  timers_.cancel(m.source_timer);
  tell_outcome(m.record, true);
}

void Migrations::tell_outcome(const MigrationRecord& record, bool source) {
  const std::string& host = source ? record.source : record.destination;
  if ((source ? record.source_settled : record.destination_settled) || !connected(host)) {
    return;
  }
  api::ToAgent message;
  *message.mutable_outcome() = outcome_of(record);
  hosts_.request(host, std::move(message), timeouts_.cancel,
                 [this, id = record.id, source](const auto& answer) { outcome_answered(id, source, answer); });
}

void Migrations::outcome_answered(const Id128& id, bool source,
                                  const std::expected<api::AgentReply, ServiceError>& answer) {
  Active* m = find(id);
  if (answer) {
    // After a commit the events RESUMED and RETIRED follow, with their times; at the end of a pull they have been told.
    if (m != nullptr && is_committed(m->record.state) && !(m->pulled && is_terminal(m->record.state))) {
      Side& side = source ? m->source : m->destination;
      side.replied = true;
      if (!side.failed) {
        return;
      }
    }
    settle(id, source, {});
    return;
  }
  if (answer.error().code == ServiceError::Code::kNotFound) {
    spdlog::warn("migration {}: {}", id.text(), answer.error().text);
    settle(id, source, answer.error().text);
    return;
  }
  spdlog::warn("migration {}: outcome not confirmed: {}", id.text(), answer.error().text);
  if (m != nullptr) {
    m->note = answer.error().text;
    notify(*m);
  }
}

void Migrations::settle(const Id128& id, bool source, const std::string& note) {
  if (Active* m = find(id)) {
    (source ? m->record.source_settled : m->record.destination_settled) = true;
    if (!note.empty()) {
      m->note = note;
    }
    if (!(source ? m->source : m->destination).failed) {
      update_view(m->record, source);
    }
    end_if_settled(*m);
    return;
  }
  if (auto stored = store_.migration(id); stored && *stored && is_terminal((*stored)->state)) {
    (source ? (*stored)->source_settled : (*stored)->destination_settled) = true;
    update_view(**stored, source);
    (void)store_.save_details(**stored);  // not stored: the host is only told once more
  }
}

/// The host's next report may still be on its way, and an operator may plan at once.
void Migrations::update_view(const MigrationRecord& record, bool source) {
  Hosts::Host* host = hosts_.find(source ? record.source : record.destination);
  if (host == nullptr) {
    return;
  }
  const auto of_this = [&](const api::RunningVm& vm) {
    return vm.uuid() == record.vm_uuid.to_bytes() && vm.migration_id() == record.id.to_bytes();
  };
  if (record.state == api::PULLING) {
    return;  // both sides keep a part of it; they report it themselves
  }
  const bool runs_here = source == (record.state == api::ABORTED) && record.state != api::INCOMPLETE;
  if (!runs_here) {
    std::erase_if(host->view.vms, of_this);
    return;
  }
  for (api::RunningVm& vm : host->view.vms) {
    if (of_this(vm)) {
      vm.clear_migration_id();
      vm.clear_role();
      vm.set_ownership(record.ownership_after());
      vm.set_run_state("running");
    }
  }
}

void Migrations::end_if_settled(Active& m) {
  if (is_terminal(m.record.state) && m.record.source_settled && m.record.destination_settled) {
    end(m);
    return;
  }
  if (m.record.state == api::PULLING) {
    m.note = pull_note(m);
    if (auto saved = store_.save_details(m.record); !saved) {
      spdlog::warn("migration {}: {}", m.record.id.text(), saved.error().text);  // told once more after a restart
    }
  }
  notify(m);
}

void Migrations::end(Active& m) {
  if (auto saved = store_.save_details(m.record); !saved) {
    spdlog::error("migration {}: {}", m.record.id.text(), saved.error().text);
  }
  ended_.add(m.record);
  timers_.cancel(m.timer);
  timers_.cancel(m.absence_timer);
  timers_.cancel(m.resume_timer);
  timers_.cancel(m.source_timer);
  api::Migration last = to_api(m.record);
  last.set_note(m.note);
  for (const auto& watcher : m.watchers) {
    watcher->update(last);
  }
  active_.erase(Id128(m.record.id));
}

void Migrations::notify(Active& m) {
  if (m.watchers.empty()) {
    return;
  }
  const api::Migration now = shown(m);
  for (const auto& watcher : m.watchers) {
    watcher->update(now);
  }
}

Migrations::Active* Migrations::find(const Id128& id) {
  const auto found = active_.find(id);
  return found == active_.end() ? nullptr : found->second.get();
}

bool Migrations::connected(const std::string& host) const {
  const Hosts::Host* found = hosts_.find(host);
  return found != nullptr && found->session != 0;
}

void Migrations::arm(Active& m, Timers::Id& timer, Duration after, std::function<void(Active&)> function) {
  timers_.cancel(timer);
  timer = timers_.schedule(after, [this, id = m.record.id, function = std::move(function)] {
    if (Active* now = find(id)) {
      function(*now);
    }
  });
}

}  // namespace godwit::controlplane
