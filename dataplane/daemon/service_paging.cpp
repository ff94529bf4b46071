// The requests of a migration whose pages come after the guest: from the switch to the end of the last flow. How it is
// finished is in service_finish.cpp.
//
// A session that is committed fails no more. Its part (Source or Destination) outlives its flows; between two of them
// the session keeps it (kWithout). What a part tells is judged here, as its meaning changes with the commit.

#include <spdlog/spdlog.h>

#include <utility>

#include "base/log.h"
#include "dataplane/daemon/guest_paging.h"
#include "dataplane/daemon/service.h"

namespace godwit::daemon {
namespace {

using State = MigrationSession::State;

ApiError bad_request(std::string text) { return {api::Error::BAD_REQUEST, std::move(text)}; }

ApiError stale(const char* request, std::uint64_t given, std::uint64_t known) {
  return {api::Error::STALE_OWNERSHIP, std::string(request) + ": ownership " + std::to_string(given) + " was given, " +
                                           std::to_string(known) + " is known here"};
}

api::Event connection_lost(const Id128& migration, const std::string& reason) {
  api::Event event;
  event.mutable_connection_lost()->set_migration_id(migration.to_bytes());
  event.mutable_connection_lost()->set_reason(reason);
  return event;
}

}  // namespace

// ---- what a part tells ----

void Service::on_paging_event(MigrationSession& session, api::Event event) {
  if (event.has_progress()) {
    api::MigrationStats& stats = *event.mutable_progress()->mutable_stats();
    if (session.committed) {
      session.paging = stats.paging();
    } else if (session.role == api::ROLE_DESTINATION) {
      return;  // nobody expects it before
    } else {
      stats.clear_paging();
    }
  } else if (event.has_memory_ready()) {
    session.memory_ready = true;
  } else if (event.has_connection_lost()) {
    session.lost = event.connection_lost().reason();
  } else if (event.has_complete()) {
    session.equal = !event.complete().has_error();
    session.lost = session.equal ? "" : event.complete().error().text();
    session.paging = event.complete().stats().paging();
    session.complete = event;
    if (!session.committed) {
      return;  // told then
    }
  } else if (event.has_migration_failed()) {
    session.lost = event.migration_failed().error().text();
    if (session.committed) {
      event = connection_lost(session.id, session.lost);
    }
  }
  emit_(event);
}

void Service::switch_to_postcopy(const api::SwitchToPostcopy& request, const Respond& respond) {
  const auto session = find_session(request.migration_id(), api::ROLE_SOURCE);
  if (!session) {
    return respond(refusal(session.error()));
  }
  const Id128 id = (*session)->id;
  if ((*session)->state != State::kStarted || (*session)->mode != transfer::Mode::kHybrid) {
    return respond(refusal(bad_request("SwitchToPostcopy: migration " + id.text() + " is not a hybrid one under way")));
  }
  data_path_.inbox().post([this, id, flow_id = (*session)->flow_id, respond] {
    MigrationFlow* const flow = data_path_.find(flow_id);
    const bool switched = flow != nullptr && flow->source()->switch_to_postcopy(port::now());
    control_.post([id, respond, switched] {
      respond(switched ? api::Reply()
                       : refusal(bad_request("SwitchToPostcopy: migration " + id.text() +
                                             " can no longer switch, or its destination cannot page on demand")));
    });
  });
}

// ---- commit ----

struct Service::Commitment {
  Id128 id;
  Id128 vm_uuid;
  std::uint64_t ownership = 0;
  bool may_detach = false;
  transfer::Stats stats;
  std::uint32_t epoch_next = 0;
  const pages::GenerationTable* table = nullptr;  // destination: its part's, which nothing changes any more
  std::expected<void, ApiError> result;
};

void Service::commit(const api::CommitMigration& request, const Respond& respond) {
  const auto found = find_session(request.migration_id(), api::ROLE_NONE);
  if (!found) {
    return respond(refusal(found.error()));
  }
  MigrationSession& session = **found;
  if (session.committed) {
    if (request.ownership() != session.ownership) {
      return respond(refusal(stale("CommitMigration", request.ownership(), session.ownership)));
    }
    api::Reply reply;
    *reply.mutable_commit_migration() = session.commit_result;
    return respond(std::move(reply));
  }
  if (session.state == State::kCommitting) {
    session.waiting.push_back(respond);
    return;
  }
  const bool source = session.role == api::ROLE_SOURCE;
  if (session.state != State::kStarted || session.failed ||
      !(source ? session.device_state_ended : session.memory_ready)) {
    return respond(refusal(
        bad_request("CommitMigration: migration " + session.id.text() + " is not in the state to be committed")));
  }
  if (request.ownership() <= session.ownership) {
    return respond(refusal(stale("CommitMigration", request.ownership(), session.ownership)));
  }
  session.state = State::kCommitting;
  session.waiting.push_back(respond);
  auto commitment = std::make_shared<Commitment>();
  commitment->id = session.id;
  commitment->vm_uuid = session.vm_uuid;
  commitment->ownership = request.ownership();
  data_path_.inbox().post([this, commitment, flow_id = session.flow_id] {
    MigrationFlow* const flow = data_path_.find(flow_id);
    if (flow != nullptr && flow->part().may_detach()) {
      commitment->may_detach = true;
      if (flow->source() != nullptr) {
        flow->source()->committed(port::now());
      }
      commitment->stats = flow->stats(port::now());
      commitment->epoch_next = flow->epoch_next();
      commitment->table = flow->destination() != nullptr ? &flow->destination()->table() : nullptr;
    }
    control_.post([this, commitment] { run_commit_job(commitment); });
  });
}

void Service::run_commit_job(const std::shared_ptr<Commitment>& commitment) {
  if (!commitment->may_detach) {
    commitment->result = std::unexpected(
        bad_request("CommitMigration: migration " + commitment->id.text() + " has not announced what is missing"));
    return committed(commitment);
  }
  Entry& entry = guests_.at(commitment->vm_uuid);
  entry.worker->submit(
      [this, commitment, guest = entry.guest.get()] {
        if (commitment->table != nullptr) {
          take_possession(*guest, *commitment->table, commitment->epoch_next, options_.run_dir, images_);
        } else {
          commitment->result = secure_image(*guest, commitment->id, commitment->epoch_next, images_);
          if (commitment->result && guest->split) {
            commitment->result =
                persist_history(*guest, options_.run_dir);  // it claims less now, and must not more again
          }
        }
      },
      control_, [this, commitment] { committed(commitment); });
}

void Service::committed(const std::shared_ptr<Commitment>& commitment) {
  MigrationSession& session = *sessions_.at(commitment->id);
  session.state = State::kStarted;
  const auto waiting = std::exchange(session.waiting, {});
  api::Reply reply;
  if (!commitment->result) {
    spdlog::error("migration {}: not committed: {}", session.id.text(), printable(commitment->result.error().text));
    reply = refusal(commitment->result.error());
  } else {
    session.committed = true;
    session.ownership = guests_.at(session.vm_uuid).guest->ownership = commitment->ownership;
    session.epoch_next = commitment->epoch_next;
    api::CommitMigrationResult& result = *reply.mutable_commit_migration();
    to_api(commitment->stats, *result.mutable_stats());
    const auto& paging = guests_.at(session.vm_uuid).guest->paging;
    to_api(commitment->stats, paging.get(), *result.mutable_stats()->mutable_paging());
    result.mutable_stats()->set_reuse_reason(printable(session.reuse_reason, kTextBytesMax));
    result.set_epoch_next(commitment->epoch_next);
    session.paging = result.stats().paging();
    session.commit_result = result;
    spdlog::info("migration {}: committed as {}, {} pages are missing", session.id.text(),
                 session.role == api::ROLE_SOURCE ? "source" : "destination", session.paging.pages_missing());
  }
  publish_guests();
  for (const Respond& respond : waiting) {
    respond(reply);
  }
  if (!session.committed) {
    return;
  }
  if (session.keeps_stores && session.role == api::ROLE_SOURCE) {
    give_up_split(session.vm_uuid);
  }
  // What was told before counted for a migration that could still fail.
  if (session.complete) {
    emit_(*session.complete);
  } else if (!session.lost.empty()) {
    emit_(connection_lost(session.id, session.lost));
  }
}

// ---- another flow ----

void Service::prepare_resume(const api::PrepareResume& request, const Respond& respond) {
  const auto id = parse_id(request.migration_id(), "PrepareResume: migration_id");
  const auto vm = parse_id(request.vm_uuid(), "PrepareResume: vm_uuid");
  const auto cipher = parse_encryption(request.encryption());
  if (!id || !vm || !cipher) {
    return respond(refusal(!id ? id.error() : !vm ? vm.error() : cipher.error()));
  }
  if (const auto refused = options_.refuse_clear_text(*cipher)) {
    return respond(refusal(*refused));
  }
  if (request.role() != api::ROLE_SOURCE && request.role() != api::ROLE_DESTINATION) {
    return respond(refusal(bad_request("PrepareResume: role is neither source nor destination")));
  }
  const auto found = sessions_.find(*id);
  if (found == sessions_.end()) {
    return resume_without_session(request, *id, respond);
  }
  MigrationSession& session = *found->second;
  if (session.vm_uuid != *vm || session.role != request.role() || !session.committed) {
    return respond(refusal(bad_request("PrepareResume: migration " + id->text() +
                                       " is another VM's, of the other role here, or not committed")));
  }
  if (request.ownership() != session.ownership) {
    return respond(refusal(stale("PrepareResume", request.ownership(), session.ownership)));
  }
  if (session.state == State::kPreparing) {
    session.waiting.push_back(respond);
    return;
  }
  if (session.state != State::kStarted && session.state != State::kWithout) {
    return respond(refusal(bad_request("PrepareResume: migration " + id->text() + " is being finished")));
  }
  session.cipher = *cipher;
  session.waiting.push_back(respond);
  if (session.state == State::kWithout) {
    return resume_prepared(session);
  }
  session.state = State::kPreparing;
  give_up_flow(session);
}

/// The part goes on without lanes, if it can.
void Service::give_up_flow(MigrationSession& session) {
  struct Freed {
    std::unique_ptr<MigrationPart> part;
    transfer::Stats stats;
  };
  auto freed = std::make_shared<Freed>();
  Worker* const worker = guests_.at(session.vm_uuid).worker.get();
  data_path_.inbox().post([this, freed, worker, id = session.id, flow_id = session.flow_id] {
    data_path_.release_migration(flow_id, [this, freed, worker, id](std::unique_ptr<MigrationFlow> flow) {
      if (flow) {
        freed->stats = flow->stats(port::now());
        freed->part = flow->detach(port::now());
      }
      flow.reset();
      // Behind the jobs of a part that is no more.
      worker->submit([] {}, control_,
                     [this, freed, id] {
                       MigrationSession& without = *sessions_.at(id);
                       without.part = std::move(freed->part);
                       if (!without.part && without.role == api::ROLE_DESTINATION) {
                         without.arriving = guests_.at(without.vm_uuid).guest->table;
                       }
                       without.failed = false;
                       figures_.end(without.flow_id, freed->stats, std::nullopt);
                       resume_prepared(without);
                     });
    });
  });
}

void Service::resume_prepared(MigrationSession& session) {
  if (session.flow_id != 0) {
    flow_ids_.release(session.flow_id);
  }
  session.flow_id = flow_ids_.draw();
  session.state = State::kWithout;
  if (!session.complete) {
    session.lost = "the flow is being begun again";
  }
  api::Reply reply;
  if (session.flow_id == 0) {
    reply =
        refusal({api::Error::NO_MEMORY, "PrepareResume: " + std::to_string(kFlowsMax) + " migrations are under way"});
  } else {
    options_.describe(session.flow_id, *reply.mutable_prepare_resume()->mutable_endpoint());
    if (const auto& paging = guests_.at(session.vm_uuid).guest->paging) {
      reply.mutable_prepare_resume()->set_pages_missing(paging->missing_count());
      session.paging.set_pages_missing(paging->missing_count());
    }
  }
  publish_guests();
  for (const Respond& respond : std::exchange(session.waiting, {})) {
    respond(reply);
  }
}

/// This daemon is not the one that was told of the commit.
void Service::resume_without_session(const api::PrepareResume& request, const Id128& id, const Respond& respond) {
  const Id128 vm = parse_id(request.vm_uuid(), "PrepareResume: vm_uuid").value();
  const auto found = guests_.find(vm);
  if (found == guests_.end()) {
    if (request.role() == api::ROLE_SOURCE) {
      return resume_from_image(request, id, respond);
    }
    return respond(refusal({api::Error::NO_SUCH_VM, "PrepareResume: VM " + vm.text() + " is not attached"}));
  }
  Entry& entry = found->second;
  const bool ready = entry.state == Entry::State::kReady && entry.migration.is_nil() &&
                     entry.guest->kind != api::AttachGuest::ARRIVING &&
                     entry.guest->image_id.to_bytes() == request.image_id();
  if (!ready) {
    return respond(refusal(bad_request("PrepareResume: VM " + vm.text() +
                                       " is being attached or detached, in another migration, or of another boot")));
  }
  if (request.ownership() < entry.guest->ownership) {
    return respond(refusal(stale("PrepareResume", request.ownership(), entry.guest->ownership)));
  }
  if (request.role() == api::ROLE_DESTINATION && !entry.guest->demand_paging) {
    return respond(refusal(bad_request("PrepareResume: VM " + vm.text() + " was attached without demand_paging")));
  }
  const auto split = splits_.find(vm);
  if (request.role() == api::ROLE_DESTINATION && entry.guest->split &&
      (!entry.guest->split->begun() || split == splits_.end() || split->second.busy)) {
    return respond(refusal(bad_request("PrepareResume: VM " + vm.text() + " is split: SplitGuest comes before")));
  }
  MigrationSession& session = take_up(request, id, entry);
  session.waiting.push_back(respond);
  if (session.role == api::ROLE_DESTINATION) {
    return resume_prepared(session);
  }
  session.securing = true;
  auto secured = std::make_shared<std::expected<void, ApiError>>();
  entry.worker->submit([this, secured, id,
                        guest = entry.guest.get()] { *secured = secure_image(*guest, id, guest->epoch_now, images_); },
                       control_,
                       [this, secured, id] {
                         MigrationSession& taken = *sessions_.at(id);
                         taken.securing = false;
                         if (*secured && taken.keeps_stores) {
                           give_up_split(taken.vm_uuid);
                         }
                         if (*secured) {
                           return resume_prepared(taken);
                         }
                         guests_.at(taken.vm_uuid).migration = {};
                         const auto waiting = std::move(taken.waiting);
                         sessions_.erase(id);
                         for (const Respond& answer : waiting) {
                           answer(refusal(secured->error()));
                         }
                       });
}

void Service::resume_from_image(const api::PrepareResume& request, const Id128& id, const Respond& respond) {
  auto& asked = opening_[id];
  asked.emplace_back(request, respond);
  if (asked.size() > 1) {
    return;
  }
  auto opened = std::make_shared<std::expected<std::unique_ptr<Guest>, ApiError>>(nullptr);
  disk_->submit(
      [this, opened, id] { *opened = open_served_image(id, images_); }, control_,
      [this, opened, id] {
        const auto waiting = std::move(opening_.at(id));
        opening_.erase(id);
        const api::PrepareResume& first = waiting.front().first;
        if (*opened && ((**opened)->vm_uuid.to_bytes() != first.vm_uuid() ||
                        (**opened)->image_id.to_bytes() != first.image_id() || guests_.contains((**opened)->vm_uuid))) {
          *opened = std::unexpected(bad_request("PrepareResume: the image that serves migration " + id.text() +
                                                " is of another VM or boot, or that VM was attached meanwhile"));
        }
        if (!*opened) {
          for (const auto& [unheard, answer] : waiting) {
            answer(refusal(opened->error()));
          }
          return;
        }
        const Id128 vm = (**opened)->vm_uuid;
        Entry entry;
        entry.state = Entry::State::kReady;
        entry.guest = std::move(**opened);
        entry.bytes_total = entry.guest->bytes_total;
        entry.lost = true;  // its QEMU has gone
        entry.worker = std::make_unique<Worker>();
        Entry& placed = guests_.emplace(vm, std::move(entry)).first->second;
        resume_prepared(take_up(first, id, placed));
        for (const auto& [again, answer] : waiting) {
          prepare_resume(again, answer);
        }
      });
}

MigrationSession& Service::take_up(const api::PrepareResume& request, const Id128& id, Entry& entry) {
  Guest& guest = *entry.guest;
  auto session = std::make_unique<MigrationSession>();
  session->id = id;
  session->vm_uuid = guest.vm_uuid;
  session->role = request.role();
  session->state = State::kPreparing;
  session->ownership = guest.ownership = request.ownership();
  session->cipher = parse_encryption(request.encryption()).value();
  session->mode = transfer::Mode::kPostcopy;
  session->keeps_stores = guest.split != nullptr;
  session->epoch_count = transfer::kEpochsMin;
  session->epoch_next = guest.epoch_now;
  session->committed = session->device_state_ended = session->memory_ready = true;
  session->relay = std::make_unique<EventRelay>(id, guest.paging, control_, deliver_to(id));
  session->epoch_base = guest.epoch_now;
  if (session->role == api::ROLE_DESTINATION) {
    session->arriving = guest.table;
    session->epoch_base = guest.paging_epoch;
    if (!guest.paging) {
      session->complete.emplace().mutable_complete()->set_migration_id(id.to_bytes());
    }
  }
  entry.migration = id;
  spdlog::info("migration {}: taken up as {}", id.text(),
               request.role() == api::ROLE_SOURCE ? "source" : "destination");
  return *sessions_.emplace(id, std::move(session)).first->second;
}

void Service::resume(api::ResumeMigration& request, const Respond& respond) {
  const auto found = find_session(request.migration_id(), api::ROLE_NONE);
  if (!found) {
    return respond(refusal(found.error()));
  }
  MigrationSession& session = **found;
  auto start = parse_resume(request, session.role == api::ROLE_SOURCE);
  wipe_secret(*request.mutable_secret());
  if (!start) {
    return respond(refusal(start.error()));
  }
  std::string serialised = request.SerializeAsString();
  if (session.state == State::kStarted && session.start_request == serialised && session.secret == start->secret) {
    return respond({});
  }
  if (session.state != State::kWithout || session.flow_id == 0) {
    return respond(
        refusal(bad_request("ResumeMigration: migration " + session.id.text() + " was not prepared to go on")));
  }
  session.start_request = std::move(serialised);
  if (session.role == api::ROLE_DESTINATION && !guests_.at(session.vm_uuid).guest->paging) {
    respond({});  // nothing is missing, so nothing has to flow
    if (!session.complete) {
      session.complete.emplace().mutable_complete()->set_migration_id(session.id.to_bytes());
    }
    return emit_(*session.complete);
  }
  session.lost.clear();
  launch(session, std::move(*start), respond);
}

// ---- the faults ----

void Service::watch_paging(const Id128& vm, const Entry& entry) {
  const auto paging = entry.guest->paging;
  data_path_.inbox().post([this, paging] { data_path_.watch(paging); });
  if (paging->missing_count() != 0) {
    return;
  }
  // All had come, and the former daemon died before it could say so.
  auto disarmed = std::make_shared<std::expected<void, transfer::GuestError>>();
  entry.worker->submit([disarmed, paging] { *disarmed = paging->disarm(); }, control_,
                       [this, disarmed, vm] {
                         const auto found = guests_.find(vm);
                         if (!*disarmed) {
                           spdlog::error("VM {}: its faults are still ours: {}", vm.text(),
                                         printable(disarmed->error().text));
                         } else if (found != guests_.end() && found->second.guest && found->second.migration.is_nil()) {
                           end_paging(vm, [] {});
                         }
                       });
}

void Service::end_paging(const Id128& vm, std::function<void()> then) {
  const auto paging = guests_.at(vm).guest->paging;
  if (!paging) {
    return then();
  }
  data_path_.inbox().post([this, vm, paging, then = std::move(then)] {
    data_path_.unwatch(paging);
    control_.post([this, vm, then] {
      const auto found = guests_.find(vm);
      if (found != guests_.end() && found->second.guest) {
        found->second.guest->paging.reset();
      }
      publish_guests();
      then();
    });
  });
}

}  // namespace godwit::daemon
