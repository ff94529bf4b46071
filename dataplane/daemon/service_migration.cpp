// The requests of a migration from its preparation to its cancellation; how one ends is in service_finish.cpp.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "dataplane/daemon/guest_paging.h"
#include "dataplane/daemon/service.h"

namespace godwit::daemon {
namespace {

ApiError bad_request(std::string text) { return {api::Error::BAD_REQUEST, std::move(text)}; }

std::vector<transfer::RegionShape> shapes_of(const Guest& guest) {
  std::vector<transfer::RegionShape> shapes;
  for (const memory::ImageRegion& region : guest.regions) {
    shapes.push_back({region.name, region.bytes / pages::kPageSize});
  }
  return shapes;
}

std::expected<void, ApiError> check_epochs(const api::PrepareMigration& request, const Guest& guest) {
  if (request.epoch_count() < transfer::kEpochsMin || request.epoch_base() == 0 ||
      request.epoch_base() >= pages::kUnknownGeneration - request.epoch_count()) {
    return std::unexpected(bad_request("PrepareMigration: epochs " + std::to_string(request.epoch_base()) + " + " +
                                       std::to_string(request.epoch_count()) + "; at least " +
                                       std::to_string(transfer::kEpochsMin) + " are needed, below 4294967295"));
  }
  if (request.role() == api::ROLE_SOURCE && request.epoch_base() <= guest.epoch_now) {
    return std::unexpected(bad_request("PrepareMigration: epoch_base " + std::to_string(request.epoch_base()) +
                                       " is not above the visit's epoch " + std::to_string(guest.epoch_now)));
  }
  return {};
}

/// A guest that is split at the source keeps its stores, and no other does.
std::optional<ApiError> refuse_stores(const api::PrepareMigration& request, const Id128& vm, const Guest& guest) {
  const bool source = request.role() == api::ROLE_SOURCE;
  std::string why;
  if (request.keeps_stores() && request.mode() == api::PRECOPY) {
    why = " cannot keep its stores in mode precopy: use hybrid";
  } else if (request.keeps_stores() && !guest.split_allowed) {
    why = " was attached without `split`, and its stores are to be kept";
  } else if (request.keeps_stores() && guest.memory->ram().any_huge()) {
    why = " has RAM on hugetlbfs here, which nothing can be kept out of: start it with RAM on tmpfs";
  } else if (!source && request.keeps_stores() && request.budget_bytes() < kBudgetBytesMin) {
    why = " is to be split here: budget_bytes " + std::to_string(request.budget_bytes()) + ", at least 16 MiB";
  } else if (!source && guest.split_allowed && !request.keeps_stores()) {
    why = " was attached to be split, and is to arrive without its stores";
  } else if (source && request.keeps_stores() != (guest.split != nullptr)) {
    why =
        guest.split ? " is split: keep its stores, or gather it first" : " is not split, and its stores are to be kept";
  } else if (source && guest.split) {
    const std::string problem = guest.split->begun() ? guest.split->problem() : "its data plane has just started";
    std::uint64_t lost = 0;
    for (const auto& [sub, stats] : guest.split->figures().subs) {
      lost += stats.lost_pages;
    }
    why = !problem.empty()               ? " cannot move: " + problem
          : guest.split->limits().gather ? " is being gathered"
          : lost != 0                    ? " has lost " + std::to_string(lost) + " pages"
                                         : "";
  }
  return why.empty() ? std::nullopt : std::optional(bad_request("PrepareMigration: VM " + vm.text() + why));
}

/// Whether the guest may take this part in a migration; the retained image to reuse, if one is named.
std::expected<std::optional<Id128>, ApiError> check_preparation(const api::PrepareMigration& request, const Id128& vm,
                                                                const Guest& guest) {
  const bool source = request.role() == api::ROLE_SOURCE;
  if (!source && request.role() != api::ROLE_DESTINATION) {
    return std::unexpected(bad_request("PrepareMigration: role is neither source nor destination"));
  }
  if (source == (guest.kind == api::AttachGuest::ARRIVING)) {
    return std::unexpected(
        bad_request("PrepareMigration: VM " + vm.text() + (source ? " has not arrived here" : " runs here")));
  }
  if (auto refused = refuse_stores(request, vm, guest)) {
    return std::unexpected(std::move(*refused));
  }
  if (source && !request.keeps_stores() && guest.pages_missing() != 0) {
    return std::unexpected(bad_request("PrepareMigration: VM " + vm.text() + " lacks " +
                                       std::to_string(guest.pages_missing()) + " pages, which are on another host"));
  }
  if (!source && request.mode() != api::PRECOPY && !guest.demand_paging) {
    return std::unexpected(
        bad_request("PrepareMigration: VM " + vm.text() + " was attached without demand_paging: use mode precopy"));
  }
  if (!source && request.bytes_total() != guest.bytes_total) {
    return std::unexpected(bad_request("PrepareMigration: the guest has " + std::to_string(guest.bytes_total) +
                                       " bytes here, " + std::to_string(request.bytes_total()) + " at its source"));
  }
  if (const auto checked = check_epochs(request, guest); !checked) {
    return std::unexpected(checked.error());
  }
  std::optional<Id128> reuse;
  if (!source && !request.reuse_image_id().empty()) {
    const auto image = parse_id(request.reuse_image_id(), "PrepareMigration: reuse_image_id");
    if (!image) {
      return std::unexpected(image.error());
    }
    reuse = *image;
  }
  return reuse;
}

/// A split that is over by the commit is not looked at after it.
transfer::SourceGuest source_guest(Guest& guest, bool starts) {
  return {*guest.memory, guest.table, guest.epoch_now, &guest.accesses, starts ? guest.split.get() : nullptr};
}

/// At a source: from here on those of this attempt may be in copies.
void reserve_epochs(const api::PrepareMigration& request, Guest& guest) {
  if (guest.memory->state() != nullptr) {
    guest.memory->state()->raise_epoch(request.epoch_base() + request.epoch_count());
  }
  if (guest.epoch_in_doubt) {
    // No copy can have it: earlier attempts ended below the base of this one.
    guest.epoch_now = request.epoch_base() - 1;
    guest.epoch_in_doubt = false;
  }
}

void refuse_all(const std::vector<Service::Respond>& waiting, const std::string& why) {
  for (const auto& respond : waiting) {
    respond(refusal(bad_request(why)));
  }
}

}  // namespace

std::expected<MigrationSession*, ApiError> Service::find_session(const std::string& migration_id, api::Role role) {
  const auto id = parse_id(migration_id, "migration_id");
  if (!id) {
    return std::unexpected(id.error());
  }
  const auto found = sessions_.find(*id);
  if (found == sessions_.end()) {
    return std::unexpected(ApiError{api::Error::NO_SUCH_MIGRATION, "migration " + id->text() + " is not known here"});
  }
  if (role != api::ROLE_NONE && found->second->role != role) {
    return std::unexpected(bad_request("migration " + id->text() + ": this is not its " +
                                       (role == api::ROLE_SOURCE ? "source" : "destination")));
  }
  return found->second.get();
}

void Service::prepare(const api::PrepareMigration& request, const Respond& respond) {
  const auto id = parse_id(request.migration_id(), "PrepareMigration: migration_id");
  const auto vm = parse_id(request.vm_uuid(), "PrepareMigration: vm_uuid");
  if (!id || !vm) {
    return respond(refusal(!id ? id.error() : vm.error()));
  }
  if (const auto found = sessions_.find(*id); found != sessions_.end()) {
    MigrationSession& session = *found->second;
    if (session.vm_uuid != *vm || session.role != request.role() || session.epoch_base != request.epoch_base() ||
        parse_encryption(request.encryption()) != session.cipher || parse_mode(request.mode()) != session.mode ||
        request.keeps_stores() != session.keeps_stores) {
      return respond(refusal(bad_request("PrepareMigration: migration " + id->text() + " was prepared otherwise")));
    }
    if (session.state == MigrationSession::State::kPreparing) {
      session.waiting.push_back(respond);
      return;
    }
    api::Reply reply;
    *reply.mutable_prepare_migration() = session.prepared;
    return respond(std::move(reply));
  }
  auto entry = find_guest(*vm, request.ownership());
  if (!entry) {
    return respond(refusal(entry.error()));
  }
  Guest& guest = *(*entry)->guest;
  if (!(*entry)->migration.is_nil()) {
    return respond(refusal(bad_request("PrepareMigration: VM " + vm->text() + " is in migration " +
                                       (*entry)->migration.text() + " already")));
  }
  if (const auto refused = refuse_while_split_changes(*vm)) {
    return respond(refusal(*refused));
  }
  const auto reuse = check_preparation(request, *vm, guest);
  if (!reuse) {
    return respond(refusal(reuse.error()));
  }
  const auto cipher = parse_encryption(request.encryption());
  const auto mode = parse_mode(request.mode());
  if (!cipher || !mode) {
    return respond(refusal(!cipher ? cipher.error() : mode.error()));
  }
  if (const auto refused = options_.refuse_clear_text(*cipher)) {
    return respond(refusal(*refused));
  }
  const bool source = request.role() == api::ROLE_SOURCE;
  auto made = std::make_unique<MigrationSession>();
  made->id = *id;
  made->vm_uuid = *vm;
  made->role = request.role();
  made->ownership = request.ownership();
  made->epoch_base = request.epoch_base();
  made->epoch_count = request.epoch_count();
  made->cipher = *cipher;
  made->mode = *mode;
  made->keeps_stores = request.keeps_stores();
  made->budget_pages = source || !request.keeps_stores() ? 0 : request.budget_bytes() / pages::kPageSize;
  made->flow_id = flow_ids_.draw();
  if (made->flow_id == 0) {
    return respond(refusal(
        {api::Error::NO_MEMORY, "PrepareMigration: " + std::to_string(kFlowsMax) + " migrations are under way"}));
  }
  made->waiting.push_back(respond);
  MigrationSession& session = *made;
  sessions_.emplace(*id, std::move(made));
  (*entry)->migration = *id;
  if (!source) {
    return prepare_destination(session, **entry, *reuse);
  }
  reserve_epochs(request, guest);
  session.keeps_stores ? hold_stores(session, **entry) : prepared(session);
}

std::optional<ApiError> Service::refuse_while_split_changes(const Id128& vm) const {
  const auto split = splits_.find(vm);
  if (split == splits_.end() || !split->second.busy) {
    return std::nullopt;
  }
  return bad_request("PrepareMigration: VM " + vm.text() + " is just being split or gathered: ask again");
}

/// From here to the end of the migration pages only come back; or from the end of round 1 on, of a guest that still
/// shrinks, if there are rounds.
void Service::hold_stores(const MigrationSession& session, Entry& entry) {
  entry.worker->submit(
      [this, split = entry.guest->split, id = session.id, at_once = session.mode == transfer::Mode::kPostcopy] {
        split->hold(at_once, [this, id] {
          control_.post([this, id] {
            if (const auto found = sessions_.find(id);
                found != sessions_.end() && found->second->state == MigrationSession::State::kPreparing) {
              prepared(*found->second);
            }
          });
        });
      },
      control_, [] {});
}

void Service::prepare_destination(MigrationSession& preparing, Entry& entry, const std::optional<Id128>& wanted) {
  auto result = std::make_shared<std::expected<ArrivalReuse, ApiError>>();
  entry.worker->submit(
      [this, result, guest = entry.guest.get(), wanted, mode = preparing.mode, budget_pages = preparing.budget_pages,
       epoch_base = preparing.epoch_base, lcores = static_cast<std::uint32_t>(data_path_.lcore_count())] {
        *result = prepare_arrival(*guest, wanted, images_);
        if (*result && mode != transfer::Mode::kPrecopy) {
          const auto begun = budget_pages != 0
                                 ? begin_split_arrival(*guest, epoch_base, options_.missing_dir, budget_pages, lcores)
                                 : begin_paging(*guest, epoch_base, options_.missing_dir, lcores);
          if (!begun) {
            *result = std::unexpected(begun.error());
          }
        }
      },
      control_,
      [this, result, id = preparing.id] {
        MigrationSession& session = *sessions_.at(id);
        if (!*result) {
          spdlog::warn("migration {}: not prepared: {}", id.text(), printable(result->error().text));
          const auto waiting = std::move(session.waiting);
          guests_.at(session.vm_uuid).migration = {};
          flow_ids_.release(session.flow_id);
          sessions_.erase(id);
          for (const Respond& respond : waiting) {
            respond(refusal(result->error()));
          }
          return;
        }
        ArrivalReuse& reuse = **result;
        session.reuse_reason = reuse.reason;
        session.prepared.set_image_accepted(reuse.table.has_value());
        session.prepared.set_image_reason(printable(reuse.reason, kTextBytesMax));
        if (reuse.table) {
          session.prepared.set_image_pages(reuse.table->size() - reuse.table->count(pages::kUnknownGeneration));
        }
        session.arriving = std::move(reuse.table);
        prepared(session);
      });
}

void Service::prepared(MigrationSession& session) {
  session.state = MigrationSession::State::kPrepared;
  publish_guests();
  options_.describe(session.flow_id, *session.prepared.mutable_endpoint());
  spdlog::info("migration {}: prepared as {}{}", session.id.text(),
               session.role == api::ROLE_SOURCE ? "source" : "destination",
               session.role == api::ROLE_SOURCE    ? ""
               : session.prepared.image_accepted() ? ", reuses the retained image"
                                                   : ", nothing to reuse: " + session.reuse_reason);
  api::Reply reply;
  *reply.mutable_prepare_migration() = session.prepared;
  for (const Respond& respond : std::exchange(session.waiting, {})) {
    respond(reply);
  }
}

FlowConfig Service::migration_flow_config(const MigrationSession& session, const Start& start,
                                          const wire::IpAddress& local) const {
  const bool source = session.role == api::ROLE_SOURCE;
  FlowConfig config = flow_config(options_, {session.flow_id, session.cipher, source}, start, local,
                                  static_cast<std::uint16_t>(data_path_.lcore_count()));
  config.figures->migration = session.id;
  config.figures->vm_uuid = session.vm_uuid;
  config.figures->role = source ? FlowRole::kSource : FlowRole::kDestination;
  return config;
}

/// Null: what is sent must be copied.
std::shared_ptr<const port::Loan> Service::lend(const LiveGuest& guest) {
  if (options_.lender == nullptr) {
    return nullptr;
  }
  port::MemoryPieces memory;
  for (const memory::Region& region : guest.ram().regions()) {
    memory.emplace_back(region.mapping, region.bytes);
  }
  auto lent = options_.lender->lend(guest.shared_ram(), std::move(memory));
  if (!lent) {
    spdlog::debug("{}", lent.error().text);
    return nullptr;
  }
  // Until it is usable pages are copied: the migration does not wait for it.
  disk_->submit(
      [loan = *lent] {
        if (auto usable = loan->make_usable(); !usable) {
          spdlog::info("{}; it is copied", usable.error().text);
        }
      },
      control_, [] {});
  return *lent;
}

EventRelay::Deliver Service::deliver_to(const Id128& migration) {
  return [this, migration](api::Event event) {
    const auto found = sessions_.find(migration);
    if (found == sessions_.end() || found->second->state == MigrationSession::State::kFinishing) {
      return;
    }
    MigrationSession& session = *found->second;
    if (event.has_migration_failed()) {
      session.failed = true;
      spdlog::warn("migration {}: failed: {}", migration.text(), printable(event.migration_failed().error().text()));
      // Whoever waits for room in the stream waits in vain.
      data_path_.inbox().post([this, flow_id = session.flow_id] {
        if (MigrationFlow* const flow = data_path_.find(flow_id)) {
          flow->refuse_device_state();
        }
      });
    }
    on_paging_event(session, std::move(event));
  };
}

void Service::start(api::StartMigration& request, const Respond& respond) {
  auto session = find_session(request.migration_id(), api::ROLE_NONE);
  if (!session) {
    return respond(refusal(session.error()));
  }
  MigrationSession& migration = **session;
  const bool source = migration.role == api::ROLE_SOURCE;
  auto start = parse_start(request, source);
  wipe_secret(*request.mutable_secret());
  if (!start) {
    return respond(refusal(start.error()));
  }
  std::string serialised = request.SerializeAsString();
  if (migration.state == MigrationSession::State::kStarted && migration.start_request == serialised &&
      migration.secret == start->secret) {
    return respond({});
  }
  if (migration.state != MigrationSession::State::kPrepared) {
    return respond(refusal(
        bad_request("StartMigration: migration " + migration.id.text() + " is not in the state to be started")));
  }
  if (source && start->policy.mode != migration.mode) {
    return respond(refusal(
        bad_request("StartMigration: policy.mode of migration " + migration.id.text() + " is not as it was prepared")));
  }
  migration.start_request = std::move(serialised);
  migration.relay = std::make_unique<EventRelay>(migration.id, guests_.at(migration.vm_uuid).guest->paging, control_,
                                                 deliver_to(migration.id));
  launch(migration, std::move(*start), respond);
}

void Service::launch(MigrationSession& session, Start start, const Respond& respond) {
  const auto local = source_address(options_, start.peer);
  if (!local) {
    return respond(refusal(local.error()));
  }
  Entry& entry = guests_.at(session.vm_uuid);
  struct Launch {
    FlowConfig flow;
    transfer::MigrationConfig config;
    transfer::Policy policy;
    std::unique_ptr<MigrationPart> part;  // null: to be made
    std::optional<pages::GenerationTable> table;
  };
  auto launch = std::make_shared<Launch>();
  launch->flow = migration_flow_config(session, start, *local);
  launch->policy = start.policy;
  launch->part = std::move(session.part);
  launch->table = std::move(session.arriving);
  launch->config.id = to_memory_id(session.id);
  launch->config.regions = shapes_of(*entry.guest);
  launch->config.epoch_base = session.epoch_base;
  launch->config.epoch_count = session.epoch_count;
  launch->config.header_bytes_per_packet = local->family == wire::IpFamily::kV4 ? 28 : 48;
  const bool source = session.role == api::ROLE_SOURCE;
  if (source && (session.mode != transfer::Mode::kPrecopy || session.committed)) {
    launch->flow.served = entry.guest->memory.get();
  } else if (source && launch->flow.cipher == transport::Cipher::kNone) {
    launch->flow.loan = lend(*entry.guest->memory);
  }
  figures_.begin(launch->flow.figures);
  const auto begin = session.committed ? MigrationFlow::Begin::kResume : MigrationFlow::Begin::kStart;
  session.secret = start.secret;
  session.state = MigrationSession::State::kStarted;
  auto on_lcore = [this, launch, source, begin, guest = entry.guest.get(), worker = entry.worker.get(),
                   relay = session.relay.get()] {
    if (!launch->part && source) {
      launch->part = std::make_unique<MigrationPart>(
          SourceRole{launch->config, launch->policy, source_guest(*guest, begin == MigrationFlow::Begin::kStart)},
          *worker, data_path_.inbox(), *relay);
    } else if (!launch->part) {
      launch->part = std::make_unique<MigrationPart>(
          DestinationRole{launch->config,
                          {*guest->memory, std::move(launch->table), guest->paging.get(), guest->split.get()}},
          *worker, data_path_.inbox(), *relay);
    }
    if (guest->paging) {
      data_path_.watch(LivePaging::reader_of(guest->paging));
    }
    const Instant now = port::now();
    data_path_.add(std::make_unique<MigrationFlow>(launch->flow, std::move(launch->part), begin, now), now);
  };
  spdlog::info("migration {}: {}, peer {}", session.id.text(),
               begin == MigrationFlow::Begin::kStart ? "started" : "goes on",
               wire::to_string(start.peer.endpoint.address));
  if (!source || start.policy.pull_order != transfer::PullOrderKind::kByRank) {
    data_path_.inbox().post(on_lcore);
    return respond({});
  }
  // The table may be long; until its rank is known nothing else of this migration can happen.
  session.state = MigrationSession::State::kPreparing;
  entry.worker->submit(
      [launch, guest = entry.guest.get()] { launch->policy.pull_rank = rank_for_pull(*guest); }, control_,
      [this, on_lcore, respond, id = session.id] {
        MigrationSession& ranked = *sessions_.at(id);
        ranked.state = MigrationSession::State::kStarted;
        data_path_.inbox().post(on_lcore);
        respond({});
        refuse_all(std::exchange(ranked.waiting, {}), "migration " + id.text() + " was just being started: ask again");
      });
}

void Service::guest_stopped(const api::GuestStopped& request, const Respond& respond) {
  const auto session = find_session(request.migration_id(), api::ROLE_SOURCE);
  if (!session) {
    return respond(refusal(session.error()));
  }
  if ((*session)->state != MigrationSession::State::kStarted) {
    return respond(refusal(bad_request("GuestStopped: migration " + (*session)->id.text() + " is not started")));
  }
  data_path_.inbox().post([this, flow_id = (*session)->flow_id] {
    if (MigrationFlow* const flow = data_path_.find(flow_id)) {
      flow->source()->guest_stopped(port::now());
    }
  });
  respond({});
}

void Service::device_state(const std::string& migration_id, std::string data, bool end, const Respond& respond) {
  const auto session = find_session(migration_id, api::ROLE_SOURCE);
  if (!session) {
    return respond(refusal(session.error()));
  }
  MigrationSession& migration = **session;
  if (migration.state != MigrationSession::State::kStarted || migration.failed || migration.committed) {
    return respond(refusal(bad_request("DeviceState: migration " + migration.id.text() + " is not under way")));
  }
  if (data.size() > 65536 || (data.empty() && !end)) {
    return respond(
        refusal(bad_request("DeviceState: " + std::to_string(data.size()) + " bytes; 1 to 65536 are allowed")));
  }
  migration.device_state_ended = migration.device_state_ended || end;
  auto shared = std::make_shared<std::string>(std::move(data));
  data_path_.inbox().post([this, flow_id = migration.flow_id, shared, end, respond] {
    MigrationFlow* const flow = data_path_.find(flow_id);
    const auto answer = [this, respond](bool taken) {
      control_.post([respond, taken] {
        respond(taken ? api::Reply() : refusal({api::Error::CANCELLED, "DeviceState: the migration has failed"}));
      });
    };
    if (flow == nullptr) {
      answer(false);
      return;
    }
    flow->offer_device_state(std::move(*shared), end, answer);
    flow->flush(port::now());
  });
}

void Service::emit_failure(const Id128& migration, api::Error::Code code, const std::string& text) {
  api::Event event;
  event.mutable_migration_failed()->set_migration_id(migration.to_bytes());
  event.mutable_migration_failed()->mutable_error()->set_code(code);
  event.mutable_migration_failed()->mutable_error()->set_text(printable(text, kTextBytesMax));
  emit_(event);
}

void Service::cancel(const api::CancelMigration& request, const Respond& respond) {
  const auto session = find_session(request.migration_id(), api::ROLE_NONE);
  if (!session) {
    return respond(refusal(session.error()));
  }
  MigrationSession& migration = **session;
  if (migration.committed || migration.state == MigrationSession::State::kCommitting) {
    return respond(refusal(bad_request("CancelMigration: migration " + migration.id.text() + " is committed")));
  }
  const std::string reason = printable(request.reason().empty() ? "cancelled" : request.reason());
  if (migration.state == MigrationSession::State::kStarted && !migration.failed) {
    data_path_.inbox().post([this, flow_id = migration.flow_id, reason] {
      if (MigrationFlow* const flow = data_path_.find(flow_id)) {
        flow->cancel(port::now(), reason);
      }
    });
  } else if (migration.state != MigrationSession::State::kFinishing && !migration.failed) {
    migration.failed = true;
    emit_failure(migration.id, api::Error::CANCELLED, reason);
  }
  respond({});
}

}  // namespace godwit::daemon
