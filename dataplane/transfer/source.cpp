#include "dataplane/transfer/source.h"

#include <algorithm>
#include <numeric>

#include "dataplane/transfer/source_impl.h"

namespace godwit::transfer {
namespace {
constexpr std::size_t kOutboxBytesMax = 256 * 1024;  // device state waits at the bridge beyond this
constexpr Duration kKeepaliveInterval = milliseconds(500);
constexpr Duration kProgressInterval = milliseconds(200);
constexpr std::uint32_t kMismatchesMax = 3;
constexpr Duration kSwitchTime =
    milliseconds(50);  // from Verified on; the store's word is there sooner, or not for long
}  // namespace

Source::Impl::Impl(const MigrationConfig& config, const Policy& policy, SourceGuest guest, Executor& executor,
                   MigrationEvents& events)
    : MigrationEnd(config, guest.memory, executor, events),
      policy_(policy),
      table_(guest.table),
      epoch_now_(guest.epoch_now),
      accesses_(guest.accesses),
      stores_(guest.stores),
      bucket_(policy.bandwidth_limit_bps),
      unsorted_(page_count_),
      unlooked_(page_count_),
      pull_(page_count_, make_pull_order(policy.pull_order, policy.pull_rank)),
      pieces_(page_count_) {
  if (hashes()) {
    hashes_ = pages::PageHashes(page_count_);
    unread_ = pages::Bitmap(page_count_);
  }
  if (policy_.verify == Verify::kFull) {
    ever_sent_ = rest_ = pages::Bitmap(page_count_);
  }
}

void Source::Impl::start(Instant now, std::span<transport::Lane* const> lanes) {
  GW_ASSERT(phase_ == Phase::kIdle && (stores_ == nullptr || policy_.mode != Mode::kPrecopy));
  GW_ASSERT(stores_ == nullptr || !at_once() || stores_->at_rest());
  begin(now, lanes);
  start_timers();
  bucket_.start(now);
  phase_ = Phase::kHandshake;
  if (std::string mismatch = shape_mismatch(table_.size()); !mismatch.empty()) {
    return fail(Failure::kGuestMemory, std::move(mismatch));
  }
  if (config_.epoch_count < kEpochsMin || config_.epoch_base > pages::kUnknownGeneration - config_.epoch_count ||
      epoch_now_ >= config_.epoch_base) {
    return fail(Failure::kEpochsExhausted,
                "epochs " + std::to_string(config_.epoch_base) + " + " + std::to_string(config_.epoch_count) +
                    " do not follow the visit's epoch " + std::to_string(epoch_now_) + " or are too few");
  }
  const bool may_pull = policy_.mode != Mode::kPrecopy || policy_.on_no_convergence == OnNoConvergence::kPostcopy;
  outbox_.push(wire::Hello{.verify = static_cast<wire::VerifyLevel>(policy_.verify),
                           .mode = at_once()  ? wire::TransferMode::kPostcopy
                                   : may_pull ? wire::TransferMode::kHybrid
                                              : wire::TransferMode::kPrecopy,
                           .keeps_stores = stores_ != nullptr,
                           .id = config_.id,
                           .epoch_base = config_.epoch_base,
                           .epoch_count = config_.epoch_count,
                           .regions = config_.regions});
}

void Source::Impl::start_timers() {
  keepalive_at_ = now_ + kKeepaliveInterval;
  progress_at_ = now_ + kProgressInterval;
}

void Source::Impl::guest_stopped(Instant now) {
  now_ = std::max(now_, now);
  if (!stopped_) {
    stopped_ = true;
    stopped_at_ = now_;
    wake_ = true;
  }
}

bool Source::Impl::device_state(std::span<const std::byte> data) {
  if (phase_ == Phase::kIdle || phase_ >= Phase::kDone || ended_) {
    return false;
  }
  if (outbox_.bytes() >= kOutboxBytesMax) {
    return false;
  }
  totals_.device_state_bytes += data.size();
  while (!data.empty()) {
    const auto piece = data.first(std::min(data.size(), wire::kPayloadBytesMax));
    outbox_.push(wire::DeviceState{piece});
    data = data.subspan(piece.size());
  }
  wake_ = true;
  return true;
}

void Source::Impl::device_state_end(Instant now) {
  guest_stopped(now);
  if (!ended_ && phase_ < Phase::kDone) {
    ended_ = true;
    outbox_.push(wire::DeviceStateEnd{});
  }
  wake_ = true;
}

void Source::Impl::fail(Failure failure, std::string text) {
  if (phase_ == Phase::kFailed) {
    return;
  }
  phase_ = Phase::kFailed;
  end_failed(failure, std::move(text));
}

void Source::Impl::protocol_error(const std::string& text) {
  if (phase_ == Phase::kServing || phase_ == Phase::kDone) {
    return lose_connection("the destination broke the protocol: " + text);
  }
  fail(Failure::kPeerProtocol, "the destination broke the protocol: " + text);
}

void Source::Impl::tick(Instant now) {
  now_ = std::max(now_, now);
  wake_ = false;
  if (phase_ == Phase::kIdle) {
    return;
  }
  if (phase_ < Phase::kDone) {
    const std::uint64_t sent =
        std::accumulate(lanes_.begin(), lanes_.end(), std::uint64_t{0},
                        [](std::uint64_t sum, const auto* lane) { return sum + lane->counters().bytes_sent; });
    bucket_.refill(now_, sent - bytes_charged_);
    bytes_charged_ = sent;
    check_peer();
    check_memory_if_due();
    if (stores_ != nullptr && !switch_asked_ && stores_->short_of_room()) {
      static_cast<void>(switch_to_postcopy(now_));  // or it is under way
    }
    advance();
    serve_if_due();
    progress();
  }
  pump_outbox();
  deliver();
}

void Source::Impl::check_peer() {
  if (!connected_) {
    return;
  }
  const std::string closed = closed_lane();
  if (!closed.empty() || any_lane_dead()) {
    const std::string text =
        !closed.empty() ? closed
                        : "the destination's data plane does not answer any more; check the network between the hosts";
    return phase_ == Phase::kServing ? lose_connection(text)
                                     : fail(closed.empty() ? Failure::kPeerLost : Failure::kLaneClosed, text);
  }
  if (now_ >= keepalive_at_) {
    if (outbox_.empty() && phase_ != Phase::kHandshake) {
      outbox_.push(wire::Keepalive{});
    }
    keepalive_at_ = now_ + kKeepaliveInterval;
  }
}

void Source::Impl::deliver() {
  if (phase_ == Phase::kFailed) {
    return tell_failure();
  }
  if (ready_ && !ready_told_) {
    ready_told_ = true;
    if (!stopped_) {
      events_.on_ready_to_switch(ready_estimate_);
    }
  }
  tell_connection_lost();
  if (phase_ == Phase::kDone && !std::exchange(done_told_, true)) {
    postcopy_ ? events_.on_complete(stats(now_), equal_) : events_.on_source_done(stats(now_));
  }
}

Instant Source::Impl::deadline() const {
  if (phase_ == Phase::kIdle) {
    return kNever;
  }
  if (wake_) {
    return kAtOnce;
  }
  if (!connected_) {
    return kNever;
  }
  Instant at = outbox_.empty() ? kNever : now_ + kPumpInterval;
  if (phase_ >= Phase::kDone) {
    return at;
  }
  at = std::min({at, keepalive_at_, progress_at_});
  if ((loaded_ && !stopped_) || serving_) {
    at = std::min(at, bucket_.opens_at());
  }
  if (!fetching_.empty()) {
    at = std::min(at, now_ + kPumpInterval);
  }
  if (serving_ && background_from_ > now_) {
    at = std::min(at, background_from_);
  }
  if (scan_due_ > now_) {
    at = std::min(at, scan_due_);
  }
  if (resting_ && !listed_ && !scanning_) {
    at = std::min(at, now_ + kPumpInterval);
  }
  if (policy_.time_limit.ns > 0 && !ready_ && listed_) {
    at = std::min(at, std::max(started_ + policy_.time_limit, now_ + milliseconds(1)));
  }
  if (policy_.hybrid_time.ns > 0 && !ready_ && listed_) {
    at = std::min(at, std::max(started_ + policy_.hybrid_time, now_ + milliseconds(1)));
  }
  return at;
}

std::uint32_t Source::Impl::epoch_next() const { return config_.epoch_base + std::max({round_, scans_top_, 1U}) + 1; }

void Source::Impl::on_message(std::span<const std::byte> bytes) {
  if (phase_ == Phase::kIdle || phase_ == Phase::kFailed || !connected_) {
    return;
  }
  const auto message = wire::decode_message(bytes);
  if (!message) {
    return protocol_error(message.error());
  }
  std::visit([this](const auto& m) { on(m); }, *message);
}

template <class Unexpected>
void Source::Impl::on(const Unexpected& message) {
  protocol_error(std::string(wire::message_name(message)) + " is nothing a destination sends");
}

void Source::Impl::on(const wire::HelloReply& message) {
  if (phase_ != Phase::kHandshake) {
    return protocol_error("a second HelloReply");
  }
  has_retained_ = message.has_retained;
  can_page_ = message.can_page;
  if (stores_ != nullptr) {
    const std::uint64_t here = stores_->budget_pages();
    stored_there_max_ = message.budget_pages - std::min(message.budget_pages, here);
  }
  if (policy_.mode != Mode::kPrecopy && !can_page_) {
    return fail(Failure::kPeerProtocol, "the destination cannot catch the faults that post-copy needs; choose precopy");
  }
  phase_ = Phase::kRetainedTable;
  if (!has_retained_) {
    compare();
  }
}

void Source::Impl::on(const wire::TablePiece& message) {
  retained_bytes_ += message.bytes.size();
  if (phase_ != Phase::kRetainedTable || retained_bytes_ > table_bytes_max(page_count_)) {
    return protocol_error("a table that was not announced or is longer than any can be");
  }
  totals_.table_bytes += message.bytes.size();
  retained_pieces_.emplace_back(message.bytes.begin(), message.bytes.end());
  if (message.last) {
    compare();
  }
}

void Source::Impl::on(const wire::RoundAck& message) {
  if (phase_ != Phase::kMoving || opened_ || message.round != round_) {
    return protocol_error("acknowledges round " + std::to_string(message.round) + " while round " +
                          std::to_string(round_) + " is " + (opened_ ? "open" : "begun"));
  }
  opened_ = true;
  wake_ = true;
}

void Source::Impl::on(const wire::Verified&) {
  const bool armed = phase_ == Phase::kServing && !serving_ && connection_ == 0;
  if ((phase_ != Phase::kMoving && !armed) || !announced_) {
    return protocol_error("verified what was not announced");
  }
  if (!check_memory()) {
    return;  // the destination may have verified zeros that are not the guest's
  }
  totals_.last_round_us = static_cast<std::uint64_t>((now_ - stopped_at_).us());
  wake_ = true;
  if (armed) {
    serving_ = true;
    background_from_ = now_ + kSwitchTime;
    if (memory_.compares_content()) {
      return pull_.load(std::move(missing_));  // one that was written when looked at may be zero again, unnoticed
    }
    pages::Bitmap content = missing_;
    pull_.load(std::move(missing_ &= unlooked_));
    return pull_.sorted(std::move(content.and_not(unlooked_)), pages::Bitmap(page_count_));
  }
  phase_ = Phase::kDone;
  finished_at_ = now_;
}

void Source::Impl::on(const wire::ChunkDigests& message) {
  const std::uint64_t chunks = hashes_.chunk_count();
  if (!announced_ || !hashes() || serving_ || connection_ != 0 || message.first_chunk != peer_chunks_.size() ||
      message.digests.size() > chunks - peer_chunks_.size() ||
      message.last != (peer_chunks_.size() + message.digests.size() == chunks)) {
    return protocol_error("digests that were not asked for or do not fit the guest");
  }
  peer_chunks_.insert(peer_chunks_.end(), message.digests.begin(), message.digests.end());
  if (!message.last) {
    return;
  }
  const pages::Bitmap differing = hashes_.mismatching_chunks(peer_chunks_);
  peer_chunks_.clear();
  if (++mismatches_ > kMismatchesMax || !differing.any()) {
    return fail(Failure::kVerify, "memory at the destination differs from what was sent, after " +
                                      std::to_string(mismatches_) +
                                      " attempts to mend it; check the hosts' memory and network cards");
  }
  // Any page of such a chunk may be the wrong one: all go again, under an epoch that the wrong copy does not have.
  carried_over_.emplace(page_count_);
  differing.for_each_run([&](std::uint64_t first, std::uint64_t count) {
    const pages::PageNumber page = first * pages::kDigestChunkPages;
    carried_over_->set_range(page, std::min(count * pages::kDigestChunkPages, page_count_ - page));
  });
  announced_ = false;
  phase_ = Phase::kMoving;  // from which it may have gone on to serving
  wake_ = true;
}

void Source::Impl::on(const wire::Abort& message) {
  fail(Failure::kPeerFailed, "the destination gave up: " + message.text);
}

std::uint64_t Source::Impl::payload_sent() const {
  return std::accumulate(lanes_.begin(), lanes_.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const auto* lane) { return sum + lane->counters().payload_bytes_sent; });
}

Duration Source::Impl::rtt() const {
  Duration most{};
  for (const transport::Lane* lane : lanes_) {
    most = std::max(most, lane->smoothed_rtt());
  }
  return most;
}

void Source::Impl::progress() {
  if (now_ < progress_at_ || phase_ >= Phase::kDone) {
    return;
  }
  const std::uint64_t payload = payload_sent();
  const auto us = static_cast<std::uint64_t>((now_ - progress_at_ + kProgressInterval).us());
  totals_.rate_bps = (payload - progress_payload_) * 8 * 1'000'000 / std::max<std::uint64_t>(us, 1);
  progress_payload_ = payload;
  progress_at_ = now_ + kProgressInterval;
  events_.on_progress(stats(now_));
}

Stats Source::Impl::stats(Instant now) const {
  Stats s = totals_;
  const bool finished = phase_ >= Phase::kDone;
  s.round = round_;
  s.pages_left = finished ? 0 : phase_ == Phase::kServing ? pull_.left() : pages_.left();
  if (loaded_ && !sorted_) {
    s.pages_left += totals_.pages_left;
  }
  s.payload_bytes += payload_sent();
  add_transport(s);
  s.written_pages_per_s = convergence_.written_pages_per_s();
  s.elapsed_us =
      phase_ == Phase::kIdle ? 0 : static_cast<std::uint64_t>(((finished ? finished_at_ : now) - started_).us());
  const std::uint64_t bytes_per_s =
      std::max<std::uint64_t>((s.rate_bps != 0 ? s.rate_bps : convergence_.link_bps()) / 8, 1);
  s.estimated_left_us = s.pages_left * pages::kPageSize * 1'000'000 / bytes_per_s;
  return s;
}

// ---- Source ----

Source::Source(const MigrationConfig& config, const Policy& policy, SourceGuest guest, Executor& executor,
               MigrationEvents& events)
    : impl_(std::make_shared<Impl>(config, policy, guest, executor, events)) {}
Source::~Source() = default;
std::unique_ptr<SourceShare> Source::make_share(const std::vector<std::uint16_t>& lanes) {
  return impl_->make_share(lanes);
}
bool Source::pump() { return impl_->pump(); }
void Source::start(Instant now, std::span<transport::Lane* const> lanes) { impl_->start(now, lanes); }
void Source::guest_stopped(Instant now) { impl_->guest_stopped(now); }
bool Source::device_state(std::span<const std::byte> data) { return impl_->device_state(data); }
void Source::device_state_end(Instant now) { impl_->device_state_end(now); }
bool Source::switch_to_postcopy(Instant now) { return impl_->switch_to_postcopy(now); }
void Source::committed(Instant now) { impl_->committed(now); }
bool Source::serves() const { return impl_->serves(); }
void Source::detach(Instant now) { impl_->detach(now); }
void Source::resume(Instant now, std::span<transport::Lane* const> lanes) { impl_->resume(now, lanes); }
void Source::cancel(Instant now, const std::string& reason) { impl_->cancel(now, reason); }
void Source::tick(Instant now) { impl_->tick(now); }
Instant Source::deadline() const { return impl_->deadline(); }
Stats Source::stats(Instant now) const { return impl_->stats(now); }
std::uint32_t Source::epoch_next() const { return impl_->epoch_next(); }
bool Source::next_work(std::uint16_t lane, transport::Work& out) { return impl_->next_work(lane, out); }
void Source::read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) {
  impl_->read_page(page, offset, out);
}
std::span<const std::byte> Source::page_in_place(pages::PageNumber page, bool hash_in_tag) {
  return impl_->page_in_place(page, hash_in_tag);
}
bool Source::wants_hash(pages::PageNumber page, std::uint32_t offset) const { return impl_->wants_hash(page, offset); }
void Source::note_sent(pages::PageNumber page, pages::PageHash hash) { impl_->note_sent(page, hash); }
void Source::on_acknowledged(const transport::Work& work) { impl_->on_acknowledged(work); }
void Source::on_page(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint32_t, std::span<const std::byte>) {
  impl_->protocol_error("it sent a page");
}
void Source::on_zero_run(std::uint16_t, std::uint32_t, pages::PageNumber, std::uint64_t) {
  impl_->protocol_error("it sent zero pages");
}
void Source::on_message(std::span<const std::byte> message) { impl_->on_message(message); }

}  // namespace godwit::transfer
