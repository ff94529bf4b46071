#include "tests/simulation/transfer_attempt.h"

#include <algorithm>
#include <cstdio>

namespace godwit::simulation {
namespace {

constexpr Instant kStart{1'000'000'000};
constexpr Duration kVirtualTimeMax = milliseconds(120'000);

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
  int ready = 0, done = 0, ended = 0, memory_ready = 0, failed = 0;
  std::string failure;
  std::vector<std::byte> state;

 private:
  ModelMemory* memory_;
};

/// One end: its object, lanes and worker. `End` is Source or Destination.
template <class End>
struct Side {
  std::unique_ptr<End> end;
  std::vector<std::unique_ptr<transfer::Share>> shares;
  std::vector<std::unique_ptr<transport::Lane>> lanes;
  std::size_t link_base = 0;
  std::unique_ptr<ModelExecutor> executor;

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
  void make_lanes(const Script& script, bool initiator, Instant now) {
    make_shares(script);
    for (std::uint32_t i = 0; i <= script.bulk_lanes; ++i) {
      transport::LaneConfig config;
      config.local_flow_id = initiator ? 0x1001 : 0x2002;
      config.peer_flow_id = initiator ? 0x2002 : 0x1001;
      config.lane = static_cast<std::uint16_t>(i);
      config.initiator = initiator;
      config.secret.fill(std::byte{7});
      config.datagram_bytes_max = script.datagram_bytes_max;
      transfer::Share* const share = share_of(i);
      lanes.push_back(std::make_unique<transport::Lane>(
          config, share != nullptr ? static_cast<transport::LaneUser&>(*share) : *end, now));
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
    Instant at = std::min(end->deadline(), executor->next());
    for (const auto& lane : lanes) {
      at = std::min(at, lane->deadline());
    }
    return at;
  }
  void kill() {
    lanes.clear();
    shares.clear();
    end.reset();
  }
};

class Attempt {
 public:
  Attempt(AttemptInput& input, const Script& script, Random& random, bool trace);
  AttemptResult run();

 private:
  void step();
  template <class S>
  bool turn(S& side, bool source);
  void receive();
  void guest_writes();
  void bridge();
  void disturb();
  void check();
  [[nodiscard]] bool over() const;
  [[nodiscard]] Instant next_event() const;
  void finish(AttemptResult& result);
  void violation(const std::string& text) {
    if (violation_.empty()) {
      violation_ = text;
    }
  }

  AttemptInput& input_;
  const Script& script_;
  Random& random_;
  const bool trace_;
  Network network_;
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
  std::string violation_;
};

Attempt::Attempt(AttemptInput& input, const Script& script, Random& random, bool trace)
    : input_(input),
      script_(script),
      random_(random),
      trace_(trace),
      network_(random.next()),
      destination_events_(input.destination.memory.get()) {
  source_.executor = std::make_unique<ModelExecutor>(random_);
  destination_.executor = std::make_unique<ModelExecutor>(random_);
  std::optional<pages::GenerationTable> retained;
  if (input.has_retained) {
    retained = input.destination.table;
  }
  destination_.end = std::make_unique<transfer::Destination>(
      input.config, transfer::DestinationGuest{*input.destination.memory, std::move(retained)}, *destination_.executor,
      destination_events_);
  source_.end = std::make_unique<transfer::Source>(
      input.config, script.policy, transfer::SourceGuest{*input.source.memory, input.source.table, input.epoch_now},
      *source_.executor, source_events_);
  source_.make_lanes(script, true, now_);
  destination_.make_lanes(script, false, now_);
  for (std::uint32_t i = 0; i < 2 * (script.bulk_lanes + 1); ++i) {
    network_.add_link(script.link);  // first those from the source, then those back
  }
  source_.link_base = 0;
  destination_.link_base = script.bulk_lanes + 1;
  stream_.resize(random_.between(0, 300'000));
  for (std::byte& byte : stream_) {
    byte = static_cast<std::byte>(random_.next());
  }
  if (script.disturbance != Script::Disturbance::kNone) {
    disturb_at_ = now_ + script.disturbance_after;
  }
  source_.executor->set_now(now_);
  destination_.executor->set_now(now_);
  destination_.end->start(now_, destination_.pointers());
  source_.end->start(now_, source_.pointers());
}

void Attempt::receive() {
  while (auto delivered = network_.receive(now_)) {
    const bool to_destination = delivered->link < destination_.link_base;
    const std::size_t lane = delivered->link % destination_.link_base;
    if (to_destination ? destination_.end == nullptr : source_.end == nullptr) {
      continue;
    }
    auto& lanes = to_destination ? destination_.lanes : source_.lanes;
    lanes[lane]->on_packet(now_, delivered->bytes);
    if (to_destination) {
      // Bytes of a packet are valid until flush: bursts of one.
      destination_.end->flush(now_);
      for (const auto& share : destination_.shares) {
        share->flush();
      }
    }
  }
}

/// Timers and transmission of one side; true if anything was done.
template <class S>
bool Attempt::turn(S& side, bool) {
  side.executor->run(now_);
  if (!side.end) {
    return false;
  }
  // Lcores run at their own pace: sometimes the home lcore looks later.
  bool busy = !side.shares.empty() && (random_.below(4) == 0 || side.end->pump());
  if (side.end->deadline() <= now_) {
    side.end->tick(now_);
    busy = true;
  }
  std::array<std::byte, 9216> buffer;
  for (std::size_t i = 0; i < side.lanes.size(); ++i) {
    transport::Lane& lane = *side.lanes[i];
    if (lane.deadline() <= now_) {
      lane.tick(now_);
    }
    transfer::Share* const share = side.share_of(i);
    if (share != nullptr && !share->flush()) {
      continue;
    }
    for (int burst = 0; burst < 32; ++burst) {
      const std::size_t length = lane.poll_transmit(now_, std::span(buffer).first(script_.datagram_bytes_max));
      if (length == 0) {
        break;
      }
      network_.send(now_, side.link_base + i, std::span(buffer).first(length));
      busy = true;
    }
  }
  return busy;
}

void Attempt::guest_writes() {
  if (now_ < write_at_) {
    return;
  }
  const bool stopped = bridge_ == Bridge::kStreaming;
  if (bridge_ != Bridge::kEnded &&
      (!stopped || random_.below(8) == 0)) {  // QEMU itself still writes a little after STOP
    random_.below(60) == 0 ? input_.source.memory->balloon(random_) : input_.source.memory->write(random_);
  }
  write_at_ = bridge_ == Bridge::kEnded
                  ? kNever
                  : now_ + microseconds(1 + static_cast<std::int64_t>(random_.below(
                                                2 * static_cast<std::uint64_t>(script_.write_interval.us()))));
}

void Attempt::bridge() {
  if (!source_.end || source_events_.failed != 0) {
    bridge_at_ = kNever;
    return;
  }
  if (bridge_ == Bridge::kRunning && source_events_.ready != 0 && bridge_at_ == kNever) {
    bridge_at_ = now_ + microseconds(static_cast<std::int64_t>(random_.below(random_.below(3) == 0 ? 200'000 : 3000)));
    bridge_ = Bridge::kStopping;
  }
  if (now_ < bridge_at_) {
    return;
  }
  if (bridge_ == Bridge::kStopping) {
    bridge_ = Bridge::kStreaming;
    source_.end->guest_stopped(now_);
    bridge_at_ = now_ + microseconds(static_cast<std::int64_t>(random_.below(5000)));
  } else if (bridge_ == Bridge::kStreaming) {
    if (streamed_ < stream_.size()) {
      const std::size_t length = std::min<std::size_t>(random_.between(1, 65536), stream_.size() - streamed_);
      if (source_.end->device_state(std::span(stream_).subspan(streamed_, length))) {
        streamed_ += length;
      }
      bridge_at_ = now_ + microseconds(static_cast<std::int64_t>(random_.between(1, 1500)));
    } else {
      bridge_ = Bridge::kEnded;
      bridge_at_ = kNever;
      source_.end->device_state_end(now_);
    }
  }
}

void Attempt::disturb() {
  if (now_ < disturb_at_ || over()) {
    return;
  }
  disturb_at_ = kNever;
  disturbed_ = true;
  using D = Script::Disturbance;
  switch (script_.disturbance) {
    case D::kNone:
      break;
    case D::kCancelSource:
      source_.end->cancel(now_, "cancelled by a person");
      break;
    case D::kCancelDestination:
      destination_.end->cancel(now_, "QEMU has exited");
      break;
    case D::kKillSource:
      source_killed_ = true;
      epoch_next_ = source_.end->epoch_next();
      source_.kill();
      break;
    case D::kKillDestination:
      destination_killed_ = true;
      destination_.kill();
      break;
    case D::kCutNetwork:
      for (std::size_t i = 0; i < 2 * destination_.link_base; ++i) {
        network_.link(i).blackhole = true;
      }
      break;
    case D::kGuestErrorSource:
      input_.source.memory->fail_next_call();
      break;
    case D::kGuestErrorDestination:
      input_.destination.memory->fail_next_call();
      break;
  }
}

void Attempt::check() {
  if (destination_events_.memory_ready != 0 && !compared_) {
    compared_ = true;
    if (bridge_ != Bridge::kEnded || destination_events_.ended != 1 || destination_events_.state != stream_) {
      violation("memory ready before the device state was complete and equal");
    }
    if (!input_.source.memory->same_content(*input_.destination.memory)) {
      const auto page = input_.source.memory->first_difference(*input_.destination.memory);
      violation("memory ready, but page " + std::to_string(page) + " differs");
    }
    // What arrives from now on must not touch memory: QEMU owns it.
    input_.destination.memory->freeze();
  }
  if (source_events_.failed > 1 || destination_events_.failed > 1 || source_events_.ready > 1 ||
      source_events_.done > 1 || destination_events_.memory_ready > 1) {
    violation("an event was told twice");
  }
  if (source_events_.done != 0 && destination_events_.memory_ready == 0 && !destination_killed_) {
    violation("source done without memory ready");
  }
  if (input_.destination.memory->placed_while_frozen()) {
    violation("a page was placed after the end");
  }
  if (source_.executor->waiting_max() > 4 || destination_.executor->waiting_max() > 4) {
    violation("jobs pile up");
  }
}

bool Attempt::over() const {
  const bool source = !source_.end || source_events_.failed != 0 || source_events_.done != 0;
  const bool destination =
      !destination_.end || destination_events_.failed != 0 || destination_events_.memory_ready != 0;
  return source && destination;
}

Instant Attempt::next_event() const {
  return std::max(now_, std::min({network_.next_delivery(), source_.deadline(), destination_.deadline(), write_at_,
                                  bridge_at_, disturb_at_}));
}

void Attempt::step() {
  source_.executor->set_now(now_);
  destination_.executor->set_now(now_);
  disturb();
  guest_writes();
  bridge();
  receive();
  for (int turns = 0;; ++turns) {
    const bool source = turn(source_, true);
    const bool destination = turn(destination_, false);
    if (!source && !destination) {
      break;
    }
    if (turns > 1000) {
      violation("an end is busy without end");
      break;
    }
  }
  check();
}

AttemptResult Attempt::run() {
  while (!over() && violation_.empty()) {
    step();
    const Instant next = next_event();
    if (over()) {
      break;
    }
    if (next == kNever || next - kStart > kVirtualTimeMax) {
      violation("no end after " + std::to_string((now_ - kStart).us() / 1000) + " ms of virtual time: source " +
                (!source_.end                 ? "killed"
                 : source_events_.failed != 0 ? "failed"
                 : source_events_.done != 0   ? "done"
                                              : "moving") +
                ", destination " +
                (!destination_.end                       ? "killed"
                 : destination_events_.failed != 0       ? "failed"
                 : destination_events_.memory_ready != 0 ? "ready"
                                                         : "moving") +
                ", disturbance " + std::to_string(static_cast<int>(script_.disturbance)));
      break;
    }
    now_ = next;
  }
  AttemptResult result;
  finish(result);
  return result;
}

void Attempt::finish(AttemptResult& result) {
  result.source_killed = source_killed_;
  result.destination_killed = destination_killed_;
  result.memory_ready = destination_events_.memory_ready != 0;
  result.source_done = source_events_.done != 0;
  result.source_failure = source_events_.failure;
  result.destination_failure = destination_events_.failure;
  // What the network still holds arrives late, at ends that are over.
  for (int i = 0; i < 200 && violation_.empty() && network_.next_delivery() != kNever; ++i) {
    now_ = std::max(now_, network_.next_delivery());
    write_at_ = bridge_at_ = disturb_at_ = kNever;
    step();
  }
  const bool alive = destination_.end != nullptr;
  if (source_.end) {
    result.stats = source_.end->stats(now_);
    epoch_next_ = source_.end->epoch_next();
  }
  // The object may go while jobs run; they must still reach the table.
  source_.kill();
  source_.executor->drain();
  destination_.executor->drain();
  if (alive) {
    result.destination_table = destination_.end->table();
  }
  destination_.kill();
  input_.destination.memory->thaw();
  input_.destination.memory->fail_next_call(false);
  input_.source.memory->fail_next_call(false);
  result.epoch_next = epoch_next_;
  const bool quiet = script_.disturbance == Script::Disturbance::kNone || !disturbed_;
  if (quiet && !script_.damage && !script_.rot &&
      script_.policy.on_no_convergence == transfer::OnNoConvergence::kStopAnyway &&
      !(result.memory_ready && result.source_done)) {
    violation("nothing disturbed it, yet it failed: '" + result.source_failure + "' / '" + result.destination_failure +
              "'");
  }
  if (trace_) {
    std::printf("  attempt: ready=%d done=%d round=%u sent=%llu zero=%llu reused=%llu in %lld us  '%s' / '%s'\n",
                result.memory_ready, result.source_done, result.stats.round,
                static_cast<unsigned long long>(result.stats.pages_sent),
                static_cast<unsigned long long>(result.stats.pages_zero),
                static_cast<unsigned long long>(result.stats.pages_reused),
                static_cast<long long>((now_ - kStart).us()), result.source_failure.c_str(),
                result.destination_failure.c_str());
  }
  result.violation = violation_;
}

}  // namespace

AttemptResult run_attempt(AttemptInput input, const Script& script, Random& random, bool trace) {
  return Attempt(input, script, random, trace).run();
}

}  // namespace godwit::simulation
