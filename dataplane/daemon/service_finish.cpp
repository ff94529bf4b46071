// FinishMigration: takes the flow off its lcore, lets its jobs end, settles what of the guest's memory is whose,
// answers. Each step runs where its state lives; the next is started from the one before:
//   control  finish       checks, session becomes kFinishing
//   lcore    take_flow    last word to the peer, flow leaves the loops of all lcores; then a job behind all others
//   comes back to the lcore, so that
//                         nothing of the flow is called any more
//   job      run_finish_job   last scan, image or tracking file
//   control  finished     guest kept or forgotten, reply; the flow is destroyed on its lcore

#include <spdlog/spdlog.h>

#include <utility>

#include "base/log.h"
#include "dataplane/daemon/guest_paging.h"
#include "dataplane/daemon/service.h"

namespace godwit::daemon {
namespace {

constexpr std::size_t kFinishedMax = 256;

ApiError bad_request(std::string text) { return {api::Error::BAD_REQUEST, std::move(text)}; }

}  // namespace

struct Service::Ending {
  Id128 id;
  Id128 vm_uuid;
  api::Role role = api::ROLE_NONE;
  bool committed = false;
  std::uint64_t ownership = 0;          // after
  bool pulled = false;                  // CommitMigration came before
  bool equal = true;                    // then: what came is what was sent
  std::uint32_t epoch_committed = 0;    // then: first epoch that nobody has used
  std::unique_ptr<MigrationPart> part;  // then: without a flow
  std::uint32_t flow_id = 0;
  std::uint32_t epoch_base = 0;
  Guest* guest = nullptr;
  std::uint64_t guests_bytes = 0;  // of the others
  Worker* worker = nullptr;
  std::optional<pages::GenerationTable> arriving;  // destination that was never started
  std::unique_ptr<MigrationFlow> flow;             // null: never started
  transfer::Stats stats;
  std::uint32_t epoch_next = 0;
  bool keep_guest = false;
  Retained retained;
  std::optional<ApiError> error;
};

void Service::finish(const api::FinishMigration& request, const Respond& respond) {
  const auto id = parse_id(request.migration_id(), "FinishMigration: migration_id");
  if (!id) {
    return respond(refusal(id.error()));
  }
  for (const auto& [finished, reply] : finished_) {
    if (finished == *id) {
      return respond(reply);
    }
  }
  const bool committed = request.outcome() == api::OUTCOME_COMMITTED;
  if (!committed && request.outcome() != api::OUTCOME_ABORTED && request.outcome() != api::OUTCOME_ABANDONED) {
    return respond(refusal(bad_request("FinishMigration: outcome is neither committed, aborted nor abandoned")));
  }
  const auto session = find_session(request.migration_id(), api::ROLE_NONE);
  if (!session) {
    if (opening_.contains(*id)) {
      return respond(
          refusal(bad_request("FinishMigration: migration " + id->text() + " is being taken up: ask again")));
    }
    const bool over = committed ? request.destination_complete() : request.outcome() == api::OUTCOME_ABANDONED;
    return over ? finish_image(*id, committed, respond) : respond(refusal(session.error()));
  }
  MigrationSession& migration = **session;
  if (const auto refused = refuse_paging_end(request, migration)) {
    return respond(refusal(*refused));
  }
  if (request.ownership() < migration.ownership ||
      (committed && !migration.committed && request.ownership() == migration.ownership)) {
    return respond(
        refusal({api::Error::STALE_OWNERSHIP, "FinishMigration: ownership " + std::to_string(request.ownership()) +
                                                  " does not follow " + std::to_string(migration.ownership)}));
  }
  const bool holds = !committed && stop_holding(migration);
  if ((migration.state == MigrationSession::State::kPreparing && !holds) ||
      migration.state == MigrationSession::State::kCommitting ||
      (committed && migration.state == MigrationSession::State::kPrepared)) {
    return respond(
        refusal(bad_request("FinishMigration: migration " + id->text() + " is not in the state to be finished so")));
  }
  migration.waiting.push_back(respond);
  if (migration.state == MigrationSession::State::kFinishing) {
    return;
  }
  auto ending = std::make_shared<Ending>();
  ending->id = *id;
  ending->vm_uuid = migration.vm_uuid;
  ending->role = migration.role;
  ending->committed = committed;
  ending->ownership = request.ownership();
  ending->flow_id = migration.flow_id;
  ending->epoch_base = migration.epoch_base;
  ending->arriving = std::move(migration.arriving);
  ending->pulled = migration.committed;
  ending->equal = migration.equal;
  ending->part = std::move(migration.part);
  ending->epoch_committed = migration.epoch_next;
  Entry& entry = guests_.at(migration.vm_uuid);
  ending->guest = entry.guest.get();
  ending->worker = entry.worker.get();
  const bool started =
      migration.state == MigrationSession::State::kStarted || migration.state == MigrationSession::State::kWithout;
  migration.state = MigrationSession::State::kFinishing;
  if (started) {
    data_path_.inbox().post([this, ending] { take_flow(ending); });
  } else {
    // Nothing was copied, but the epochs are spent: whoever was told of them may have believed us.
    ending->epoch_next = migration.epoch_base;
    run_finish_job(ending);
  }
}

/// A source that waits for its split to come to rest need not. Who has prepared it is told.
bool Service::stop_holding(MigrationSession& migration) {
  const bool holds = migration.state == MigrationSession::State::kPreparing && migration.keeps_stores &&
                     migration.role == api::ROLE_SOURCE;
  if (holds) {
    for (const Respond& preparing : std::exchange(migration.waiting, {})) {
      preparing(refusal(bad_request("PrepareMigration: migration " + migration.id.text() + " is aborted")));
    }
  }
  return holds;
}

void Service::take_flow(const std::shared_ptr<Ending>& ending) {
  const Instant now = port::now();
  if (MigrationFlow* const flow = data_path_.find(ending->flow_id)) {
    flow->refuse_device_state();
    if (!ending->committed && !ending->pulled) {
      flow->cancel(now, "the control plane has aborted the migration");
      flow->tick(now);
    }
  }
  data_path_.release_migration(ending->flow_id, [this, ending](std::unique_ptr<MigrationFlow> flow) {
    if (flow) {
      flow->pump(port::now());  // only now is all told that the other lcores did
      ending->stats = flow->stats(port::now());
      ending->epoch_next = flow->epoch_next();
    } else if (ending->part) {
      ending->stats = ending->part->stats(port::now());
    }
    if (ending->pulled) {
      ending->epoch_next = ending->epoch_committed;
    }
    ending->flow = std::move(flow);
    ending->worker->submit([] {}, data_path_.inbox(),
                           [this, ending] { control_.post([this, ending] { run_finish_job(ending); }); });
  });
}

void Service::run_finish_job(const std::shared_ptr<Ending>& ending) {
  ending->guests_bytes = guest_bytes() - ending->guest->bytes_total;
  ending->worker->submit(
      [this, ending] {
        Guest& guest = *ending->guest;
        if (ending->pulled) {
          return finish_pulled(*ending);
        }
        if (ending->role == api::ROLE_SOURCE && ending->committed) {
          ending->retained = retain(guest, std::move(guest.table), ending->epoch_next, ending->guests_bytes, images_);
          return;
        }
        if (ending->role == api::ROLE_SOURCE) {
          ending->keep_guest = true;
          guest.epoch_now = std::max(guest.epoch_now, ending->epoch_next);
          if (!guest.memory->check_whole()) {
            // The other end may have been sent zeros under generations of this table.
            guest.table.fill(pages::kUnknownGeneration);
          }
        } else if (ending->committed) {
          ending->keep_guest = true;
          guest.table = ending->flow->destination()->table();
          if (const auto disarmed = guest.paging ? guest.paging->disarm() : std::expected<void, transfer::GuestError>{};
              !disarmed) {
            ending->error = ApiError{api::Error::KERNEL, disarmed.error().text};
          }
          guest.epoch_now = ending->epoch_next;
          guest.kind = api::AttachGuest::CONTINUING;
          if (guest.split) {
            guest.split->stop_asking_source();
          }
          // Its RAM is a running guest's now.
          const std::lock_guard lock(images_.mutex);
          if (const auto forgotten = images_.store.forget(to_memory_id(guest.vm_uuid)); !forgotten) {
            ending->error = ApiError{to_api(forgotten.error().code), forgotten.error().text};
          }
        } else if (ending->flow != nullptr || ending->arriving) {
          pages::GenerationTable table =
              ending->flow != nullptr ? ending->flow->destination()->table() : std::move(*ending->arriving);
          ending->retained = retain(guest, std::move(table), ending->epoch_next, ending->guests_bytes, images_);
        } else {
          ending->retained.reason = "nothing had arrived";
        }
        if (ending->keep_guest) {
          if (auto persisted = persist_history(guest, options_.run_dir); !persisted) {
            ending->error = std::move(persisted.error());
          }
        }
      },
      control_, [this, ending] { finished(ending); });
}

/// A job, after CommitMigration.
void Service::finish_pulled(Ending& ending) {
  Guest& guest = *ending.guest;
  if (ending.role == api::ROLE_SOURCE) {
    ending.retained =
        release_image(guest, ending.epoch_next, ending.committed && ending.equal, ending.guests_bytes, images_);
    return;
  }
  if (!ending.committed) {
    ending.retained.reason = "the guest ended before all of its pages had come";
    return;
  }
  ending.keep_guest = true;
  if (!ending.equal) {
    guest.table.fill(pages::kUnknownGeneration);  // a wrong page may have a generation that others have, too
  }
  if (auto persisted = persist_history(guest, options_.run_dir); !persisted) {
    ending.error = std::move(persisted.error());
  }
}

/// Why it cannot end so while pages are missing, or may be.
std::optional<ApiError> Service::refuse_paging_end(const api::FinishMigration& request,
                                                   const MigrationSession& migration) const {
  const std::string name = "FinishMigration: migration " + migration.id.text();
  const bool committed = request.outcome() == api::OUTCOME_COMMITTED;
  const bool source = migration.role == api::ROLE_SOURCE;
  if (!migration.committed) {
    const auto& paging = guests_.at(migration.vm_uuid).guest->paging;
    const std::uint64_t missing = paging && paging->armed() ? paging->missing_count() : 0;
    if (request.outcome() == api::OUTCOME_ABANDONED || (committed && missing != 0)) {
      return bad_request(name + " lacks " + std::to_string(missing) + " pages and was not told CommitMigration");
    }
    return std::nullopt;
  }
  if (request.outcome() == api::OUTCOME_ABORTED) {
    return bad_request(name + " is committed");
  }
  if (!committed && !source && guests_.at(migration.vm_uuid).qemu_runs()) {
    return bad_request(name + " is of a guest that runs here: end its QEMU first");  // it would read zeros
  }
  if (committed && !migration.complete && !(source && request.destination_complete())) {
    return bad_request(name + " is not complete: " + std::to_string(migration.paging.pages_missing()) +
                       " pages are missing");
  }
  return std::nullopt;
}

/// Without a session: of a source whose data plane was restarted, and whose image serves that migration.
void Service::finish_image(const Id128& id, bool committed, const Respond& respond) {
  auto reply = std::make_shared<api::Reply>();
  disk_->submit(
      [this, id, committed, guests = guest_bytes(), reply] {
        const auto guest = open_served_image(id, images_);
        if (!guest) {
          *reply = refusal(guest.error());
          return;
        }
        const Retained retained = release_image(**guest, (*guest)->epoch_now, committed, guests, images_);
        reply->mutable_finish_migration()->set_epoch_next((*guest)->epoch_now);
        reply->mutable_finish_migration()->set_image_retained(retained.retained);
        reply->mutable_finish_migration()->set_image_reason(printable(retained.reason, kTextBytesMax));
      },
      control_, [reply, respond] { respond(std::move(*reply)); });
}

void Service::finished(const std::shared_ptr<Ending>& ending) {
  if (ending->guest->paging) {
    return end_paging(ending->vm_uuid, [this, ending] {
      if (ending->keep_guest && !ending->error) {
        LivePaging::remove_file(options_.missing_dir, ending->vm_uuid);
      }
      finished(ending);
    });
  }
  const auto session = sessions_.find(ending->id);
  const std::vector<Respond> waiting = std::move(session->second->waiting);
  api::Reply reply;
  if (ending->error) {
    // The guest is unharmed; only a restart of this daemon would not know its history.
    spdlog::error("migration {}: after its end: {}", ending->id.text(), printable(ending->error->text));
  }
  api::FinishMigrationResult& result = *reply.mutable_finish_migration();
  to_api(ending->stats, *result.mutable_stats());
  result.mutable_stats()->set_reuse_reason(printable(session->second->reuse_reason, kTextBytesMax));
  if (ending->pulled) {
    *result.mutable_stats()->mutable_paging() = session->second->paging;
  }
  result.set_epoch_next(ending->epoch_next);
  result.set_image_retained(ending->retained.retained);
  result.set_image_reason(printable(ending->retained.reason, kTextBytesMax));
  spdlog::info("migration {}: {} as {}{}", ending->id.text(),
               ending->committed ? (ending->pulled ? "complete" : "committed")
               : ending->pulled  ? "abandoned"
                                 : "aborted",
               ending->role == api::ROLE_SOURCE ? "source" : "destination",
               ending->keep_guest          ? ""
               : ending->retained.retained ? ", image retained"
                                           : ", no image retained: " + printable(ending->retained.reason));
  // The flow's relay goes with the session, so both end on the lcore, behind whatever still refers to them.
  std::shared_ptr<MigrationFlow> flow(std::move(ending->flow));
  std::shared_ptr<MigrationSession> owner(std::move(session->second));
  sessions_.erase(session);
  std::shared_ptr<MigrationPart> part(std::move(ending->part));
  data_path_.inbox().post([flow = std::move(flow), part = std::move(part), owner = std::move(owner)] {});
  flow_ids_.release(ending->flow_id);
  figures_.end(ending->flow_id, ending->stats, ending->committed);
  finished_.emplace_back(ending->id, reply);
  if (finished_.size() > kFinishedMax) {
    finished_.pop_front();
  }
  Entry& entry = guests_.at(ending->vm_uuid);
  entry.migration = {};
  publish_guests();
  const auto answer = [waiting, reply] {
    for (const Respond& respond : waiting) {
      respond(reply);
    }
  };
  if (ending->keep_guest && entry.guest->split && ending->role == api::ROLE_SOURCE) {
    entry.guest->split->release();
  } else if (ending->keep_guest && entry.guest->split && entry.guest->split->limits().gather &&
             entry.guest->split->missing_count() == 0) {
    gathered(ending->vm_uuid);
  }
  if (ending->keep_guest) {
    entry.guest->ownership = ending->ownership;
    publish_guests();
    answer();
    return;
  }
  // Its descriptors are closed before the bridge hears of it: QEMU may be ended, and its RAM be another's, from then
  // on.
  forget_guest(ending->vm_uuid, [this, vm = ending->vm_uuid, answer] {
    LiveSplit::remove_files(options_.missing_dir, vm);  // it does not run here
    answer();
  });
}

}  // namespace godwit::daemon
