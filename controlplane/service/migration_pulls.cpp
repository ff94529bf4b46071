// Migrations, fourth part: while the destination runs the guest and pages are missing there.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/log.h"
#include "config/units.h"
#include "controlplane/service/migrations.h"

namespace godwit::controlplane {
namespace {

// Longer than an agent's heartbeat: by then each side has told how it stands after the last attempt.
constexpr Duration kResumePauseMin = milliseconds(1500);
constexpr Duration kResumePauseMax = milliseconds(15'000);

std::unexpected<ServiceError> refused(ServiceError::Code code, std::string text) {
  return std::unexpected(ServiceError{code, std::move(text)});
}

}  // namespace

std::string missing_text(const MigrationRecord& record) {
  return config::format_pages(record.destination_stats.paging().pages_missing());
}

void Migrations::switch_to_postcopy(const Id128& id, Done done) {
  Active* m = find(id);
  if (m == nullptr) {
    return done(refused(ServiceError::Code::kNotFound, fmt::format("no migration {} is under way", id.text())));
  }
  if (mode_of(m->record.plan) == dpapi::PRECOPY) {
    return done(
        refused(ServiceError::Code::kInvalid,
                fmt::format("migration {} is of mode precopy: its destination was not prepared for missing pages; "
                            "plan mode hybrid, or on_no_convergence postcopy",
                            id.text())));
  }
  if (m->step != Step::kTransferring) {
    return done(refused(
        ServiceError::Code::kNotNow,
        fmt::format("migration {} is {}: it can be switched to post-copy while it transfers", id.text(),
                    m->record.state == api::TRANSFERRING ? "starting" : api::MigrationState_Name(m->record.state))));
  }
  api::ToAgent message;
  message.mutable_switch_to_postcopy()->set_migration_id(id.to_bytes());
  hosts_.request(m->record.source, std::move(message), timeouts_.command,
                 [this, id, done = std::move(done)](const auto& answer) {
                   if (Active* now = find(id); now != nullptr && answer && now->step == Step::kTransferring) {
                     now->note = "switching to post-copy";
                     notify(*now);
                   }
                   done(answer ? std::expected<void, ServiceError>() : std::unexpected(answer.error()));
                 });
}

void Migrations::take_up(MigrationRecord record) {
  const Id128 id = record.id;
  auto& m = *active_.emplace(id, std::make_unique<Active>()).first->second;
  m.record = std::move(record);
  m.step = Step::kPulling;
  m.pulled = m.source.told = m.destination.told = true;
  spdlog::info("migration {} of VM {} goes on: {} lacks {} of {}", id.text(), m.record.vm_name, m.record.destination,
               missing_text(m.record), m.record.source);
  const auto vm = store_.vm(m.record.vm_uuid);
  if (vm && *vm && ((*vm)->host != m.record.destination || (*vm)->ownership != m.record.ownership_after())) {
    vm_stopped(m.record.vm_uuid);  // noted just before this control plane ended
    return;
  }
  look_after_pull(m);
}

void Migrations::vm_stopped(const Id128& vm_uuid) {
  for (auto& [id, m] : active_) {
    if (m->record.vm_uuid == vm_uuid && m->record.state == api::PULLING) {
      decide(*m, api::INCOMPLETE,
             fmt::format("the VM was stopped before it had {} of {}", missing_text(m->record), m->record.source));
      return;
    }
  }
}

void Migrations::host_reported(const std::string& host) {
  std::vector<Id128> mine;
  for (const auto& [id, m] : active_) {
    if (m->record.state == api::PULLING && (m->record.source == host || m->record.destination == host)) {
      mine.push_back(id);
    }
  }
  for (const Id128& id : mine) {
    Active* m = find(id);
    take_paging(*m, m->record.source == host);
    if (const auto& paging = m->destination.paging; paging && paging->complete()) {
      decide(*m, api::COMMITTED, printable(paging->reason()));
    } else {
      look_after_pull(*m);
    }
  }
}

void Migrations::take_paging(Active& m, bool source) {
  Side& side = source ? m.source : m.destination;
  side.paging.reset();
  const Hosts::Host* host = hosts_.find(source ? m.record.source : m.record.destination);
  const api::RunningVm* vm = host == nullptr ? nullptr : Hosts::running(*host, m.record.vm_uuid);
  const dpapi::Role role = source ? dpapi::ROLE_SOURCE : dpapi::ROLE_DESTINATION;
  side.holds = vm != nullptr && vm->migration_id() == m.record.id.to_bytes() && vm->role() == role;
  if (!side.holds || !vm->has_paging()) {
    return;
  }
  side.paging = vm->paging();
  if (vm->paging().has_stats()) {
    *(source ? m.record.stats : m.record.destination_stats).mutable_paging() = vm->paging().stats();
  }
}

/// What there is to be done about the flow, and what the operator sees of it.
void Migrations::look_after_pull(Active& m) {
  if (frozen_ || m.record.state != api::PULLING) {
    return;
  }
  if (flows(m)) {
    m.missing_at_resume.reset();
    m.resume_problem.clear();
    m.resume_pause = kResumePauseMin;
  } else if (!connected(m) && m.source.paging && m.destination.paging && m.resume == Resume::kIdle) {
    resume(m);
    return;
  }
  m.note = pull_note(m);
  notify(m);
}

bool Migrations::connected(const Active& m) {
  return m.source.paging && m.source.paging->connected() && m.destination.paging && m.destination.paging->connected();
}

bool Migrations::flows(const Active& m) {
  const std::uint64_t at_resume = m.missing_at_resume.value_or(0);
  return connected(m) && (at_resume == 0 || m.record.destination_stats.paging().pages_missing() < at_resume);
}

bool Migrations::pages_flow(const Id128& vm_uuid) const {
  return std::ranges::any_of(
      active_, [&](const auto& each) { return each.second->record.vm_uuid == vm_uuid && flows(*each.second); });
}

std::string Migrations::pull_note(const Active& m) const {
  const std::string& source = m.record.source;
  const std::string& destination = m.record.destination;
  const std::string missing = missing_text(m.record);
  const std::string waits = "the guest runs on, and waits where it touches one";
  if (!connected(source)) {
    return fmt::format("{}, which holds {} that the VM needs, is not connected; {}", source, missing, waits);
  }
  if (!connected(destination)) {
    return fmt::format("{}, which runs the VM, is not connected; it lacks {} of {}", destination, missing, source);
  }
  if (m.record.destination_settled && !m.destination.holds) {
    return fmt::format("{} does not run the VM any more, which lacked {} of {}: end it with godwitctl stop",
                       destination, missing, source);
  }
  if (m.record.source_settled && !m.source.holds) {
    return fmt::format(
        "{} has lost {} that the VM needs: its bridge knows nothing of them any more; {}: end it with "
        "godwitctl stop, unless they come back",
        source, missing, waits);
  }
  if (flows(m)) {
    return fmt::format("pulling: {} still on {}", missing, source);
  }
  std::string why = m.resume_problem;
  for (const Side* side : {&m.destination, &m.source}) {
    if (why.empty() && side->paging && !side->paging->connected()) {
      why = printable(side->paging->reason());
    }
  }
  return fmt::format("{} still on {}{}{}{}", missing, source, why.empty() ? "" : "; no pages flow: ", why,
                     why.empty() ? "" : "; tried again until they do; " + waits);
}

// ---- a flow that comes again ----------------------------------------------------------------------------------------

void Migrations::resume(Active& m) {
  m.resume = Resume::kUnderWay;
  m.note = pull_note(m);
  for (const Side* side : {&m.source, &m.destination}) {
    if (!side->paging->connected()) {
      m.cut_reason = printable(side->paging->reason());
    }
  }
  spdlog::info("migration {}: {}; beginning the flow again", m.record.id.text(), m.note);
  api::ToAgent message;
  message.mutable_prepare_resume()->set_migration_id(m.record.id.to_bytes());
  message.mutable_prepare_resume()->set_encryption(m.record.plan.encryption());
  notify(m);
  resume_request(m, false, message, "cannot take pages", [this, message](Active& now, const api::AgentReply& reply) {
    const dpapi::Endpoint destination = reply.resume_prepared().endpoint();
    now.missing_at_resume = reply.resume_prepared().pages_missing();
    resume_request(now, true, message, "cannot serve them", [this, destination](Active& m2, const api::AgentReply& r) {
      resume_destination(m2, destination, r.resume_prepared().endpoint());
    });
  });
}

void Migrations::resume_destination(Active& m, const dpapi::Endpoint& destination, const dpapi::Endpoint& source) {
  m.secret = draw_secret();
  api::ToAgent message;
  auto& transfer = *message.mutable_resume_transfer();
  transfer.set_migration_id(m.record.id.to_bytes());
  *transfer.mutable_peer() = source;
  transfer.set_secret(m.secret);
  resume_request(m, false, std::move(message), "cannot take pages",
                 [this, destination](Active& now, const api::AgentReply&) { resume_source(now, destination); });
}

void Migrations::resume_source(Active& m, const dpapi::Endpoint& destination) {
  api::ToAgent message;
  auto& transfer = *message.mutable_resume_transfer();
  transfer.set_migration_id(m.record.id.to_bytes());
  *transfer.mutable_peer() = destination;
  transfer.set_secret(std::exchange(m.secret, {}));
  *transfer.mutable_policy() = policy_of(m.record.plan);
  resume_request(m, true, std::move(message), "cannot serve them", [this](Active& now, const api::AgentReply&) {
    for (Side* side : {&now.source, &now.destination}) {
      if (side->paging) {
        side->paging->set_connected(true);  // until its next report
      }
    }
    resume_ended(now, {});
  });
}

void Migrations::resume_request(Active& m, bool source, api::ToAgent message, const char* doing,
                                std::function<void(Active&, const api::AgentReply&)> next) {
  hosts_.request(source ? m.record.source : m.record.destination, std::move(message), timeouts_.prepare,
                 [this, id = m.record.id, doing, next = std::move(next)](const auto& answer) {
                   Active* now = find(id);
                   if (now == nullptr || now->record.state != api::PULLING || now->resume != Resume::kUnderWay) {
                     return;
                   }
                   if (!answer) {
                     return resume_ended(*now, fmt::format("{}: {}", doing, answer.error().text));
                   }
                   next(*now, *answer);
                 });
}

void Migrations::resume_ended(Active& m, const std::string& problem) {
  m.secret.clear();
  m.resume = Resume::kWaiting;
  m.resume_problem = problem.empty() ? m.cut_reason : problem;
  const Duration pause = std::max(m.resume_pause, kResumePauseMin);
  m.resume_pause = problem.empty() ? kResumePauseMin : std::min(Duration{pause.ns * 2}, kResumePauseMax);
  if (!problem.empty()) {
    spdlog::warn("migration {}: {}", m.record.id.text(), problem);
  }
  arm(m, m.resume_timer, pause, [this](Active& now) {
    now.resume = Resume::kIdle;
    look_after_pull(now);
  });
  m.note = pull_note(m);
  notify(m);
}

}  // namespace godwit::controlplane
