#pragma once
// Inside of the simulation of one attempt: its state and steps. Private to transfer_attempt.cpp and
// transfer_postcopy.cpp.

#include <deque>
#include <optional>
#include <set>

#include "tests/simulation/paging_model.h"
#include "tests/simulation/transfer_attempt.h"

namespace godwit::simulation {

inline constexpr Instant kStart{1'000'000'000};

class Recorder final : public transfer::MigrationEvents {
 public:
  explicit Recorder(ModelMemory* freeze_on_failure) : memory_(freeze_on_failure) {}
  void on_ready_to_switch(Duration) override { ++ready; }
  void on_source_done(const transfer::Stats&) override { ++done; }
  void on_device_state(std::span<const std::byte> bytes, bool end) override {
    state.insert(state.end(), bytes.begin(), bytes.end());
    ended += end ? 1 : 0;
  }
  void on_memory_ready(std::uint64_t) override { ++memory_ready; }
  void on_failed(transfer::Failure, const std::string& text) override {
    ++failed;
    failure = text;
    if (memory_ != nullptr) {
      memory_->freeze();
    }
  }
  void on_connection_lost(const std::string&) override { ++lost; }
  void on_complete(const transfer::Stats& s, bool e) override {
    ++complete;
    equal = e;
    stats = s;
  }
  int ready = 0, done = 0, ended = 0, memory_ready = 0, failed = 0, lost = 0, complete = 0;
  bool equal = false;
  transfer::Stats stats;
  std::string failure;
  std::vector<std::byte> state;

 private:
  ModelMemory* memory_;
};

/// Stands between a lane and its user, and sees what is asked for.
class Watch final : public transport::LaneUser {
 public:
  Watch(transport::LaneUser& user, Verdict& verdict) : user_(user), verdict_(verdict) {}
  bool next_work(std::uint16_t lane, transport::Work& out) override { return user_.next_work(lane, out); }
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) override {
    user_.read_page(page, offset, out);
  }
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool hash_in_tag) override {
    return user_.page_in_place(page, hash_in_tag);
  }
  [[nodiscard]] bool wants_hash(pages::PageNumber page, std::uint32_t offset) const override {
    return user_.wants_hash(page, offset);
  }
  void note_sent(pages::PageNumber page, pages::PageHash hash) override { user_.note_sent(page, hash); }
  void on_acknowledged(const transport::Work& work) override { user_.on_acknowledged(work); }
  void on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
               std::span<const std::byte> bytes) override {
    user_.on_page(lane, round, page, offset, bytes);
  }
  void on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count) override {
    user_.on_zero_run(lane, round, first, count);
  }
  void on_message(std::span<const std::byte> message) override;

 private:
  transport::LaneUser& user_;
  Verdict& verdict_;
  std::set<pages::PageNumber> asked_;
};

/// One end: its object, lanes and worker. `End` is Source or Destination.
template <class End>
struct Side {
  std::unique_ptr<End> end;
  std::vector<std::unique_ptr<transfer::Share>> shares;
  std::optional<Watch> watch;  // of the priority lane
  std::vector<std::unique_ptr<transport::Lane>> lanes;
  std::size_t link_base = 0;
  std::unique_ptr<ModelExecutor> executor;
  Clock clock;
  struct Waiting {
    std::size_t lane;
    std::vector<std::byte> bytes;
  };
  std::deque<Waiting> inbox;
  Instant paused_until{}, reads_from{};

  /// Of the lcore that owns bulk lane `lane`; null: the home lcore.
  [[nodiscard]] transfer::Share* share_of(std::size_t lane) const {
    const std::size_t lcore = lane == 0 ? 0 : (lane - 1) % (shares.size() + 1);
    return lcore == 0 ? nullptr : shares[lcore - 1].get();
  }
  void make_shares(const Script& script) {
    for (std::uint32_t lcore = 1; lcore < script.lcores; ++lcore) {
      if constexpr (std::is_same_v<End, transfer::Source>) {
        std::vector<std::uint16_t> mine;
        for (std::uint32_t lane = 1 + lcore; lane <= script.bulk_lanes; lane += script.lcores) {
          mine.push_back(static_cast<std::uint16_t>(lane));
        }
        shares.push_back(end->make_share(mine));
      } else {
        shares.push_back(end->make_share());
      }
    }
  }
  void make_lanes(const Script& script, bool initiator, std::byte secret, Instant now, Verdict& verdict) {
    make_shares(script);
    watch.emplace(*end, verdict);
    for (std::uint32_t i = 0; i <= script.bulk_lanes; ++i) {
      transport::LaneConfig config;
      config.local_flow_id = initiator ? 0x1001 : 0x2002;
      config.peer_flow_id = initiator ? 0x2002 : 0x1001;
      config.lane = static_cast<std::uint16_t>(i);
      config.initiator = initiator;
      config.secret.fill(secret);
      config.datagram_bytes_max = script.datagram_bytes_max;
      config.cipher = script.cipher;
      transfer::Share* const share = share_of(i);
      transport::LaneUser* const user = i == 0             ? &*watch
                                        : share != nullptr ? share
                                                           : static_cast<transport::LaneUser*>(end.get());
      lanes.push_back(std::make_unique<transport::Lane>(config, *user, clock.local(now)));
    }
  }
  [[nodiscard]] std::vector<transport::Lane*> pointers() const {
    std::vector<transport::Lane*> result;
    for (const auto& lane : lanes) {
      result.push_back(lane.get());
    }
    return result;
  }
  [[nodiscard]] Instant deadline() const {
    if (!end) {
      return executor->next();
    }
    Instant at = end->deadline();
    for (const auto& lane : lanes) {
      at = std::min(at, lane->deadline());
    }
    // While it is paused, its jobs run all the same.
    at = std::max(clock.world(at), paused_until);
    const Instant reads = inbox.empty() ? kNever : std::max(reads_from, paused_until);
    return std::min({at, reads, executor->next()});
  }
  void drop_lanes() {
    inbox.clear();
    lanes.clear();
    shares.clear();
  }
  void kill() {
    drop_lanes();
    end.reset();
  }
};

class Attempt {
 public:
  Attempt(AttemptInput& input, const Script& script, Random& random, std::vector<Recorded>& recorded, bool trace);
  AttemptResult run();

 private:
  void step();
  template <class S>
  bool turn(S& side);
  template <class S>
  bool read(S& side);
  void receive();
  void arrive(bool to_destination, std::size_t lane, std::vector<std::byte> bytes);
  void faults();
  void send(std::size_t link, std::span<const std::byte> datagram);
  void guest_writes();
  [[nodiscard]] bool guest_runs() const { return bridge_ == Bridge::kRunning || bridge_ == Bridge::kStopping; }
  void bridge();
  void disturb();
  void check();
  void check_loss();
  [[nodiscard]] bool over() const;
  [[nodiscard]] Instant next_event() const;
  void finish(AttemptResult& result);

  // ---- transfer_postcopy.cpp ----
  /// The guest may run at the destination, which has not everything.
  [[nodiscard]] bool pulling() const { return vcpus_.has_value(); }
  void note_paging();
  void postcopy();
  void settle();
  void decide();
  void disturb_pulling();
  void break_something();
  void restart_source();
  void restart_destination();
  void reconnect();
  void check_pulling();
  void check_complete();
  [[nodiscard]] Instant next_postcopy_event() const;
  void violation(const char* rule, const std::string& text) { verdict_.require(false, rule, text); }

  AttemptInput& input_;
  const Script& script_;
  Random& random_;
  std::vector<Recorded>& recorded_;
  const bool trace_;
  Network network_;
  Verdict verdict_;
  Recorder source_events_{nullptr};
  Recorder destination_events_;
  Side<transfer::Source> source_;
  Side<transfer::Destination> destination_;
  Instant now_ = kStart;
  Instant write_at_ = kStart, bridge_at_ = kNever, disturb_at_ = kNever;
  enum class Bridge : std::uint8_t { kRunning, kStopping, kStreaming, kEnded } bridge_ = Bridge::kRunning;
  std::vector<std::byte> stream_;
  std::size_t streamed_ = 0;
  bool compared_ = false, disturbed_ = false, source_killed_ = false, destination_killed_ = false;
  std::uint32_t epoch_next_ = 0;
  bool healed_ = false;
  Instant disturbed_at_ = kNever;
  std::uint64_t trace_hash_ = 0xcbf29ce484222325;

  // ---- post-copy ----
  std::optional<StoresModel> stores_;
  PagingModel paging_;
  std::optional<Vcpus> vcpus_;
  pages::GenerationTable table_at_ready_;
  Instant switch_at_ = kNever, decide_at_ = kNever, vcpu_at_ = kNever, break_at_ = kNever, heal_at_ = kNever,
          reconnect_at_ = kNever;
  bool committed_ = false, aborted_ = false;
  bool cut_ = false, broken_ = false;  // now; ever
  std::uint32_t breaks_left_ = 0, connections_ = 0;
  int lost_handled_ = 0;
};

}  // namespace godwit::simulation
