#pragma once
// The migrations: the state machine of docs/architecture.md, driven by what agents answer and report, and by timeouts.
// Thread: the coordinator's lock is held in every call; nothing here blocks but the store (one fsync a transition).
// The rules of which all follow:
//  * A transition counts when the store has it; only then is anybody told. A store that fails leaves the migration
//    undecided, both guests paused at worst, and is asked again.
//  * Before COMMITTED each failure is ABORTED: an error reply, FAILED, a timeout, a lost host. Three exceptions wait:
//    one that is held no host has heard of, in TRANSFERRING a host may come back within timeouts.host_heartbeat, and in
//    SWITCHING a lost source changes nothing, as LOADED says that the destination has all of the guest.
//  * An outcome is told until both sides confirm that it is in effect, after each registration again, across restarts.
//  * PULLING is decided, but not the end: whose the VM is is settled, and the source still holds pages that it needs.
//  It
//    ends in COMMITTED when the destination's bridge says that all are there, in INCOMPLETE when the guest has ended
//    before; nothing else ends it, neither time nor a restart of anybody. While a side is not connected to the other
//    the flow is begun again, without end: new endpoints of both, a new secret, each time. Where pages cannot be had
//    any more (their host was rebooted) the note says so, and the operator decides (stop).
//  * Of one that keeps the VM's page stores they are the destination's with the commit, in one transition; whoever has
//    them in mind is told at once (MainPartHooks), and nobody begins anything with them before (main_part).
//  * Events that name a decided migration are answered by its outcome; those that name another migration than a host's
//    own are ignored.

#include <expected>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "config/controlplane_config.h"
#include "controlplane/service/hosts.h"
#include "controlplane/service/migration_figures.h"
#include "controlplane/store/store.h"

namespace godwit::controlplane {

class Migrations {
 public:
  Migrations(Store& store, Hosts& hosts, Timers& timers, const config::TimeoutConfig& timeouts);

  /// After a start of the control plane: nobody is there to drive what was not decided, so it is ABORTED. What is
  /// PULLING goes on.
  std::expected<void, StoreError> take_up_interrupted();
  /// Before the control plane ends: from here on nothing is decided, as after a crash; the next start does that.
  void freeze();

  /// From a plan that the planner has let pass. `held`: no host hears of it before go_on().
  std::expected<Id128, StoreError> begin(const api::Plan& plan, const VmRecord& vm, bool held);
  struct Held {
    Id128 id, vm_uuid;
    api::Plan plan;
  };
  [[nodiscard]] std::vector<Held> all_held() const;
  /// What one that is held waits for.
  void waits_for(const Id128& id, const std::string& what);
  void go_on(const Id128& id);
  /// Of those whose main part moves: the VMs.
  [[nodiscard]] std::vector<Id128> moving_main_parts() const;
  /// What holds up one of these; "": nothing does.
  void held_up(const Id128& vm_uuid, const std::string& by);
  std::expected<void, ServiceError> cancel(const Id128& id, const std::string& reason);
  /// What split VMs ask of those that keep their stores.
  struct MainPartHooks {
    /// What the destination is to be told of the split; none: it is not split.
    std::function<std::optional<api::SplitGuest>(const MigrationRecord&)> split_there;
    std::function<void(const MigrationRecord&)> moved;  // it is committed
  };
  /// Before anything is begun.
  void set_main_part_hooks(MainPartHooks hooks) { main_part_ = std::move(hooks); }
  enum class MainPart : std::uint8_t { kStays, kWaits, kMoves };
  /// Whether a migration that keeps its stores has the VM: waits to begin, or has begun and is not committed.
  [[nodiscard]] MainPart main_part(const Id128& vm_uuid) const;
  using Done = std::function<void(std::expected<void, ServiceError>)>;
  /// Ends the rounds of a migration that transfers; `done` once the source has taken it.
  void switch_to_postcopy(const Id128& id, Done done);

  void handle_event(const std::string& host, const api::MigrationEvent& event);
  void answer_outcome(const std::string& host, const std::string& migration_id);
  /// The outcomes that the host has not confirmed: goes into Registered.
  [[nodiscard]] std::vector<api::Outcome> outcomes_for(const std::string& host);
  /// After Registered was sent.
  void host_registered(const std::string& host);
  /// The host has told how it stands.
  void host_reported(const std::string& host);
  /// The VM was stopped, and nobody runs it: nobody needs what it lacked.
  void vm_stopped(const Id128& vm_uuid);
  void host_lost(const std::string& host);

  [[nodiscard]] std::expected<std::vector<api::Migration>, StoreError> list(bool active_only);
  /// The present state goes to the watcher at once, then each change until it has ended.
  std::expected<void, ServiceError> watch(const Id128& id, std::shared_ptr<MigrationWatcher> watcher);
  void unwatch(const Id128& id, const MigrationWatcher* watcher);

  /// The migration that this VM is in, decided but not ended ones too.
  [[nodiscard]] std::optional<Id128> of_vm(const Id128& vm_uuid) const;
  /// Its record, if that is PULLING. Valid until the next call.
  [[nodiscard]] const MigrationRecord* pulling(const Id128& vm_uuid) const;
  /// Of one that is PULLING: pages come.
  [[nodiscard]] bool pages_flow(const Id128& vm_uuid) const;
  [[nodiscard]] bool uses_image(const std::string& host, const Id128& vm_uuid) const;
  [[nodiscard]] std::vector<api::Migration> all_pulling() const;
  /// How many are in each state that have not ended.
  [[nodiscard]] std::map<api::MigrationState, std::uint64_t> active_by_state() const;
  [[nodiscard]] const MigrationFigures& ended() const { return ended_; }

 private:
  enum class Step : std::uint8_t {
    kHeld,
    kPreparingSource,
    kPreparingDestination,
    kStartingDestination,
    kStartingSource,
    kTransferring,
    kSwitching,
    kPulling,
    kSettling,  // decided; waits for both sides' confirmation
  };
  struct Side {
    bool told = false;                          // has been sent a command of this migration
    bool replied = false;                       // to the outcome
    bool failed = false;                        // has said so
    bool holds = false;                         // PULLING: its bridge names the migration
    std::optional<dpapi::PagingStatus> paging;  // PULLING: as it last told; none: it has not obeyed yet, or is lost
  };
  /// Of the flow of a migration that is PULLING.
  enum class Resume : std::uint8_t {
    kIdle,
    kUnderWay,
    kWaiting,  // a while after each attempt: reports of before it may still come, and a failure is not repeated at once
  };
  struct Active {
    MigrationRecord record;
    Step step = Step::kPreparingSource;
    Side source, destination;
    api::VmDefinition definition;
    api::SourcePrepared source_prepared;
    dpapi::Endpoint source_endpoint, destination_endpoint;
    std::string secret;
    std::string planned_image;  // 16 bytes, "" = none
    bool ready = false;         // READY_TO_SWITCH came, but the destination was not connected
    std::string note;
    bool pulled = false;  // was or is PULLING
    Resume resume = Resume::kIdle;
    Duration resume_pause{};     // before the next attempt; grows with failures
    std::string resume_problem;  // why no pages flow, as the last attempt met it; "" = none
    std::string cut_reason;      // why the last flow ended
    /// Missing when the flow was begun again. Either side takes a flow for connected from its beginning, whether it
    /// hears the other or not: pages flow once less is missing.
    std::optional<std::uint64_t> missing_at_resume;
    Timers::Id timer = Timers::kNone;          // of the step
    Timers::Id absence_timer = Timers::kNone;  // of a lost host
    Timers::Id resume_timer = Timers::kNone;   // of Resume::kWaiting
    Timers::Id source_timer = Timers::kNone;   // of a commit that the source has not been told
    std::vector<std::shared_ptr<MigrationWatcher>> watchers;
  };

  void prepare_source(Active& m);
  void prepare_destination(Active& m);
  void destination_prepared(Active& m, const api::DestinationPrepared& prepared);
  void start_destination(Active& m);
  void start_source(Active& m);
  void switch_over(Active& m);
  void send_switch(Active& m);

  /// Sends a command whose failure aborts, and goes on with `next` if the migration is still in the step it is in now.
  void command(Active& m, const std::string& host, api::ToAgent message, Duration timeout, const char* doing,
               std::function<void(Active&, const api::AgentReply&)> next);
  /// True if the store has the new state; else the migration has been aborted, or is as the store says.
  bool advance(Active& m, api::MigrationState next);
  void decide(Active& m, api::MigrationState outcome, const std::string& reason);
  void announce(Active& m);
  void tell_outcome(const MigrationRecord& record, bool source);
  void tell_source(Active& m);
  void outcome_answered(const Id128& id, bool source, const std::expected<api::AgentReply, ServiceError>& answer);
  void settle(const Id128& id, bool source, const std::string& note);
  void update_view(const MigrationRecord& record, bool source);
  void end_if_settled(Active& m);
  void end(Active& m);
  void take_facts(MigrationRecord& record, bool source, const api::MigrationEvent& event);
  void handle_failure(Active& m, bool source, const api::MigrationEvent& event);
  void handle_late_event(const std::string& host, const Id128& id, const api::MigrationEvent& event);
  void handle_active_event(Active& m, bool source, const api::MigrationEvent& event);

  // migration_pulls.cpp
  void take_up(MigrationRecord record);
  void take_paging(Active& m, bool source);
  void look_after_pull(Active& m);
  [[nodiscard]] std::string pull_note(const Active& m) const;
  [[nodiscard]] static bool connected(const Active& m);
  [[nodiscard]] static bool flows(const Active& m);
  void resume(Active& m);
  void resume_source(Active& m, const dpapi::Endpoint& destination);
  void resume_destination(Active& m, const dpapi::Endpoint& destination, const dpapi::Endpoint& source);
  void resume_request(Active& m, bool source, api::ToAgent message, const char* doing,
                      std::function<void(Active&, const api::AgentReply&)> next);
  void resume_ended(Active& m, const std::string& problem);

  void notify(Active& m);
  [[nodiscard]] api::Migration shown(const Active& m) const;
  [[nodiscard]] Active* find(const Id128& id);
  [[nodiscard]] bool connected(const std::string& host) const;
  void arm(Active& m, Timers::Id& timer, Duration after, std::function<void(Active&)> function);

  Store& store_;
  Hosts& hosts_;
  Timers& timers_;
  const config::TimeoutConfig timeouts_;
  std::map<Id128, std::unique_ptr<Active>> active_;
  MigrationFigures ended_;
  MainPartHooks main_part_;
  bool frozen_ = false;
};

[[nodiscard]] api::Migration to_api(const MigrationRecord& record);
[[nodiscard]] api::Outcome outcome_of(const MigrationRecord& record);
/// What the destination lacks, as last told: "1234 pages (4.8 MiB)".
[[nodiscard]] std::string missing_text(const MigrationRecord& record);
/// 32 random bytes, for the keys of one flow.
[[nodiscard]] std::string draw_secret();

}  // namespace godwit::controlplane
