#include "controlplane/service/coordinator.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>

#include "base/log.h"

namespace godwit::controlplane {
namespace {

using Code = ServiceError::Code;

std::int64_t monotonic_ns() {
  using std::chrono::steady_clock, std::chrono::nanoseconds, std::chrono::duration_cast;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

std::expected<Id128, ServiceError> migration_id_of(const std::string& bytes) {
  if (const auto id = Id128::from_bytes(bytes)) {
    return *id;
  }
  return std::unexpected(ServiceError{Code::kInvalid, "migration_id must be 16 bytes"});
}

}  // namespace

Coordinator::Coordinator(Store& store, const config::TimeoutConfig& timeouts, std::string cluster)
    : store_(store), timeouts_(timeouts), cluster_(std::move(cluster)) {
  migrations_.set_main_part_hooks(
      {.split_there = [this](const auto& migration) { return splits_.split_there(migration); },
       .moved = [this](const auto& migration) { splits_.moved(migration); }});
}

std::expected<std::unique_ptr<Coordinator>, StoreError> Coordinator::start(Store& store,
                                                                           const config::TimeoutConfig& timeouts,
                                                                           std::string cluster) {
  auto coordinator = std::make_unique<Coordinator>(store, timeouts, std::move(cluster));
  const std::lock_guard lock(coordinator->mutex_);
  if (auto done = coordinator->migrations_.take_up_interrupted(); !done) {
    return std::unexpected(done.error());
  }
  if (auto done = coordinator->splits_.take_up(); !done) {
    return std::unexpected(done.error());
  }
  if (auto done = coordinator->moves_.take_up(); !done) {
    return std::unexpected(done.error());
  }
  const auto hosts = store.hosts();
  if (!hosts) {
    return std::unexpected(hosts.error());
  }
  for (const HostRecord& host : *hosts) {
    coordinator->hosts_.remember(host);
  }
  return coordinator;
}

void Coordinator::freeze() {
  const std::lock_guard lock(mutex_);
  migrations_.freeze();
  splits_.freeze();
  moves_.freeze();
}

// ---- agents ---------------------------------------------------------------------------------------------------------

SessionId Coordinator::session_opened(std::shared_ptr<AgentLink> link, std::string certified_host) {
  const std::lock_guard lock(mutex_);
  const SessionId id = ++last_session_;
  sessions_[id] = {.link = std::move(link), .certified_host = std::move(certified_host), .heard_ns = monotonic_ns()};
  watch_silence(id, timeouts_.host_heartbeat);
  return id;
}

void Coordinator::received(SessionId id, const api::FromAgent& message) {
  const std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) {
    return;  // closed meanwhile
  }
  Session& session = found->second;
  session.heard_ns = monotonic_ns();
  if (message.message_case() == api::FromAgent::kRegister) {
    register_host(id, session, message.register_());
    return;
  }
  Hosts::Host* host = session.host.empty() ? nullptr : hosts_.find(session.host);
  if (host == nullptr || host->session != id) {
    close(id, "sent a message before Register");
    return;
  }
  const std::string name = session.host;
  switch (message.message_case()) {
    case api::FromAgent::kHeartbeat:
      hosts_.refresh(*host, message.heartbeat());
      migrations_.host_reported(name);
      splits_.host_reported(name);
      moves_.look();
      break;
    case api::FromAgent::kReply:
      hosts_.replied(name, id, message.reply());
      break;
    case api::FromAgent::kEvent:
      migrations_.handle_event(name, message.event());
      break;
    case api::FromAgent::kAskOutcome:
      migrations_.answer_outcome(name, message.ask_outcome().migration_id());
      break;
    case api::FromAgent::kVmEnded:
      splits_.vm_ended(name, message.vm_ended());
      break;
    case api::FromAgent::kRegister:
    case api::FromAgent::MESSAGE_NOT_SET:
      break;
  }
}

void Coordinator::register_host(SessionId id, Session& session, const api::Register& message) {
  api::ToAgent answer;
  if (const auto mistake = register_mistake(message)) {
    answer.mutable_registered()->set_reason(*mistake);
    session.link->send(std::move(answer));
    return;
  }
  const std::string& name = message.host().name();
  if (!session.certified_host.empty() && session.certified_host != name) {
    const std::string reason =
        fmt::format("its certificate is for host {}, not for host {}", session.certified_host, name);
    spdlog::warn("refused an agent: {}", reason);
    answer.mutable_registered()->set_reason(reason);
    session.link->send(std::move(answer));
    return;
  }
  if (!session.host.empty() && session.host != name) {
    close(id, "registered under a second name");
    return;
  }
  if (Hosts::Host* old = hosts_.find(name); old != nullptr && old->session != 0 && old->session != id) {
    spdlog::warn("{} registers again: the new stream replaces the old one", name);
    const SessionId replaced = old->session;
    (void)hosts_.disconnect(name, replaced);
    close(replaced, "was replaced");
  }
  session.host = name;
  const auto link = session.link;
  Hosts::Host& host = hosts_.connect(message, id, link);
  *answer.mutable_registered() = registered_answer(name, host.view);
  link->send(std::move(answer));
  spdlog::info("{} is connected: kernel {}, {}, data plane {}", name, printable(host.view.info.kernel()),
               printable(host.view.info.qemu_version()),
               host.view.info.dataplane_up() ? "up at " + printable(host.view.info.dataplane_address()) : "down");
  save_host(name);
  migrations_.host_registered(name);
  migrations_.host_reported(name);
  splits_.host_reported(name);
  moves_.look();
}

api::Registered Coordinator::registered_answer(const std::string& host, const HostView& view) {
  api::Registered registered;
  registered.set_accepted(true);
  registered.set_cluster_name(cluster_);
  for (api::Outcome& outcome : migrations_.outcomes_for(host)) {
    *registered.add_outcomes() = std::move(outcome);
  }
  for (const api::RunningVm& vm : view.vms) {
    const auto stored = store_.vm(*Id128::from_bytes(vm.uuid()));
    if (!stored || !*stored) {
      continue;  // the store does not know it, or does not answer: nothing is said of it
    }
    auto& owned = *registered.add_vms();
    owned.set_uuid(vm.uuid());
    owned.set_ownership((*stored)->ownership);
    owned.set_image_id((*stored)->image_id.to_bytes());
    owned.set_epoch_next((*stored)->epoch_next);
    owned.set_here((*stored)->host == host);
    if (!owned.here() && vm.role() != dpapi::ROLE_DESTINATION && !vm.has_paging()) {
      spdlog::warn("{} holds VM {}, which the store gives to {}", host, printable(vm.name()),
                   (*stored)->host.empty() ? "nobody" : (*stored)->host);
    }
  }
  return registered;
}

void Coordinator::session_closed(SessionId id) {
  const std::lock_guard lock(mutex_);
  close(id, "closed its stream");
}

void Coordinator::close(SessionId id, const char* why) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) {
    return;
  }
  Session session = std::move(found->second);
  sessions_.erase(found);
  timers_.cancel(session.silence_timer);
  session.link->close();
  if (session.host.empty()) {
    spdlog::warn("an agent that had not registered {}", why);
    return;
  }
  if (hosts_.disconnect(session.host, id)) {
    spdlog::warn("{} is lost: it {}", session.host, why);
    save_host(session.host);
    migrations_.host_lost(session.host);
  }
}

void Coordinator::watch_silence(SessionId id, Duration after) {
  const auto found = sessions_.find(id);
  found->second.silence_timer = timers_.schedule(after, [this, id] {
    const auto session = sessions_.find(id);
    if (session == sessions_.end()) {
      return;
    }
    const Duration left{session->second.heard_ns + timeouts_.host_heartbeat.ns - monotonic_ns()};
    if (left.ns > 0) {
      watch_silence(id, left);
    } else {
      close(id, "gave no sign of life");
    }
  });
}

void Coordinator::save_host(const std::string& name) {
  const Hosts::Host* host = hosts_.find(name);
  HostRecord record{.name = name, .last_seen_unix_us = host->last_seen_unix_us};
  *record.last.mutable_host() = host->view.info;
  for (const dpapi::Image& image : host->view.images) {
    *record.last.add_images() = image;
  }
  if (auto saved = store_.save_host(record); !saved) {
    spdlog::warn("{}", saved.error().text);
  }
}

// ---- operators ------------------------------------------------------------------------------------------------------

std::expected<api::ListHostsResponse, ServiceError> Coordinator::list_hosts() {
  const std::lock_guard lock(mutex_);
  return vms_.list_hosts();
}

std::expected<api::ListVmsResponse, ServiceError> Coordinator::list_vms() {
  const std::lock_guard lock(mutex_);
  return vms_.list();
}

std::expected<api::ListImagesResponse, ServiceError> Coordinator::list_images() {
  const std::lock_guard lock(mutex_);
  return vms_.list_images();
}

std::expected<api::ListMigrationsResponse, ServiceError> Coordinator::list_migrations(bool active_only) {
  const std::lock_guard lock(mutex_);
  auto migrations = migrations_.list(active_only);
  if (!migrations) {
    return std::unexpected(from_store(migrations.error()));
  }
  api::ListMigrationsResponse response;
  for (api::Migration& migration : *migrations) {
    *response.add_migrations() = std::move(migration);
  }
  return response;
}

ClusterFigures Coordinator::figures() {
  const std::lock_guard lock(mutex_);
  ClusterFigures figures{.hosts = {},
                         .active = migrations_.active_by_state(),
                         .ended = migrations_.ended(),
                         .pulling = migrations_.all_pulling(),
                         .splits = splits_.all()};
  for (const auto& [name, host] : hosts_.all()) {
    figures.hosts.emplace(name, host.view);
  }
  return figures;
}

void Coordinator::drop_image(const std::string& host, const std::string& vm, Vms::Done done) {
  const std::lock_guard lock(mutex_);
  vms_.drop_image(host, vm, std::move(done));
}

void Coordinator::start_vm(const api::StartVmRequest& request, Vms::VmDone done) {
  const std::lock_guard lock(mutex_);
  vms_.start(request, std::move(done));
}

void Coordinator::attach_vm(const api::AttachVmRequest& request, Vms::VmDone done) {
  const std::lock_guard lock(mutex_);
  vms_.attach(request, std::move(done));
}

void Coordinator::stop_vm(const std::string& vm, Vms::Done done) {
  const std::lock_guard lock(mutex_);
  vms_.stop(vm, std::move(done));
}

void Coordinator::heat(const api::GetHeatRequest& request, Vms::HeatDone done) {
  const std::lock_guard lock(mutex_);
  vms_.heat(request, std::move(done));
}

void Coordinator::split_vm(const api::SplitVmRequest& request, const Vms::VmDone& done) {
  const std::lock_guard lock(mutex_);
  vms_.split(request, done);
}

std::expected<api::Vm, ServiceError> Coordinator::gather_vm(const std::string& vm) {
  const std::lock_guard lock(mutex_);
  return vms_.gather(vm);
}

std::expected<Id128, ServiceError> Coordinator::migrate(const api::Plan& plan) {
  const std::lock_guard lock(mutex_);
  return begin_migration(plan);
}

std::expected<Id128, ServiceError> Coordinator::begin_migration(const api::Plan& plan) {
  const auto vm = store_.find_vm(plan.vm());
  if (!vm) {
    return std::unexpected(from_store(vm.error()));
  }
  const auto view = [&](const std::string& name) -> const HostView* {
    const Hosts::Host* host = hosts_.find(name);
    return host == nullptr ? nullptr : &host->view;
  };
  if (const auto mistake = plan_mistake(plan)) {
    return std::unexpected(from_planner(*mistake));
  }
  const api::Plan carried = *vm ? moves_.as_carried_out(plan, **vm) : plan;
  const Question question{.plan = carried,
                          .vm = *vm ? &**vm : nullptr,
                          .source = *vm ? view((*vm)->host) : nullptr,
                          .destination = view(plan.destination()),
                          .active_migration = *vm ? migrations_.of_vm((*vm)->uuid) : std::nullopt,
                          .pulling = *vm ? migrations_.pulling((*vm)->uuid) : nullptr,
                          .lent_bytes = *vm ? splits_.lent_bytes((*vm)->uuid, plan.destination()) : 0};
  if (const auto planned = plan_migration(question); !planned) {
    return std::unexpected(from_planner(planned.error()));
  }
  return moves_.begin(carried, **vm);
}

std::expected<void, ServiceError> Coordinator::cancel_migration(const std::string& migration_id) {
  const auto id = migration_id_of(migration_id);
  if (!id) {
    return std::unexpected(id.error());
  }
  const std::lock_guard lock(mutex_);
  return migrations_.cancel(*id, "cancelled by the operator");
}

void Coordinator::switch_to_postcopy(const std::string& migration_id, Migrations::Done done) {
  const auto id = migration_id_of(migration_id);
  if (!id) {
    done(std::unexpected(id.error()));
    return;
  }
  const std::lock_guard lock(mutex_);
  migrations_.switch_to_postcopy(*id, std::move(done));
}

std::expected<void, ServiceError> Coordinator::watch(const std::string& migration_id,
                                                     std::shared_ptr<MigrationWatcher> watcher) {
  const auto id = migration_id_of(migration_id);
  if (!id) {
    return std::unexpected(id.error());
  }
  const std::lock_guard lock(mutex_);
  return migrations_.watch(*id, std::move(watcher));
}

void Coordinator::unwatch(const std::string& migration_id, const MigrationWatcher* watcher) {
  if (const auto id = migration_id_of(migration_id)) {
    const std::lock_guard lock(mutex_);
    migrations_.unwatch(*id, watcher);
  }
}

}  // namespace godwit::controlplane
