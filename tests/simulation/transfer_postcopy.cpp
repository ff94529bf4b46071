// What happens in a simulated attempt once its guest may run at the destination that has not everything: the store's
// decision, vCPUs, connections that break, ends that die and come back, and what must hold meanwhile.

#include <algorithm>

#include "tests/simulation/transfer_attempt_impl.h"

namespace godwit::simulation {
namespace {
constexpr Duration kLongCut = milliseconds(12'000);  // both ends notice: silence counts after 10 s

Duration some(Random& random, std::int64_t us_max) {
  return microseconds(static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(us_max))));
}
}  // namespace

void Watch::on_message(std::span<const std::byte> message) {
  if (const auto decoded = wire::decode_message(message)) {
    if (const auto* request = std::get_if<wire::DemandRequest>(&*decoded)) {
      for (const pages::PageNumber page : request->pages) {
        verdict_.require(asked_.insert(page).second || request->again, "asked-once",
                         "page " + std::to_string(page) + " is asked for twice, and not because it is late");
      }
    }
  }
  user_.on_message(message);
}

void Attempt::note_paging() {
  if (destination_events_.memory_ready == 0 || !paging_.armed() || pulling() || !destination_.end) {
    return;
  }
  ModelMemory& arrived = *input_.destination.memory;
  std::vector<PageContent> truth;
  for (pages::PageNumber page = 0; page < arrived.page_count(); ++page) {
    truth.push_back(stores_ ? stores_->last_content(page) : input_.source.memory->page(page));
  }
  table_at_ready_ = destination_.end->table();
  epoch_next_ = destination_.end->epoch_next();
  verdict_.require(table_at_ready_ == input_.source.table, "tables", "memory ready, but the two tables differ");
  verdict_.require(bridge_ == Bridge::kEnded && destination_events_.ended == 1 && destination_events_.state == stream_,
                   "device-state", "memory ready before the device state was complete and equal");
  for (pages::PageNumber page = 0; page < arrived.page_count(); ++page) {
    verdict_.require(paging_.missing_pages().test(page) || arrived.page(page) == truth[page], "content",
                     "memory ready, but page " + std::to_string(page) + " is neither missing nor right");
  }
  vcpus_.emplace(script_.vcpus, std::move(truth), arrived, paging_, random_, verdict_);
  decide_at_ = now_ + some(random_, 3000);
  vcpu_at_ = now_;
  if (disturbed_ && script_.disturbance == Script::Disturbance::kCutNetwork) {
    cut_ = true;
    heal_at_ = now_ + some(random_, 50'000);
  }
}

void Attempt::decide() {
  if (now_ < decide_at_) {
    return;
  }
  decide_at_ = kNever;
  const bool failed = source_events_.failed != 0 || destination_events_.failed != 0 || !destination_.end;
  if (!failed && random_.below(10) != 0) {
    committed_ = true;
    vcpus_->run();
    if (source_.end) {
      source_.end->committed(source_.clock.local(now_));
    }
    if (stores_) {
      stores_->serve_from_now_on();
      paging_.leave_to_stores();
    }
    input_.source.memory->fail_next_call(false);
    input_.destination.memory->fail_next_call(false);
    break_at_ = breaks_left_ != 0 ? now_ + some(random_, 10'000) : kNever;
    reconnect_at_ = source_.end ? kNever : now_ + some(random_, 20'000);
    return;
  }
  aborted_ = true;
  vcpu_at_ = kNever;
  if (source_.end) {
    source_.end->cancel(source_.clock.local(now_), "aborted");
  }
  if (destination_.end) {
    destination_.end->cancel(destination_.clock.local(now_), "aborted");
  }
}

// A source that has announced everything does not know whether the destination was ready: the store does.
void Attempt::settle() {
  const bool gone = !destination_.end || destination_events_.failed != 0;
  if (!pulling() && gone && source_.end && source_events_.lost != 0 && source_events_.failed == 0) {
    source_.end->cancel(source_.clock.local(now_), "aborted");
  }
}

void Attempt::disturb_pulling() {
  using D = Script::Disturbance;
  disturbed_ = !committed_;
  if (committed_) {
    breaks_left_ += 1;
    break_at_ = now_;
  } else if (script_.disturbance == D::kCancelSource && source_.end) {
    source_.end->cancel(source_.clock.local(now_), "cancelled by a person");
  } else if (script_.disturbance == D::kCancelDestination) {
    destination_.end->cancel(destination_.clock.local(now_), "QEMU has exited");
  } else if (script_.disturbance == D::kKillSource && source_.end) {
    source_killed_ = true;
    restart_source();
  } else if (script_.disturbance == D::kKillDestination) {
    destination_killed_ = true;
    destination_.kill();
  }
}

void Attempt::break_something() {
  if (now_ < break_at_ || over()) {
    return;
  }
  break_at_ = --breaks_left_ != 0 ? now_ + some(random_, 10'000) : kNever;
  broken_ = true;
  const std::uint64_t kind = random_.below(8);
  if (kind < 3) {
    restart_source();
  } else if (kind < 6) {
    restart_destination();
  } else if (kind < 7) {
    cut_ = true;
    heal_at_ = now_ + (random_.below(2) == 0 ? kLongCut : some(random_, 50'000));
    for (std::size_t i = 0; i < 2 * destination_.link_base; ++i) {
      network_.link(i).blackhole = true;
    }
  }
  reconnect_at_ = kind == 6 ? reconnect_at_ : std::min(reconnect_at_, now_ + some(random_, 20'000));
}

void Attempt::restart_source() {
  source_.kill();
  source_.executor = std::make_unique<ModelExecutor>(random_);
  source_.executor->set_now(now_);
}

void Attempt::restart_destination() {
  destination_.kill();
  destination_.executor = std::make_unique<ModelExecutor>(random_);
  destination_.executor->set_now(now_);
}

void Attempt::reconnect() {
  reconnect_at_ = kNever;
  lost_handled_ = source_events_.lost + destination_events_.lost;
  const auto secret = static_cast<std::byte>(static_cast<unsigned>(input_.config.id[0]) + 16 * ++connections_);
  if (destination_.end) {
    destination_.end->detach(destination_.clock.local(now_));
  } else {
    destination_.end =
        std::make_unique<transfer::Destination>(input_.config,
                                                transfer::DestinationGuest{*input_.destination.memory, table_at_ready_,
                                                                           &paging_, stores_ ? &*stores_ : nullptr},
                                                *destination_.executor, destination_events_);
    vcpus_->wake_all();
  }
  if (source_.end) {
    source_.end->detach(source_.clock.local(now_));
  } else {
    source_.end = std::make_unique<transfer::Source>(
        input_.config, script_.policy,
        transfer::SourceGuest{*input_.source.memory, input_.source.table, input_.epoch_now}, *source_.executor,
        source_events_);
  }
  destination_.drop_lanes();
  source_.drop_lanes();
  destination_.make_lanes(script_, false, secret, now_, verdict_);
  source_.make_lanes(script_, true, secret, now_, verdict_);
  destination_.end->resume(destination_.clock.local(now_), destination_.pointers());
  source_.end->resume(source_.clock.local(now_), source_.pointers());
}

void Attempt::postcopy() {
  if (now_ >= switch_at_) {
    switch_at_ = kNever;
    if (source_.end) {
      static_cast<void>(source_.end->switch_to_postcopy(source_.clock.local(now_)));
    }
  }
  settle();
  note_paging();
  if (!pulling()) {
    return;
  }
  decide();
  break_something();
  if (now_ >= heal_at_) {
    heal_at_ = kNever;
    cut_ = false;
    for (std::size_t i = 0; i < 2 * destination_.link_base; ++i) {
      network_.link(i).blackhole = false;
    }
  }
  const bool lost = source_events_.lost + destination_events_.lost > lost_handled_;
  if (committed_ && lost && !cut_ && reconnect_at_ == kNever) {
    reconnect_at_ = now_ + some(random_, 20'000);
  }
  if (now_ >= reconnect_at_ && !over()) {
    // As the data plane does, behind the jobs of the flow that is no more: else they could pile up.
    const Instant jobs_done = std::max(source_.executor->last(), destination_.executor->last());
    if (jobs_done > now_) {
      reconnect_at_ = jobs_done;
    } else {
      reconnect();
    }
  }
  if (now_ >= vcpu_at_) {
    vcpus_->step();
    // While nothing comes, few looks say as much as many.
    const std::uint64_t slowly = cut_ || lost ? 1000 : 1;
    vcpu_at_ =
        now_ + microseconds(1) + some(random_, script_.write_interval.us() * static_cast<std::int64_t>(slowly) + 1);
  }
}

void Attempt::check_pulling() {
  if (!pulling()) {
    return;
  }
  verdict_.require(
      !committed_ || (source_events_.failed == 0 && destination_events_.failed == 0), "after-commit",
      "an end failed after the commit: '" + source_events_.failure + "' / '" + destination_events_.failure + "'");
  const bool complete = source_events_.complete + destination_events_.complete != 0;
  verdict_.require(!complete || paging_.none_to_come(), "complete", "complete, and pages are missing");
  verdict_.require(broken_ || (source_events_.complete <= 1 && destination_events_.complete <= 1), "told-once",
                   "an event was told twice");
  verdict_.require(destination_events_.complete == 0 || destination_events_.equal, "verify",
                   "what came is not what was sent");
}

void Attempt::check_complete() {
  vcpus_->check_all();
  const transfer::Stats& stats = destination_events_.stats;
  verdict_.require(broken_ || stats.pages_left == 0, "figures", "complete, and pages are left");
}

Instant Attempt::next_postcopy_event() const {
  return std::min({switch_at_, decide_at_, vcpu_at_, break_at_, heal_at_, reconnect_at_});
}

}  // namespace godwit::simulation
