#include "tests/simulation/transfer_attempt.h"

#include <algorithm>
#include <cstdio>

#include "simulation/in_place.h"
#include "tests/simulation/transfer_attempt_impl.h"

namespace godwit::simulation {
namespace {

constexpr Duration kVirtualTimeMax = milliseconds(120'000);
/// A destination has nothing in flight that could stay unacknowledged: it counts silence, 30 s of it before the first
/// message.
constexpr Duration kLossNoticed = milliseconds(31'000);
constexpr std::size_t kRecordedMax = 256;

}  // namespace

Attempt::Attempt(AttemptInput& input, const Script& script, Random& random, std::vector<Recorded>& recorded, bool trace)
    : input_(input),
      script_(script),
      random_(random),
      recorded_(recorded),
      trace_(trace),
      network_(random.next()),
      destination_events_(input.destination.memory.get()),
      paging_(*input.destination.memory, random, verdict_) {
  source_.executor = std::make_unique<ModelExecutor>(random_);
  destination_.executor = std::make_unique<ModelExecutor>(random_);
  // Nobody evicts where what was written is found by comparing content.
  if (script.split && !input.source.memory->compares_content() && !input.destination.memory->compares_content()) {
    stores_.emplace(*input.source.memory, *input.destination.memory, random, verdict_);
    if (script.policy.mode == transfer::Mode::kHybrid && random.below(2) == 0) {
      stores_->begin_shrinking();
    }
    paging_.take(*stores_);
  }
  StoresModel* const stores = stores_ ? &*stores_ : nullptr;
  std::optional<pages::GenerationTable> retained;
  if (input.has_retained) {
    retained = input.destination.table;
  }
  destination_.end =
      std::make_unique<transfer::Destination>(input.config,
                                              transfer::DestinationGuest{*input.destination.memory, std::move(retained),
                                                                         script.can_page ? &paging_ : nullptr, stores},
                                              *destination_.executor, destination_events_);
  source_.end = std::make_unique<transfer::Source>(
      input.config, script.policy,
      transfer::SourceGuest{*input.source.memory, input.source.table, input.epoch_now, nullptr, stores},
      *source_.executor, source_events_);
  source_.clock = Clock(random_);
  destination_.clock = Clock(random_);
  source_.make_lanes(script, true, input.config.id[0], now_, verdict_);
  destination_.make_lanes(script, false, input.config.id[0], now_, verdict_);
  for (const LinkConfig& link : script.links) {
    for (std::uint32_t lane = 0; lane <= script.bulk_lanes; ++lane) {
      network_.add_link(link);
    }
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
  if (script.switch_after.ns > 0) {
    switch_at_ = now_ + script.switch_after;
  }
  breaks_left_ = script.breaks;
  paging_.refuse_one_in(script.refuse_one_in);
  source_.executor->set_now(now_);
  destination_.executor->set_now(now_);
  destination_.end->start(destination_.clock.local(now_), destination_.pointers());
  source_.end->start(source_.clock.local(now_), source_.pointers());
}

void Attempt::arrive(bool to_destination, std::size_t lane, std::vector<std::byte> bytes) {
  if (to_destination && destination_.end) {
    destination_.inbox.push_back({lane, std::move(bytes)});
  } else if (!to_destination && source_.end) {
    source_.inbox.push_back({lane, std::move(bytes)});
  }
}

void Attempt::receive() {
  while (auto delivered = network_.receive(now_)) {
    arrive(delivered->link < destination_.link_base, delivered->link % destination_.link_base,
           std::move(delivered->bytes));
  }
}

/// What waits in one side's receive ring; true if anything did.
template <class S>
bool Attempt::read(S& side) {
  bool any = false;
  for (; now_ >= side.reads_from && !side.inbox.empty(); side.inbox.pop_front()) {
    any = true;
    auto& [lane, bytes] = side.inbox.front();
    const transport::Received received = side.lanes[lane]->on_packet(side.clock.local(now_), bytes);
    trace_hash_ = (trace_hash_ ^ (static_cast<std::uint64_t>(received) << 8 | lane)) * 0x100000001b3;
    if (received == transport::Received::kBadBody) {
      violation("honest-peer", "a packet was refused after its tag was good");
    }
    // Bytes of a packet are valid until flush: bursts of one.
    if constexpr (requires { side.end->flush(now_); }) {
      side.end->flush(side.clock.local(now_));
      for (const auto& share : side.shares) {
        share->flush();
      }
    }
    network_.recycle(std::move(bytes));
  }
  return any;
}

void Attempt::send(std::size_t link, std::span<const std::byte> datagram) {
  trace_hash_ = (trace_hash_ ^ (static_cast<std::uint64_t>(now_.ns) << 14 ^ datagram.size())) * 0x100000001b3;
  const std::size_t lane = link % destination_.link_base;
  if (script_.replay_ppm > 0 && random_.chance_ppm(50'000)) {
    Recorded copy{link < destination_.link_base, lane, {datagram.begin(), datagram.end()}};
    if (recorded_.size() < kRecordedMax) {
      recorded_.push_back(std::move(copy));
    } else {
      recorded_[random_.below(recorded_.size())] = std::move(copy);
    }
  }
  if (!healed_ && script_.lane_dead && lane == script_.bulk_lanes) {
    return;
  }
  network_.send(now_, link, datagram);
}

void Attempt::faults() {
  const Duration age = now_ - kStart;
  const bool cut = cut_ || (!pulling() && disturbed_ && script_.disturbance == Script::Disturbance::kCutNetwork);
  if (!healed_ && age >= script_.faults_end) {
    healed_ = true;
    network_.heal();
    for (std::size_t i = 0; cut && i < 2 * destination_.link_base; ++i) {
      network_.link(i).blackhole = true;
    }
  }
  if (script_.mtu_shrinks && age >= script_.shrinks_after) {
    for (std::size_t i = 0; i < 2 * destination_.link_base; ++i) {
      network_.link(i).datagram_bytes_max = script_.narrow_datagram_bytes;
    }
  }
  if (healed_) {
    return;
  }
  if (!recorded_.empty() && random_.chance_ppm(script_.replay_ppm)) {
    const Recorded& copy = recorded_[random_.below(recorded_.size())];
    if (copy.lane <= script_.bulk_lanes) {
      arrive(copy.to_destination, copy.lane, copy.bytes);
    }
  }
  const auto a_while = [this] { return now_ + milliseconds(1) + random_.up_to(milliseconds(49)); };
  if (random_.chance_ppm(script_.pause_ppm)) {
    (random_.below(2) == 0 ? source_.paused_until : destination_.paused_until) = a_while();
  }
  if (random_.chance_ppm(script_.stop_reading_ppm)) {
    (random_.below(2) == 0 ? source_.reads_from : destination_.reads_from) = a_while();
  }
}

/// One turn of one side's poll loop; true if anything was done.
template <class S>
bool Attempt::turn(S& side) {
  side.executor->run(now_);
  if (!side.end || now_ < side.paused_until) {
    return false;
  }
  const Instant local = side.clock.local(now_);
  bool busy = read(side);
  // Lcores run at their own pace: sometimes the home lcore looks later.
  busy = ((!side.shares.empty() || pulling()) && (random_.below(4) == 0 || side.end->pump())) || busy;
  if (side.end->deadline() <= local) {
    side.end->tick(local);
    busy = true;
  }
  std::array<std::byte, 9216> buffer;
  for (std::size_t i = 0; i < side.lanes.size(); ++i) {
    transport::Lane& lane = *side.lanes[i];
    if (lane.deadline() <= local) {
      lane.tick(local);
    }
    transfer::Share* const share = side.share_of(i);
    if (share != nullptr && !share->flush()) {
      continue;
    }
    for (int burst = 0; burst < 32; ++burst) {
      transport::PagesInPlace in_place;
      const std::size_t length =
          lane.poll_transmit(local, std::span(buffer).first(script_.datagram_bytes_max), &in_place);
      if (length == 0) {
        break;
      }
      if (in_place.count != 0 && guest_runs() && random_.chance_ppm(script_.tear_ppm)) {
        input_.source.memory->write_at(in_place.pieces[0], random_);
      }
      send(side.link_base + i, as_sent(std::span(buffer).first(length), in_place));
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
    if (stores_) {
      stores_->settle_in();
      if (random_.below(4) == 0) {
        stores_->touch_at_source(random_.below(input_.source.memory->page_count()));
      }
    }
    const std::uint64_t kind = random_.below(60);
    kind == 0   ? input_.source.memory->balloon(random_)
    : kind < 15 ? input_.source.memory->write_back(random_)
                : input_.source.memory->write(random_);
  }
  // Once an end is gone nothing but silence follows: seconds in which few writes say as much as many.
  const auto interval_us = static_cast<std::uint64_t>(script_.write_interval.us()) * (disturbed_ ? 1000 : 1);
  write_at_ = bridge_ == Bridge::kEnded
                  ? kNever
                  : now_ + microseconds(1 + static_cast<std::int64_t>(random_.below(2 * interval_us)));
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
    source_.end->guest_stopped(source_.clock.local(now_));
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
      source_.end->device_state_end(source_.clock.local(now_));
    }
  }
}

void Attempt::disturb() {
  if (now_ < disturb_at_ || over()) {
    return;
  }
  disturb_at_ = kNever;
  if (pulling()) {
    return disturb_pulling();
  }
  disturbed_ = true;
  disturbed_at_ = now_;
  using D = Script::Disturbance;
  switch (script_.disturbance) {
    case D::kNone:
      break;
    case D::kCancelSource:
      source_.end->cancel(source_.clock.local(now_), "cancelled by a person");
      break;
    case D::kCancelDestination:
      destination_.end->cancel(destination_.clock.local(now_), "QEMU has exited");
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
  if (destination_events_.memory_ready != 0 && !compared_ && !paging_.armed() && !pulling()) {
    compared_ = true;
    if (bridge_ != Bridge::kEnded || destination_events_.ended != 1 || destination_events_.state != stream_) {
      violation("device-state", "memory ready before the device state was complete and equal");
    }
    if (!input_.source.memory->same_content(*input_.destination.memory)) {
      const auto page = input_.source.memory->first_difference(*input_.destination.memory);
      violation("content", "memory ready, but page " + std::to_string(page) + " differs");
    }
    // What arrives from now on must not touch memory: QEMU owns it.
    input_.destination.memory->freeze();
  }
  if (source_events_.failed > 1 || destination_events_.failed > 1 || source_events_.ready > 1 ||
      source_events_.done > 1 || destination_events_.memory_ready > 1) {
    violation("told-once", "an event was told twice");
  }
  if (source_events_.done != 0 && destination_events_.memory_ready == 0 && !destination_killed_) {
    violation("told-once", "source done without memory ready");
  }
  check_pulling();
  if (input_.destination.memory->placed_while_frozen()) {
    violation("nothing-after-end", "a page was placed after the end");
  }
  if (source_.executor->waiting_max() > 4 || destination_.executor->waiting_max() > 4) {
    violation("memory", "jobs pile up: " + std::to_string(source_.executor->waiting_max()) + " at the source, " +
                            std::to_string(destination_.executor->waiting_max()) + " at the destination");
  }
}

/// An end that is gone is missed by the other.
void Attempt::check_loss() {
  using D = Script::Disturbance;
  const bool gone = script_.disturbance == D::kKillSource || script_.disturbance == D::kKillDestination ||
                    script_.disturbance == D::kCutNetwork;
  if (gone && disturbed_ && !pulling() && now_ - std::max(disturbed_at_, kStart + script_.faults_end) > kLossNoticed) {
    violation("death-noticed", std::string("an end that is gone is not missed by the ") +
                                   (source_.end ? "source" : "destination") + ", disturbance " +
                                   std::to_string(static_cast<int>(script_.disturbance)));
  }
}

bool Attempt::over() const {
  if (committed_) {
    return destination_events_.complete != 0 || (!destination_.end && !paging_.armed());
  }
  // Complete: so little was missing that it had come before the store could look.
  const bool source = !source_.end || source_events_.failed != 0 || source_events_.done + source_events_.complete != 0;
  const bool destination = !destination_.end || destination_events_.failed != 0 ||
                           (destination_events_.memory_ready != 0 && !paging_.armed());  // else the store decides
  return source && destination;
}

Instant Attempt::next_event() const {
  return std::max(now_, std::min({network_.next_delivery(), source_.deadline(), destination_.deadline(), write_at_,
                                  bridge_at_, disturb_at_, next_postcopy_event()}));
}

void Attempt::step() {
  source_.executor->set_now(now_);
  destination_.executor->set_now(now_);
  faults();
  disturb();
  guest_writes();
  bridge();
  postcopy();
  receive();
  for (int turns = 0;; ++turns) {
    const bool source = turn(source_);
    const bool destination = turn(destination_);
    if (!source && !destination) {
      break;
    }
    if (turns > 1000) {
      violation("progress", "an end is busy without end");
      break;
    }
  }
  check();
}

AttemptResult Attempt::run() {
  while (!over() && !verdict_.broken()) {
    step();
    check_loss();
    const Instant next = next_event();
    if (over()) {
      break;
    }
    if (next == kNever || next - kStart > kVirtualTimeMax) {
      violation("progress", "no end after " + std::to_string((now_ - kStart).us() / 1000) +
                                " ms of virtual time: source " +
                                (!source_.end                 ? "killed"
                                 : source_events_.failed != 0 ? "failed"
                                 : source_events_.done != 0   ? "done"
                                                              : "moving") +
                                ", destination " +
                                (!destination_.end                       ? "killed"
                                 : destination_events_.failed != 0       ? "failed"
                                 : destination_events_.memory_ready != 0 ? "ready"
                                                                         : "moving") +
                                ", disturbance " + std::to_string(static_cast<int>(script_.disturbance)) +
                                (committed_ ? ", committed, " + std::to_string(vcpus_->blocked()) + " vCPUs blocked, " +
                                                  std::to_string(paging_.missing_pages().count()) + " pages missing"
                                            : ""));
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
  result.source_done = source_events_.done + source_events_.complete != 0;
  result.source_failure = source_events_.failure;
  result.destination_failure = destination_events_.failure;
  // What the network still holds arrives late, at ends that are over.
  for (int i = 0; i < 200 && !verdict_.broken() && network_.next_delivery() != kNever; ++i) {
    now_ = std::max(now_, network_.next_delivery());
    write_at_ = bridge_at_ = disturb_at_ = vcpu_at_ = break_at_ = reconnect_at_ = kNever;
    step();
  }
  const bool alive = destination_.end != nullptr;
  if (source_.end) {
    result.stats = source_.end->stats(source_.clock.local(now_));
    epoch_next_ = pulling() ? epoch_next_ : source_.end->epoch_next();
  }
  // The object may go while jobs run; they must still reach the table.
  source_.kill();
  source_.executor->drain();
  destination_.executor->drain();
  if (alive) {
    result.destination_table = destination_.end->table();
  }
  destination_.kill();
  if (committed_) {
    paging_.fetch_stored();
    check_complete();
    result.pulled = true;
    result.destination_table = std::move(table_at_ready_);
  }
  if (stores_ && committed_) {
    result.left_to_stores = stores_->away();
  } else if (stores_) {
    stores_->all_back_at_source();
  }
  input_.destination.memory->thaw();
  input_.destination.memory->fail_next_call(false);
  input_.source.memory->fail_next_call(false);
  result.epoch_next = epoch_next_;
  const bool quiet = script_.disturbance == Script::Disturbance::kNone || !disturbed_;
  if (quiet && !script_.damage && !script_.rot &&
      script_.policy.on_no_convergence != transfer::OnNoConvergence::kAbort && !aborted_ &&
      !(result.memory_ready && (result.source_done || result.pulled))) {
    violation("progress", "nothing disturbed it, yet it failed: '" + result.source_failure + "' / '" +
                              result.destination_failure + "'");
  }
  if (trace_) {
    std::printf(
        "  attempt: ready=%d done=%d pulled=%d round=%u sent=%llu zero=%llu reused=%llu in %lld us  '%s' / '%s'\n",
        result.memory_ready, result.source_done, result.pulled, result.stats.round,
        static_cast<unsigned long long>(result.stats.pages_sent),
        static_cast<unsigned long long>(result.stats.pages_zero),
        static_cast<unsigned long long>(result.stats.pages_reused), static_cast<long long>((now_ - kStart).us()),
        result.source_failure.c_str(), result.destination_failure.c_str());
  }
  result.violation = verdict_.text();
  result.trace_hash = trace_hash_;
}

AttemptResult run_attempt(AttemptInput input, const Script& script, Random& random, std::vector<Recorded>& recorded,
                          bool trace) {
  return Attempt(input, script, random, recorded, trace).run();
}

}  // namespace godwit::simulation
