// Migrations, second part: what agents report, and what they are told when they ask or register.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <utility>

#include "base/log.h"
#include "controlplane/service/migrations.h"

namespace godwit::controlplane {
namespace {

/// The guest runs where it could not be continued before. A host that repeats that it had resumed it says nothing of
/// why it ended.
void forget_failure(MigrationRecord& record) {
  if (record.state != api::INCOMPLETE) {
    record.reason.clear();
  }
}

}  // namespace

void Migrations::handle_event(const std::string& host, const api::MigrationEvent& event) {
  const auto id = Id128::from_bytes(event.migration_id());
  if (!id) {
    spdlog::warn("{} sent an event with a malformed migration id; ignored", host);
    return;
  }
  Active* m = find(*id);
  if (m == nullptr) {
    handle_late_event(host, *id, event);
    return;
  }
  if (host != m->record.source && host != m->record.destination) {
    spdlog::warn("{} sent an event of migration {}, in which it has no part; ignored", host, id->text());
    return;
  }
  handle_active_event(*m, host == m->record.source, event);
}

void Migrations::handle_active_event(Active& m, bool source, const api::MigrationEvent& event) {
  if (event.kind() != api::MigrationEvent::PROGRESS) {
    spdlog::debug("migration {}: {} says {}", m.record.id.text(), source ? m.record.source : m.record.destination,
                  api::MigrationEvent::Kind_Name(event.kind()));
  }
  take_facts(m.record, source, event);
  const bool decided = is_decided(m.record.state);
  switch (event.kind()) {
    case api::MigrationEvent::READY_TO_SWITCH:
      if (source && m.record.state == api::TRANSFERRING && m.step != Step::kSettling) {
        switch_over(m);
      }
      return;
    case api::MigrationEvent::LOADED:
      if (source) {
        return;
      }
      if (m.record.state == api::SWITCHING && m.step == Step::kSwitching) {
        auto& paging = *m.record.destination_stats.mutable_paging();
        paging.set_pages_missing(event.pages_missing());
        paging.set_pages_missing_first(event.pages_missing());
        decide(m, event.pages_missing() > 0 ? api::PULLING : api::COMMITTED, {});
      } else if (decided) {
        tell_outcome(m.record, false);
      } else if (m.step != Step::kSettling) {
        decide(m, api::ABORTED, fmt::format("{} reported the guest loaded before the switch", m.record.destination));
      }
      return;
    case api::MigrationEvent::FAILED:
      handle_failure(m, source, event);
      return;
    case api::MigrationEvent::RESUMED:
    case api::MigrationEvent::RETIRED:
    case api::MigrationEvent::BACK: {
      const bool fits = is_committed(m.record.state)
                            ? event.kind() == (source ? api::MigrationEvent::RETIRED : api::MigrationEvent::RESUMED)
                            : m.record.state == api::ABORTED && event.kind() != api::MigrationEvent::RESUMED;
      if (fits) {
        if (std::exchange((source ? m.source : m.destination).failed, false)) {
          m.note.clear();  // what failed there failed before it knew
        }
        if (event.kind() == api::MigrationEvent::RESUMED) {
          forget_failure(m.record);
          if (m.source_timer != Timers::kNone) {
            tell_source(m);
          }
        }
        settle(m.record.id, source, printable(event.text()));
      }
      return;
    }
    case api::MigrationEvent::ENDED:
      if (!source && m.record.state == api::PULLING) {
        decide(m, api::INCOMPLETE,
               fmt::format("the guest has ended on {} ({}) before it had {} of {}", m.record.destination,
                           printable(event.text()), missing_text(m.record), m.record.source));
      }
      return;
    default:
      if (m.record.state == api::PULLING) {
        m.note = pull_note(m);
      }
      notify(m);
  }
}

void Migrations::handle_failure(Active& m, bool source, const api::MigrationEvent& event) {
  if (is_decided(m.record.state)) {
    Side& side = source ? m.source : m.destination;
    side.failed = true;
    m.note = fmt::format("{}: {}", source ? m.record.source : m.record.destination, printable(event.error().text()));
    if (is_committed(m.record.state) && !source) {
      m.record.reason = m.note;
    }
    spdlog::error("migration {}, decided, but {}", m.record.id.text(), m.note);
    if (side.replied) {
      settle(m.record.id, source, {});
    } else {
      notify(m);
    }
  } else {
    decide(m, api::ABORTED,
           fmt::format("{}: {}", source ? m.record.source : m.record.destination, printable(event.error().text())));
  }
}

void Migrations::handle_late_event(const std::string& host, const Id128& id, const api::MigrationEvent& event) {
  auto stored = store_.migration(id);
  if (!stored || !*stored || (host != (*stored)->source && host != (*stored)->destination)) {
    spdlog::warn("{} sent an event of migration {}, which is not known here; ignored", host, id.text());
    return;
  }
  MigrationRecord& record = **stored;
  if (!is_terminal(record.state)) {
    return;  // this control plane is ending
  }
  const bool source = host == record.source;
  switch (event.kind()) {
    case api::MigrationEvent::RESUMED:
    case api::MigrationEvent::RETIRED:
    case api::MigrationEvent::BACK:
      take_facts(record, source, event);
      (source ? record.source_settled : record.destination_settled) = true;
      if (event.kind() == api::MigrationEvent::RESUMED) {
        forget_failure(record);
      }
      update_view(record, source);
      if (auto saved = store_.save_details(record); !saved) {
        spdlog::error("migration {}: {}", id.text(), saved.error().text);
      }
      return;
    case api::MigrationEvent::LOADED:
    case api::MigrationEvent::FAILED:
    case api::MigrationEvent::READY_TO_SWITCH:
      // It does not know yet, whatever was confirmed before.
      (source ? record.source_settled : record.destination_settled) = false;
      tell_outcome(record, source);
      return;
    default:
      return;
  }
}

void Migrations::take_facts(MigrationRecord& record, bool source, const api::MigrationEvent& event) {
  if (event.has_stats()) {
    auto& stats = source ? record.stats : record.destination_stats;
    const dpapi::PagingStats paging = stats.paging();
    const bool keep = stats.has_paging() && !event.stats().has_paging();
    stats = event.stats();
    if (keep) {
      *stats.mutable_paging() = paging;
    }
  }
  if (source && event.stop_unix_us() > 0) {
    record.stop_unix_us = event.stop_unix_us();
  }
  if (!source && event.resume_unix_us() > 0) {
    record.resume_unix_us = event.resume_unix_us();
  }
}

void Migrations::answer_outcome(const std::string& host, const std::string& migration_id) {
  api::ToAgent message;
  auto& outcome = *message.mutable_outcome();
  outcome.set_migration_id(migration_id);
  outcome.set_reason("this control plane's store knows no such migration of this host: is it the right one?");
  if (const auto id = Id128::from_bytes(migration_id)) {
    const auto stored = store_.migration(*id);
    if (stored && *stored && (host == (*stored)->source || host == (*stored)->destination)) {
      outcome = outcome_of(**stored);
    } else if (!stored) {
      outcome.set_reason(stored.error().text);
    }
  }
  hosts_.tell(host, std::move(message));
}

std::vector<api::Outcome> Migrations::outcomes_for(const std::string& host) {
  std::vector<api::Outcome> outcomes;
  const auto unsettled = store_.unsettled_migrations(host);
  if (!unsettled) {
    spdlog::error("{}", unsettled.error().text);
    return outcomes;
  }
  for (const MigrationRecord& record : *unsettled) {
    const bool source = record.source == host;
    const Active* m = find(record.id);
    const bool settled = m != nullptr && (source ? m->record.source_settled : m->record.destination_settled);
    if (!settled) {
      outcomes.push_back(outcome_of(record));
    }
  }
  return outcomes;
}

void Migrations::host_registered(const std::string& host) {
  if (const auto unsettled = store_.unsettled_migrations(host)) {
    for (const MigrationRecord& record : *unsettled) {
      const Active* m = find(record.id);
      tell_outcome(m != nullptr ? m->record : record, record.source == host);
    }
  }
  std::vector<Id128> mine;
  for (const auto& [id, m] : active_) {
    if (!is_decided(m->record.state) && (m->record.source == host || m->record.destination == host)) {
      mine.push_back(id);
    }
  }
  for (const Id128& id : mine) {
    Active* m = find(id);
    const Hosts::Host* registered = hosts_.find(host);
    const bool told = m != nullptr && (m->record.source == host ? m->source : m->destination).told;
    if (!told || registered == nullptr) {
      continue;
    }
    const api::RunningVm* vm = Hosts::running(*registered, m->record.vm_uuid);
    if (vm == nullptr || vm->migration_id() != id.to_bytes()) {
      decide(*m, api::ABORTED, fmt::format("the bridge of {} was restarted and holds this migration no more", host));
      continue;
    }
    if (connected(m->record.source) && connected(m->record.destination)) {
      timers_.cancel(m->absence_timer);
    }
    if (m->step == Step::kSwitching && m->record.source == host) {
      send_switch(*m);  // the first may have been lost; it is the same word again
    } else if (m->record.state == api::TRANSFERRING && m->ready && m->step != Step::kSettling) {
      switch_over(*m);
    }
  }
}

void Migrations::host_lost(const std::string& host) {
  std::vector<Id128> mine;
  for (const auto& [id, m] : active_) {
    if (!is_terminal(m->record.state) && (m->record.source == host || m->record.destination == host)) {
      mine.push_back(id);
    }
  }
  for (const Id128& id : mine) {
    Active* m = find(id);
    const std::string reason = fmt::format("{} was lost in {}: its bridge, or the network to it", host,
                                           api::MigrationState_Name(m->record.state));
    switch (m->record.state) {
      case api::PREPARING:
        if (m->step != Step::kHeld) {
          decide(*m, api::ABORTED, reason);
        }
        break;
      case api::TRANSFERRING:
        m->note = fmt::format("{} is not connected; waiting for it", host);
        if (m->absence_timer == Timers::kNone) {
          arm(*m, m->absence_timer, timeouts_.host_heartbeat,
              [this, reason](Active& now) { decide(now, api::ABORTED, reason); });
        }
        notify(*m);
        break;
      case api::SWITCHING:
        if (host == m->record.destination) {
          decide(*m, api::ABORTED, reason);
        }
        break;
      case api::PULLING:
        (host == m->record.source ? m->source : m->destination).paging.reset();
        look_after_pull(*m);
        break;
      default:
        break;
    }
  }
}

}  // namespace godwit::controlplane
