#include "qemu-bridge/agent/agent.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "controlplane/tls/credentials.h"
#include "qemu-bridge/agent/definition.h"
#include "qemu-bridge/agent/host_info.h"
#include "qemu-bridge/agent/leftovers.h"

namespace godwit::bridge {
namespace {

using controlplane::v1::AgentReply;
using controlplane::v1::FromAgent;
using controlplane::v1::ToAgent;
using dataplane::v1::Error;

constexpr std::chrono::milliseconds kBeatTime{1000};
constexpr std::chrono::milliseconds kShrinkingBeatTime{100};  // as often as the data plane counts anew
constexpr std::chrono::milliseconds kImagesTime{1000};
constexpr std::size_t kLastWordsMax = 256;

dataplane::v1::Tracker tracker_of(config::Tracker tracker) {
  switch (tracker) {
    case config::Tracker::kPagemapScan:
      return dataplane::v1::TRACKER_PAGEMAP_SCAN;
    case config::Tracker::kWriteProtectEvents:
      return dataplane::v1::TRACKER_WRITE_PROTECT_EVENTS;
    case config::Tracker::kHashes:
      return dataplane::v1::TRACKER_HASHES;
    case config::Tracker::kAuto:
      break;
  }
  return dataplane::v1::TRACKER_AUTO;
}

/// What a command names decides, then this host's configuration.
dataplane::v1::Tracker tracker_for(dataplane::v1::Tracker asked, const config::BridgeConfig& config) {
  return asked != dataplane::v1::TRACKER_AUTO && dataplane::v1::Tracker_IsValid(asked)
             ? asked
             : tracker_of(config.tracking.tracker);
}

std::expected<VmRecord, Error> record_of(const controlplane::v1::VmDefinition& definition, const std::string& image_id,
                                         std::uint64_t ownership, std::uint32_t epoch, dataplane::v1::Tracker tracker) {
  auto checked = definition_of(definition);
  if (!checked) {
    return std::unexpected(make_error(Error::BAD_REQUEST, checked.error()));
  }
  const auto image = Id128::from_bytes(image_id);
  if (!image || image->is_nil()) {
    return std::unexpected(make_error(Error::BAD_REQUEST, "image_id is not 16 bytes other than all zero"));
  }
  VmRecord record;
  record.definition = std::move(*checked);
  record.image_id = *image;
  record.ownership = ownership;
  record.epoch = epoch;
  record.tracker = tracker;
  return record;
}

}  // namespace

// ---- life
// ------------------------------------------------------------------------------------------------------------

std::expected<std::unique_ptr<Agent>, std::string> Agent::start(config::BridgeConfig config) {
  std::unique_ptr<Agent> agent(new Agent(std::move(config)));
  auto loaded = agent->journal_.load();
  if (!loaded) {
    return std::unexpected("cannot use the journal: " + loaded.error().text());
  }
  const auto stores = agent->page_stores_.load();
  if (!stores) {
    return std::unexpected("cannot use the records of page stores: " + stores.error().text());
  }
  loaded->problems.insert(loaded->problems.end(), stores->begin(), stores->end());
  for (const auto& problem : loaded->problems) {
    spdlog::error("{}", problem);
  }
  Agent* self = agent.get();
  agent->dataplane_ = std::make_unique<DataplaneClient>(
      self->config_.dataplane_socket.string(),
      DataplaneClient::Handlers{.on_up =
                                    [self](const auto& hello) {
                                      for (const auto& vm : self->all_vms()) {
                                        vm->on_dataplane_up(hello);
                                      }
                                      self->beat();
                                    },
                                .on_down =
                                    [self](const auto& reason) {
                                      for (const auto& vm : self->all_vms()) {
                                        vm->on_dataplane_down(reason);
                                      }
                                      self->beat();
                                    },
                                .on_event = [self](const auto& event) { self->on_dataplane_event(event); }});
  agent->look_after_connection();
  agent->session_ = std::make_unique<ControlSession>(
      self->config_.controlplane, self->config_.security,
      ControlSession::Handlers{.make_register = [self] { return self->make_register(); },
                               .on_message = [self](const ToAgent& message) { self->on_message(message); },
                               .on_lost = [] {}});
  agent->dataplane_->start();
  agent->recover(std::move(loaded->records));
  agent->session_->start();
  agent->beater_ = std::thread([self] { self->beat_loop(); });
  return agent;
}

Agent::Agent(config::BridgeConfig config)
    : config_(std::move(config)),
      qemu_version_(qemu_version_of(config_.qemu_binary)),
      journal_(config_.state_dir),
      page_stores_(config_.state_dir, config_.lend_bytes) {}

Agent::~Agent() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (beater_.joinable()) {
    beater_.join();
  }
  housekeeping_.stop();
  stores_queue_.stop();
  // Nobody calls a Vm any more once these two are gone; the Vms' own calls to them fail while they end.
  std::map<Id128, VmPtr> vms;
  {
    const std::lock_guard lock(mutex_);
    vms.swap(vms_);
  }
  vms.clear();
  session_.reset();
  dataplane_.reset();
}

void Agent::recover(std::vector<VmRecord> records) {
  for (auto& record : records) {
    auto vm = add_vm(std::move(record));
    if (vm) {
      (*vm)->recover();
    }
  }
}

VmServices Agent::vm_services() {
  return {config_,
          *dataplane_,
          journal_,
          [this](FromAgent message, ControlSession::Delivery delivery) {
            send_event_and_remember(std::move(message), delivery);
          },
          [this](const Id128& uuid) { vm_gone(uuid); },
          [this] { beat(); },
          [this] { return page_stores_.unfilled_bytes(); }};
}

std::expected<Agent::VmPtr, Error> Agent::add_vm(VmRecord record) {
  const Id128 uuid = record.definition.uuid;
  auto vm = std::make_shared<Vm>(vm_services(), std::move(record));
  const std::lock_guard lock(mutex_);
  if (clearing_.contains(uuid)) {
    return std::unexpected(make_error(
        Error::BAD_REQUEST, "what an earlier failure left of VM " + uuid.text() + " is being cleared away: try again"));
  }
  if (stopping_ || !vms_.emplace(uuid, vm).second) {
    return std::unexpected(make_error(Error::BAD_REQUEST, "VM " + uuid.text() + " is on this host already"));
  }
  ++vms_version_;
  return vm;
}

void Agent::vm_gone(const Id128& uuid) {
  VmPtr vm;
  {
    const std::lock_guard lock(mutex_);
    const auto found = vms_.find(uuid);
    if (found == vms_.end() || stopping_) {
      return;  // the agent itself ends, and destroys it
    }
    vm = std::move(found->second);
    vms_.erase(found);
    ++vms_version_;
  }
  housekeeping_.post([vm = std::move(vm)]() mutable { vm.reset(); });
  beat();
}

std::vector<Agent::VmPtr> Agent::all_vms() const {
  const std::lock_guard lock(mutex_);
  std::vector<VmPtr> all;
  for (const auto& [uuid, vm] : vms_) {
    all.push_back(vm);
  }
  return all;
}

AgentFigures Agent::figures() const {
  AgentFigures figures{.dataplane_connected = dataplane_->hello().has_value(),
                       .controlplane_connected = session_->registered(),
                       .vms = {},
                       .stores = page_stores_.held()};
  for (const VmPtr& vm : all_vms()) {
    figures.vms.push_back(vm->running());
  }
  return figures;
}

Agent::VmPtr Agent::vm_of(const std::string& uuid_bytes) const {
  const auto uuid = Id128::from_bytes(uuid_bytes);
  const std::lock_guard lock(mutex_);
  const auto found = uuid ? vms_.find(*uuid) : vms_.end();
  return found == vms_.end() ? nullptr : found->second;
}

Agent::VmPtr Agent::vm_of_migration(const std::string& migration_bytes) const {
  const auto id = Id128::from_bytes(migration_bytes);
  if (!id || id->is_nil()) {
    return nullptr;
  }
  for (auto& vm : all_vms()) {
    if (vm->migration_id() == *id) {
      return vm;
    }
  }
  return nullptr;
}

// ---- telling the control plane
// ---------------------------------------------------------------------------------------

void Agent::beat() {
  const std::lock_guard lock(mutex_);
  beat_now_ = true;
  changed_.notify_all();
}

void Agent::beat_loop() {
  std::chrono::steady_clock::time_point ticked_at;
  while (true) {
    const bool shrinks = std::ranges::any_of(all_vms(), [](const auto& vm) { return vm->shrinks(); });
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, shrinks ? kShrinkingBeatTime : kBeatTime, [&] { return stopping_ || beat_now_; });
      if (stopping_) {
        return;
      }
      beat_now_ = false;
    }
    const std::uint64_t version = vms_version();
    dataplane::v1::ToDataplane request;
    request.mutable_list_images();
    auto images = dataplane_->call(std::move(request), {}, kImagesTime);
    dataplane::v1::ToDataplane status_request;
    status_request.mutable_get_status();
    const auto status = dataplane_->call(std::move(status_request), {}, kImagesTime);
    take_status(status ? &status->status() : nullptr);
    if (images && status) {
      clear_leftovers(status->status(), images->list_images(), version);
    }
    {
      const std::lock_guard lock(mutex_);
      images_ = images ? std::optional(images->list_images()) : std::nullopt;
    }
    FromAgent message;
    const auto state = make_register();
    auto& heartbeat = *message.mutable_heartbeat();
    *heartbeat.mutable_host() = state.host();
    *heartbeat.mutable_vms() = state.vms();
    *heartbeat.mutable_images() = state.images();
    *heartbeat.mutable_stores() = state.stores();
    session_->send(std::move(message), ControlSession::Delivery::kThisStream);
    if (const auto now = std::chrono::steady_clock::now(); !shrinks || now - ticked_at >= kBeatTime) {
      ticked_at = now;
      for (const auto& vm : all_vms()) {
        vm->tick();
      }
    }
  }
}

std::uint64_t Agent::vms_version() const {
  const std::lock_guard lock(mutex_);
  return vms_version_;
}

void Agent::take_status(const dataplane::v1::Status* status) {
  page_stores_.take(status);
  for (const auto& vm : all_vms()) {
    vm->on_dataplane_status(status);
  }
}

void Agent::clear_leftovers(const dataplane::v1::Status& status, const dataplane::v1::ListImagesResult& images,
                            std::uint64_t version_before) {
  const std::lock_guard lock(mutex_);
  // What the data plane told and what is here must be of one moment.
  if (version_before != vms_version_ || !clearing_.empty()) {
    return;
  }
  std::set<Id128> here;
  for (const auto& [uuid, vm] : vms_) {
    here.insert(uuid);
  }
  for (auto& [uuid, leftover] : find_leftovers(status, images, config_, here)) {
    clearing_.insert(uuid);
    housekeeping_.post([this, uuid = uuid, leftover = std::move(leftover)] {
      clear_leftover(*dataplane_, uuid, leftover);
      const std::lock_guard done(mutex_);
      clearing_.erase(uuid);
    });
  }
}

void Agent::look_after_connection() {
  if (config_.security.tls) {
    certificate_ = std::make_unique<controlplane::CertificateWatch>(*config_.security.tls,
                                                                    pki::Identity{pki::Role::kHost, config_.host});
  } else if (!controlplane::stays_on_machine(config_.controlplane)) {
    spdlog::warn("insecure = true: whoever is between us and {} reads and orders what it likes", config_.controlplane);
  }
}

controlplane::v1::Register Agent::make_register() {
  std::optional<dataplane::v1::ListImagesResult> images;
  {
    const std::lock_guard lock(mutex_);
    images = images_;
  }
  controlplane::v1::Register out;
  *out.mutable_host() =
      host_info(config_, qemu_version_, dataplane_->hello(), images,
                {.lent_bytes = page_stores_.lent_bytes(), .unfilled_bytes = page_stores_.unfilled_bytes()});
  if (certificate_) {
    out.mutable_host()->set_certificate_end_unix_us(certificate_->end_unix_us());
  }
  for (const auto& vm : all_vms()) {
    *out.add_vms() = vm->running();
  }
  if (images) {
    *out.mutable_images() = images->images();
  }
  for (auto& store : page_stores_.held()) {
    *out.add_stores() = std::move(store);
  }
  return out;
}

void Agent::send_event_and_remember(FromAgent message, ControlSession::Delivery delivery) {
  if (message.has_event() && delivery == ControlSession::Delivery::kKept) {
    const std::lock_guard lock(mutex_);
    if (last_words_.size() >= kLastWordsMax) {
      last_words_.erase(last_words_.begin());
    }
    last_words_[message.event().migration_id()] = message;
  }
  session_->send(std::move(message), delivery);
}

Reply Agent::reply_to(std::uint64_t id) {
  return [this, id](AgentResult result) {
    if (id == 0 && result) {
      return;  // nobody waits for it
    }
    FromAgent message;
    if (result) {
      *message.mutable_reply() = std::move(*result);
    } else {
      *message.mutable_reply()->mutable_error() = result.error();
      spdlog::warn("refused: {}", text_of(result.error()));
    }
    message.mutable_reply()->set_id(id);
    session_->send(std::move(message), ControlSession::Delivery::kThisStream);
  };
}

// ---- what comes in
// ---------------------------------------------------------------------------------------------------

void Agent::on_dataplane_event(const dataplane::v1::Event& event) {
  using dataplane::v1::Event;
  std::string migration;
  switch (event.event_case()) {
    case Event::kProgress:
      migration = event.progress().migration_id();
      break;
    case Event::kReadyToSwitch:
      migration = event.ready_to_switch().migration_id();
      break;
    case Event::kMemoryGuarded:
      migration = event.memory_guarded().migration_id();
      break;
    case Event::kMemoryReady:
      migration = event.memory_ready().migration_id();
      break;
    case Event::kSourceDone:
      migration = event.source_done().migration_id();
      break;
    case Event::kDeviceState:
      migration = event.device_state().migration_id();
      break;
    case Event::kMigrationFailed:
      migration = event.migration_failed().migration_id();
      break;
    case Event::kConnectionLost:
      migration = event.connection_lost().migration_id();
      break;
    case Event::kComplete:
      migration = event.complete().migration_id();
      break;
    case Event::kGuestLost:
      spdlog::warn("data plane: guest lost: {}", printable(event.guest_lost().reason()));
      return;  // QEMU's own end tells the rest
    case Event::kGathered:
    case Event::kGuestBlocked:
    case Event::kPagesLost:
    case Event::kSubLost:
    case Event::kStoreLost:
    case Event::kSubFull:
      return on_split_event(event);
    case Event::EVENT_NOT_SET:
      return;
  }
  if (const auto vm = vm_of_migration(migration)) {
    vm->on_dataplane_event(event);
  }
}

void Agent::with_vm(const VmPtr& vm, const ToAgent& message, const char* what,
                    const std::function<void(Vm&)>& command) {
  if (vm) {
    command(*vm);
  } else {
    reply_to(message.id())(
        std::unexpected(make_error(Error::NO_SUCH_VM, std::string(what) + ": no such VM or migration on this host")));
  }
}

void Agent::on_message(const ToAgent& message) {
  if (page_store_command(message) || split_command(message)) {
    return;
  }
  const auto with_vm = [&](const VmPtr& vm, const char* what, const std::function<void(Vm&)>& command) {
    this->with_vm(vm, message, what, command);
  };
  switch (message.message_case()) {
    case ToAgent::kRegistered:
      return on_registered(message.registered());
    case ToAgent::kStartVm:
      return start_vm(message);
    case ToAgent::kAttachVm:
      return attach_vm(message);
    case ToAgent::kStopVm:
      return with_vm(vm_of(message.stop_vm().uuid()), "StopVm",
                     [&](Vm& vm) { vm.stop(message.stop_vm().ownership(), reply_to(message.id())); });
    case ToAgent::kGetVmHeat:
      return with_vm(vm_of(message.get_vm_heat().uuid()), "GetVmHeat",
                     [&](Vm& vm) { vm.heat(message.get_vm_heat().cells(), reply_to(message.id())); });
    case ToAgent::kPrepareSource:
      return with_vm(vm_of(message.prepare_source().vm_uuid()), "PrepareSource",
                     [&](Vm& vm) { vm.prepare_source(message.prepare_source(), reply_to(message.id())); });
    case ToAgent::kPrepareDestination:
      return prepare_destination(message);
    case ToAgent::kStartTransfer:
      return with_vm(vm_of_migration(message.start_transfer().migration_id()), "StartTransfer",
                     [&](Vm& vm) { vm.start_transfer(message.start_transfer(), reply_to(message.id())); });
    case ToAgent::kSwitch:
      return with_vm(vm_of_migration(message.switch_().migration_id()), "Switch",
                     [&](Vm& vm) { vm.switch_over(reply_to(message.id())); });
    case ToAgent::kOutcome:
      return outcome(message.outcome(), reply_to(message.id()));
    case ToAgent::kDropImage:
      return drop_image(message);
    case ToAgent::kSwitchToPostcopy:
      return with_vm(vm_of_migration(message.switch_to_postcopy().migration_id()), "SwitchToPostcopy",
                     [&](Vm& vm) { vm.switch_to_postcopy(reply_to(message.id())); });
    case ToAgent::kPrepareResume:
      return with_vm(vm_of_migration(message.prepare_resume().migration_id()), "PrepareResume",
                     [&](Vm& vm) { vm.prepare_resume(message.prepare_resume(), reply_to(message.id())); });
    case ToAgent::kResumeTransfer:
      return with_vm(vm_of_migration(message.resume_transfer().migration_id()), "ResumeTransfer",
                     [&](Vm& vm) { vm.resume_transfer(message.resume_transfer(), reply_to(message.id())); });
    case ToAgent::kSplitGuest:
    case ToAgent::kEndSplit:
    case ToAgent::kPrepareSub:
    case ToAgent::kStartSub:
    case ToAgent::kPrepareStore:
    case ToAgent::kStartStore:
    case ToAgent::kDropStore:  // were done above
    case ToAgent::MESSAGE_NOT_SET:
      return spdlog::warn("the control plane sent a message of a kind that this version does not know");
  }
}

void Agent::on_registered(const controlplane::v1::Registered& registered) {
  for (const auto& vm : all_vms()) {
    vm->on_registered();
  }
  for (const auto& decided : registered.outcomes()) {
    outcome(decided, [](const AgentResult&) {});
  }
  for (const auto& owned : registered.vms()) {
    if (const auto vm = vm_of(owned.uuid()); vm && !owned.here()) {
      vm->fence(owned.ownership());
    }
  }
}

void Agent::start_vm(const ToAgent& message) {
  const auto& command = message.start_vm();
  const auto reply = reply_to(message.id());
  auto record = record_of(command.definition(), command.image_id(), command.ownership(), command.epoch(),
                          tracker_for(command.tracker(), config_));
  if (!record) {
    return reply(std::unexpected(record.error()));
  }
  auto vm = add_vm(std::move(*record));
  vm ? (*vm)->start(reply) : reply(std::unexpected(vm.error()));
}

void Agent::attach_vm(const ToAgent& message) {
  const auto& command = message.attach_vm();
  const auto reply = reply_to(message.id());
  auto record = record_of(command.definition(), command.image_id(), command.ownership(), command.epoch(),
                          tracker_for(command.tracker(), config_));
  if (!record) {
    return reply(std::unexpected(record.error()));
  }
  record->qmp_path = command.qmp_socket();
  auto vm = add_vm(std::move(*record));
  vm ? (*vm)->attach(reply) : reply(std::unexpected(vm.error()));
}

void Agent::prepare_destination(const ToAgent& message) {
  const auto& command = message.prepare_destination();
  const auto reply = reply_to(message.id());
  auto record = record_of(command.definition(), command.image_id(), command.ownership(), command.epoch_base(),
                          tracker_for(command.tracker(), config_));
  const auto migration = Id128::from_bytes(command.migration_id());
  if (!record || !migration || migration->is_nil()) {
    return reply(std::unexpected(
        record ? make_error(Error::BAD_REQUEST, "PrepareDestination: migration_id is not 16 bytes") : record.error()));
  }
  record->migration = MigrationRecord{*migration, MigrationRole::kDestination, MigrationPhase::kPreparing, 0};
  auto vm = add_vm(std::move(*record));
  vm ? (*vm)->prepare_destination(command, reply) : reply(std::unexpected(vm.error()));
}

void Agent::outcome(const controlplane::v1::Outcome& outcome, Reply reply) {
  if (const auto vm = vm_of_migration(outcome.migration_id())) {
    return vm->outcome(outcome, std::move(reply));
  }
  std::optional<FromAgent> last_word;
  {
    const std::lock_guard lock(mutex_);
    const auto found = last_words_.find(outcome.migration_id());
    if (found != last_words_.end()) {
      last_word = found->second;
    }
  }
  if (last_word) {
    // Whoever asks twice gets the same answer.
    session_->send(std::move(*last_word), ControlSession::Delivery::kThisStream);
    return reply(AgentReply());
  }
  if (outcome.state() == controlplane::v1::COMMITTED || outcome.state() == controlplane::v1::PULLING) {
    return reply(std::unexpected(make_error(Error::NO_SUCH_MIGRATION, "Outcome: no such migration on this host")));
  }
  reply(AgentReply());  // nothing of it is here: that is what ABORTED asks for
}

void Agent::drop_image(const ToAgent& message) {
  if (const auto vm = vm_of(message.drop_image().id().vm_uuid()); vm && vm->running().has_paging()) {
    return reply_to(message.id())(std::unexpected(
        make_error(Error::BAD_REQUEST, "DropImage: the VM, which runs elsewhere, still needs pages of this image")));
  }
  dataplane::v1::ToDataplane request;
  *request.mutable_drop_image()->mutable_id() = message.drop_image().id();
  housekeeping_.post([this, request = std::move(request), reply = reply_to(message.id())]() mutable {
    auto dropped = dataplane_->call(std::move(request));
    reply(dropped ? AgentResult(AgentReply()) : std::unexpected(dropped.error()));
    beat();
  });
}

}  // namespace godwit::bridge
