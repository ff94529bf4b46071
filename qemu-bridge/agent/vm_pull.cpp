// Vm's part while pages are missing at the destination of a migration: what the store's PULLING asks of either end, and
// what comes after it. See pull.h.
#include <spdlog/spdlog.h>

#include <filesystem>

#include "qemu-bridge/agent/definition.h"
#include "qemu-bridge/agent/vm.h"

namespace godwit::bridge {

using controlplane::v1::AgentReply;
using controlplane::v1::MigrationEvent;

namespace {

std::unexpected<dataplane::v1::Error> not_here(const char* command) {
  return std::unexpected(make_error(dataplane::v1::Error::NO_SUCH_MIGRATION,
                                    std::string(command) + ": this migration is not under way here, or not so far"));
}

MigrationEvent event_of(const MigrationRecord& migration, MigrationEvent::Kind kind) {
  MigrationEvent event;
  event.set_migration_id(migration.id.to_bytes());
  event.set_kind(kind);
  return event;
}

}  // namespace

void Vm::switch_to_postcopy(Reply reply) {
  run_command(
      [this]() -> AgentResult {
        if (!source_) {
          return not_here("SwitchToPostcopy");
        }
        const auto switched = source_->switch_to_postcopy();
        return switched ? AgentResult(AgentReply()) : std::unexpected(switched.error());
      },
      std::move(reply));
}

void Vm::prepare_resume(const controlplane::v1::PrepareResume& command, Reply reply) {
  run_command([this, command] { return do_prepare_resume(command); }, std::move(reply));
}

void Vm::resume_transfer(const controlplane::v1::ResumeTransfer& command, Reply reply) {
  run_command([this, command] { return do_resume_transfer(command); }, std::move(reply));
}

bool Vm::serves_or_pulls() const { return record_.migration && record_.migration->phase == MigrationPhase::kPulling; }

/// The guest is another host's still.
bool Vm::arrives() const {
  return record_.migration && !is_source() && !serves_or_pulls() &&
         record_.migration->phase != MigrationPhase::kCommitted;
}

/// The store's word makes the guest ours, whether QEMU has answered or not. A data plane that has been restarted hears
/// of the guest now: QEMU may wait for a page.
void Vm::own_guest(std::uint64_t ownership, MigrationPhase phase) {
  record_.ownership = ownership;
  record_.migration->ownership_after = ownership;
  record_.migration->phase = phase;
  static_cast<void>(save());  // if not: a new bridge asks for the word again
  reattach();
}

bool Vm::is_source() const { return record_.migration && record_.migration->role == MigrationRole::kSource; }

/// Its QEMU may wait for a page in its own thread, and then its monitor answers only once a data plane has given it.
bool Vm::may_lack_pages() const {
  return is_alive(record_.process) && (record_.split || (serves_or_pulls() && !is_source()));
}

/// The data plane may be a new process that knows nothing of our guest.
void Vm::reattach() {
  if ((!qmp_ && !may_lack_pages()) || arrives() || over_ || !services_.dataplane.hello()) {
    return;
  }
  if (record_.backends.empty()) {
    // A restarted bridge cannot inspect a QEMU that still saves its state.
    if (!qmp_) {
      return;
    }
    if (auto facts = inspect(); !facts) {
      spdlog::error("VM {}: {}", record_.definition.name, facts.error().text());
      return;
    }
  }
  if (const auto known = find_attached(); known && !known->attaching()) {
    attached_.set_tracker(known->tracker());
    publish();
    if (!is_source() || known->migration_id().empty()) {
      take_up_split();  // else its split rests until the migration has ended
    }
    return;
  }
  const Paging paging{.on_demand = serves_or_pulls() && !is_source(), .evictable = record_.evictable};
  if (auto attachment = attach_memory(dataplane::v1::AttachGuest::CONTINUING, paging); !attachment) {
    spdlog::error("VM {}: cannot be attached to the data plane again: {}", record_.definition.name,
                  text_of(attachment.error()));
  } else {
    spdlog::info("VM {}: attached to the data plane again{}{}", record_.definition.name,
                 attachment->result.history_lost() ? "; history lost: " : "", attachment->result.history_reason());
    take_up_split();
  }
}

// ---- before anything is touched
// --------------------------------------------------------------------------------------

/// After the commit the RAM must outlive QEMU, and our data plane's process: it needs a name.
std::expected<void, dataplane::v1::Error> Vm::check_can_serve() const {
  for (const auto& backend : record_.backends) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(backend.mem_path, error)) {
      return std::unexpected(
          make_error(Error::BAD_REQUEST,
                     "RAM backend '" + backend.id +
                         "' has no file of its own that outlives QEMU, so its pages cannot be served after the "
                         "switch: use mode precopy, or memory-backend-file with mem-path naming a file"));
    }
  }
  return {};
}

std::expected<void, dataplane::v1::Error> Vm::check_can_page() const {
  const auto hello = services_.dataplane.hello();
  if (!hello) {
    return std::unexpected(make_error(Error::INTERNAL, "the data plane on this host is down"));
  }
  if (!hello->postcopy()) {
    const std::string why = hello->postcopy_refusal();
    return std::unexpected(make_error(Error::BAD_REQUEST, "this host cannot be the destination of post-copy: " +
                                                              (why.empty() ? "its data plane does not offer it" : why) +
                                                              "; or use mode precopy"));
  }
  return {};
}

// ---- the store's word
// ------------------------------------------------------------------------------------------------

AgentResult Vm::settle_pulling(std::uint64_t ownership) {
  switch (decided_->state()) {
    case controlplane::v1::PULLING:
      if (pull_ && handed_over_ && (!is_source() || (record_.process.pid < 0 && pull_->secured()))) {
        emit(*handed_over_);
        return AgentReply();
      }
      return is_source() ? serve(ownership) : pull(ownership);
    case controlplane::v1::COMMITTED:
      return finish_pull(true);
    case controlplane::v1::INCOMPLETE:
      return finish_pull(false);
    default:
      return std::unexpected(make_error(Error::INTERNAL, "an outcome that cannot follow PULLING"));
  }
}

/// The source: QEMU goes, its memory stays and serves.
AgentResult Vm::serve(std::uint64_t ownership) {
  if (!serves_or_pulls()) {
    record_.migration->phase = MigrationPhase::kPulling;
    record_.migration->ownership_after = ownership;
    record_.split.reset();  // another host is its main host now
    if (auto saved = save(); !saved) {
      record_.migration->phase = MigrationPhase::kSwitching;
      return std::unexpected(saved.error());  // the guest stays paused
    }
  }
  if (!handed_over_) {
    watch_.reset();  // its end is our doing
    if (!source_) {
      make_migration();
    }
    handed_over_ = source_ ? source_->hand_over() : event_of(*record_.migration, MigrationEvent::RETIRED);
  }
  make_pull();
  if (!pull_->secured()) {
    const auto committed = pull_->commit(ownership);
    if (!committed) {
      // QEMU stays: it may be the only one that holds this memory.
      return std::unexpected(committed.error());
    }
    *handed_over_->mutable_stats() = committed->stats();
  }
  release_qemu();
  return AgentReply();
}

/// The memory serves without it. Killed, not asked to quit: its own clean-up may write to the RAM files.
void Vm::release_qemu() {
  drop_migration();
  watch_.reset();
  qmp_.reset();
  if (record_.process.pid > 0) {
    end_process(record_.process, std::chrono::milliseconds(0));
    record_.process = {};
  }
  remove_pin();
  {
    const std::lock_guard lock(summary_mutex_);
    run_state_ = "serving";
  }
  static_cast<void>(save());  // if not: the next bridge finds no such process
  if (handed_over_) {
    handed_over_->set_text("QEMU ended; its memory serves the guest");
    emit(*handed_over_);
  }
}

/// The destination: the guest runs, and fetches what it lacks.
AgentResult Vm::pull(std::uint64_t ownership) {
  if (!qmp_) {
    return std::unexpected(make_error(Error::INTERNAL, "QEMU's monitor is not connected"));
  }
  if (!destination_) {
    make_migration();
  }
  make_pull();
  auto event = destination_->commit(ownership, *pull_, [&] { own_guest(ownership, MigrationPhase::kPulling); });
  if (!destination_->resumed()) {
    auto error = event.error();
    emit_failure(std::move(event), "committed here: tried again each second");
    return std::unexpected(std::move(error));
  }
  record_.migration->continued = true;
  drop_migration();
  static_cast<void>(save());
  handed_over_ = event;
  emit(std::move(event));
  return AgentReply();
}

/// All pages are at the destination; or nobody needs them any more.
AgentResult Vm::finish_pull(bool complete) {
  make_pull();
  if (!is_source() && !complete) {
    end_qemu();
  }
  const auto finished = pull_->finish(complete ? dataplane::v1::OUTCOME_COMMITTED : dataplane::v1::OUTCOME_ABANDONED);
  if (!finished && finished.error().code() != Error::NO_SUCH_MIGRATION) {
    return std::unexpected(finished.error());
  }
  auto event = event_of(*record_.migration, MigrationEvent::RETIRED);
  const bool source = is_source();
  drop_migration();
  drop_pull();
  handed_over_.reset();
  if (!source && complete) {
    record_.epoch = std::max(record_.epoch, finished ? finished->epoch_next() : 0);
    record_.migration.reset();
    static_cast<void>(save());
    reattach();  // a data plane that had finished and was restarted refuses the guest as one that lacks pages
    return AgentReply();
  }
  if (source) {
    watch_.reset();
    qmp_.reset();
    if (record_.process.pid > 0) {
      end_process(record_.process, std::chrono::milliseconds(0));
    }
    event.set_text(!finished                    ? "image not retained: " + finished.error().text()
                   : finished->image_retained() ? "image retained"
                                                : "image not retained: " + finished->image_reason());
  } else {
    detach_guest();
  }
  if (finished && !finished->image_retained()) {
    remove_files();
  }
  record_.migration.reset();
  over_ = true;
  gone();
  emit(std::move(event));
  return AgentReply();
}

// ---- a flow that comes again
// -----------------------------------------------------------------------------------------

AgentResult Vm::do_prepare_resume(const controlplane::v1::PrepareResume& command) {
  if (!pull_) {
    return not_here("PrepareResume");
  }
  reattach();
  if (!pull_->secured()) {
    // The word may not have reached a data plane that runs on: nothing goes on there before it.
    if (const auto committed = pull_->commit(record_.migration->ownership_after)) {
      record_.epoch = std::max(record_.epoch, committed->epoch_next());
    } else if (committed.error().code() != Error::NO_SUCH_MIGRATION) {
      return std::unexpected(committed.error());
    }
  }
  auto prepared = pull_->prepare_resume(command.encryption());
  if (!prepared) {
    return std::unexpected(prepared.error());
  }
  if (is_source() && (record_.process.pid > 0 || decided_)) {
    release_qemu();
    decided_.reset();  // the word PULLING is in effect now
  }
  AgentReply reply;
  *reply.mutable_resume_prepared()->mutable_endpoint() = prepared->endpoint();
  reply.mutable_resume_prepared()->set_pages_missing(prepared->pages_missing());
  return reply;
}

AgentResult Vm::do_resume_transfer(const controlplane::v1::ResumeTransfer& command) {
  if (!pull_) {
    return not_here("ResumeTransfer");
  }
  const auto resumed = pull_->resume(command);
  return resumed ? AgentResult(AgentReply()) : std::unexpected(resumed.error());
}

// ---- restarts and deaths
// ---------------------------------------------------------------------------------------------

/// What an earlier run of this bridge had brought so far.
void Vm::recover_pull() {
  make_pull();
  if (!is_source()) {
    static_cast<void>(pull_->look());
    if (!record_.migration->continued) {
      decided_.emplace().set_state(controlplane::v1::PULLING);
      decided_->set_ownership(record_.migration->ownership_after);
      static_cast<void>(settle());
    } else if (!handed_over_) {
      handed_over_ = event_of(*record_.migration, MigrationEvent::RESUMED);
    }
    return;
  }
  if (record_.process.pid > 0 && !is_alive(record_.process)) {
    record_.process = {};
  }
  if (record_.process.pid < 0) {
    const std::lock_guard lock(summary_mutex_);
    run_state_ = "serving";
  }
  static_cast<void>(pull_->look());
  decided_.emplace().set_state(controlplane::v1::PULLING);
  decided_->set_ownership(record_.migration->ownership_after);
  if (pull_->secured() || record_.process.pid < 0) {
    static_cast<void>(settle());  // else its monitor comes first; tried again each second
  }
}

/// The source's QEMU has gone by itself after the destination may have been told to run without all of its pages: the
/// memory is kept until the store says what it is for.
bool Vm::outlive_qemu(const std::string& why) {
  const bool in_switch =
      record_.migration && record_.migration->may_pull && record_.migration->phase == MigrationPhase::kSwitching;
  if (!is_source() || !(in_switch || serves_or_pulls())) {
    return false;
  }
  if (in_switch) {
    fail_migration(why);
  }
  drop_migration();
  watch_.reset();
  qmp_.reset();
  record_.process = {};
  static_cast<void>(save());
  in_doubt_ = in_switch;
  ask_outcome();
  return true;
}

void Vm::settle_without_qemu(bool committed, std::uint64_t ownership) {
  const auto finished =
      finish_migration(services_.dataplane, record_.migration->id,
                       committed ? dataplane::v1::OUTCOME_COMMITTED : dataplane::v1::OUTCOME_ABORTED, ownership);
  detach_guest();
  if (finished && !finished->image_retained()) {
    remove_files();
  }
  auto event = event_of(*record_.migration, committed ? MigrationEvent::RETIRED : MigrationEvent::FAILED);
  if (!committed) {
    *event.mutable_error() = make_error(Error::INTERNAL, "QEMU of this VM has exited");
  }
  record_.migration.reset();
  over_ = true;
  gone();
  emit(std::move(event));
}

void Vm::make_pull() {
  if (pull_) {
    return;
  }
  auto pull = std::make_shared<Pull>(
      services_.dataplane, record_, [this](MigrationEvent event) { emit(std::move(event)); }, services_.on_change);
  const std::lock_guard lock(migration_mutex_);
  pull_ = std::move(pull);
}

void Vm::drop_pull() {
  std::shared_ptr<Pull> pull;
  const std::lock_guard lock(migration_mutex_);
  pull.swap(pull_);
}

}  // namespace godwit::bridge
