#include "dataplane/transfer/destination.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "dataplane/pages/table_codec.h"
#include "dataplane/transfer/destination_impl.h"

namespace godwit::transfer {
namespace {
constexpr Duration kHelloWait = milliseconds(30'000);  // the source is told to start after us
constexpr Duration kLookInterval = milliseconds(500);
constexpr std::uint64_t kHashPagesMin = 8192;  // waiting before a job is worth it
}  // namespace

Destination::Impl::Impl(const MigrationConfig& config, DestinationGuest guest, Executor& executor,
                        MigrationEvents& events)
    : MigrationEnd(config, guest.memory, executor, events),
      paging_(guest.paging),
      stores_(guest.stores),
      has_retained_(guest.retained.has_value()),
      table_(guest.retained ? std::move(*guest.retained)
                            : pages::GenerationTable(page_count_, pages::kUnknownGeneration)),
      placer_(memory_, table_, gate_),
      placed_first_(page_count_),
      pieces_(page_count_),
      pull_placer_(paging_, 0, page_count_, gate_) {
  GW_ASSERT(!is_split() || paging_ != nullptr);
  if (is_split()) {
    stored_ = stored_listed_ = stored_written_ = pages::Bitmap(page_count_);
  }
}

void Destination::Impl::start(Instant now, std::span<transport::Lane* const> lanes) {
  GW_ASSERT(phase_ == Phase::kIdle);
  begin(now, lanes);
  heard_at_ = now;
  phase_ = Phase::kWaiting;
  if (std::string mismatch = shape_mismatch(table_.size()); !mismatch.empty()) {
    fail(Failure::kGuestMemory, std::move(mismatch));
  }
}

void Destination::Impl::fail(Failure failure, std::string text) {
  if (phase_ == Phase::kFailed) {
    return;
  }
  gate_.close();
  failed_.store(true, std::memory_order_relaxed);
  if (paging_ != nullptr && phase_ >= Phase::kRounds && (phase_ < Phase::kReady || is_split())) {
    forget_missing();
  }
  if (doubtful_) {
    table_.fill(pages::kUnknownGeneration);  // a wrong page may have a generation that the source's table has too
  }
  phase_ = Phase::kFailed;
  end_failed(failure, std::move(text));
}

void Destination::Impl::protocol_error(const std::string& text) {
  if (phase_ == Phase::kPaging) {
    return lose_connection("the source broke the protocol: " + text);
  }
  fail(Failure::kPeerProtocol, "the source broke the protocol: " + text);
}

void Destination::Impl::tick(Instant now) {
  now_ = ticked_at_ = std::max(now_, now);
  wake_ = false;
  if (phase_ == Phase::kIdle) {
    return;
  }
  if (phase_ < Phase::kPaging) {
    check_peer();
    check_memory_if_due();
    acknowledge_if_due();
    acknowledge_set_if_due();
    hash_if_due();
    verify_if_due();
    arm_if_due();
  }
  if (phase_ == Phase::kPaging) {
    page();
  }
  pump_outbox();
  deliver();
}

void Destination::Impl::flush(Instant now) {
  now_ = std::max(now_, now);
  place();
}

void Destination::Impl::check_peer() {
  if (const std::string closed = closed_lane(); !closed.empty()) {
    return fail(Failure::kLaneClosed, closed);
  }
  if (std::string silent = silence(phase_ == Phase::kWaiting ? kHelloWait : kSilenceMax); !silent.empty()) {
    fail(Failure::kPeerLost, std::move(silent));
  }
}

std::string Destination::Impl::silence(Duration silence_max) {
  const std::uint64_t packets =
      std::accumulate(lanes_.begin(), lanes_.end(), std::uint64_t{0},
                      [](std::uint64_t sum, const auto* lane) { return sum + lane->counters().packets_received; });
  if (packets != packets_heard_) {
    packets_heard_ = packets;
    heard_at_ = now_;
  }
  const bool silent = any_lane_dead() || now_ - heard_at_ >= silence_max;
  return silent ? "the source's data plane is silent; check the network between the hosts" : "";
}

void Destination::Impl::deliver() {
  if (phase_ == Phase::kFailed) {
    tell_failure();
  }
  tell_connection_lost();
  const bool ready = phase_ == Phase::kPaging || phase_ == Phase::kReady;
  if (ready && !std::exchange(ready_told_, true)) {
    events_.on_memory_ready(all_announced_ ? all_announced_->pages_checked : all_placed_->pages_checked);
  }
  if (phase_ == Phase::kReady && equal_ && !std::exchange(complete_told_, true)) {
    events_.on_complete(stats(now_), *equal_);
  }
}

Instant Destination::Impl::deadline() const {
  if (phase_ == Phase::kIdle) {
    return kNever;
  }
  if (wake_) {
    return kAtOnce;
  }
  // From the last tick, not from the last frame: frames of anybody come between.
  const Instant pump = outbox_.empty() ? kNever : ticked_at_ + kPumpInterval;
  if (phase_ == Phase::kPaging) {
    return std::min({pump, connected_ ? requests_.deadline() : kNever, ticked_at_ + kLookInterval});
  }
  return phase_ < Phase::kReady ? std::min(pump, ticked_at_ + kLookInterval) : pump;
}

void Destination::Impl::on_message(std::span<const std::byte> bytes) {
  if (phase_ == Phase::kIdle || phase_ == Phase::kFailed || !connected_) {
    return;
  }
  const auto message = wire::decode_message(bytes);
  if (!message) {
    return protocol_error(message.error());
  }
  if (phase_ == Phase::kReady && equal_) {
    return;  // a source that came back goes on for a while
  }
  if (phase_ == Phase::kReady && !std::holds_alternative<wire::Abort>(*message) &&
      !std::holds_alternative<wire::Keepalive>(*message)) {
    return protocol_error(std::string(wire::message_name(*message)) + " after the end");
  }
  if (phase_ == Phase::kWaiting && !std::holds_alternative<wire::Hello>(*message) &&
      !std::holds_alternative<wire::Abort>(*message)) {
    return protocol_error(std::string(wire::message_name(*message)) + " before Hello");
  }
  std::visit([this](const auto& m) { on(m); }, *message);
}

template <class Unexpected>
void Destination::Impl::on(const Unexpected& message) {
  protocol_error(std::string(wire::message_name(message)) + " is nothing a source sends");
}

std::string Destination::Impl::hello_mismatch(const wire::Hello& hello) const {
  if (hello.version != wire::kTransferVersion) {
    return "version " + std::to_string(hello.version) + " there, " + std::to_string(wire::kTransferVersion) +
           " here; install the same godwit on both hosts";
  }
  if (hello.id != config_.id || hello.epoch_base != config_.epoch_base || hello.epoch_count != config_.epoch_count) {
    return "another migration, or other epochs: " + std::to_string(hello.epoch_base) + " + " +
           std::to_string(hello.epoch_count) + " there, " + std::to_string(config_.epoch_base) + " + " +
           std::to_string(config_.epoch_count) + " here";
  }
  if (config_.epoch_count < kEpochsMin || config_.epoch_base > pages::kUnknownGeneration - config_.epoch_count) {
    return "epochs " + std::to_string(config_.epoch_base) + " + " + std::to_string(config_.epoch_count) +
           " are out of range";
  }
  if (hello.keeps_stores != is_split()) {
    return std::string("the guest is ") + (hello.keeps_stores ? "split there, not here" : "not split there, but here");
  }
  if (hello.regions.size() != config_.regions.size()) {
    return std::to_string(hello.regions.size()) + " RAM regions there, " + std::to_string(config_.regions.size()) +
           " here";
  }
  for (std::size_t i = 0; i < hello.regions.size(); ++i) {
    const RegionShape& there = hello.regions[i];
    const RegionShape& here = config_.regions[i];
    if (!(there == here)) {
      return "RAM region " + std::to_string(i) + " is '" + there.name + "' of " + std::to_string(there.pages) +
             " pages there, '" + here.name + "' of " + std::to_string(here.pages) + " here";
    }
  }
  return {};
}

void Destination::Impl::on(const wire::Hello& message) {
  if (phase_ != Phase::kWaiting) {
    return protocol_error("a second Hello");
  }
  if (const std::string mismatch = hello_mismatch(message); !mismatch.empty()) {
    return fail(Failure::kPeerProtocol, "source and destination do not fit: " + mismatch);
  }
  verify_ = static_cast<Verify>(message.verify);
  mode_ = message.mode;
  if (hashes()) {
    hashes_ = std::make_shared<pages::PageHashes>(page_count_);
  }
  phase_ = Phase::kTables;
  outbox_.push(
      wire::HelloReply{.has_retained = has_retained_,
                       .can_page = paging_ != nullptr,
                       .budget_pages = is_split() ? std::min(stores_->budget_there_pages(), wire::kPagesMax) : 0});
  wake_ = true;
  if (has_retained_) {
    send_retained();
  }
}

void Destination::Impl::send_retained() {
  auto messages = std::make_shared<std::vector<std::vector<std::byte>>>();
  executor_.submit(
      [self = shared_from_this(), messages] {
        std::vector<std::byte> piece;
        for (pages::PageNumber at = 0; at < self->table_.size();) {
          at = pages::encode_table_piece(self->table_, at, {}, piece);
          messages->push_back(
              wire::encode_message(wire::TablePiece{.last = at == self->table_.size(), .bytes = piece}));
        }
      },
      [weak = weak_from_this(), messages] {
        const auto self = weak.lock();
        if (!self || self->phase_ == Phase::kFailed) {
          return;
        }
        self->push_tables(*messages);
        self->wake_ = true;
      });
}

void Destination::Impl::on(const wire::TablePiece& message) {
  table_piece_bytes_ += message.bytes.size();
  if (phase_ != Phase::kTables || table_ended_ || table_piece_bytes_ > table_bytes_max(page_count_)) {
    return protocol_error("a table twice, or longer than any can be");
  }
  totals_.table_bytes += message.bytes.size();
  table_pieces_.emplace_back(message.bytes.begin(), message.bytes.end());
  if (message.last) {
    table_ended_ = true;
    decode_source_table();
  }
}

void Destination::Impl::decode_source_table() {
  auto error = std::make_shared<std::string>();
  executor_.submit(
      [self = shared_from_this(), pieces = std::move(table_pieces_), error] {
        self->source_table_ = pages::GenerationTable(self->page_count_, pages::kUnknownGeneration);
        pages::PageNumber at = 0;
        for (const auto& piece : pieces) {
          const auto next = pages::decode_table_piece(piece, at, self->source_table_);
          if (!next) {
            *error = "its table, from page " + std::to_string(at) + ": " + std::string(pages::to_string(next.error()));
            return;
          }
          at = *next;
        }
        if (at != self->page_count_) {
          *error = "its table ends at page " + std::to_string(at) + " of " + std::to_string(self->page_count_);
        }
      },
      [weak = weak_from_this(), error] {
        const auto self = weak.lock();
        if (!self || self->phase_ == Phase::kFailed) {
          return;
        }
        if (!error->empty()) {
          return self->protocol_error(*error);
        }
        self->table_decoded_ = true;
        self->wake_ = true;
      });
}

/// A job that only the guest's memory can fail; `done` is true, and looked at, once it has succeeded.
void Destination::Impl::submit_for(bool Impl::*done, std::function<std::expected<void, GuestError>(Impl&)> work) {
  auto result = std::make_shared<std::expected<void, GuestError>>();
  executor_.submit([self = shared_from_this(), result, work = std::move(work)] { *result = work(*self); },
                   [weak = weak_from_this(), result, done] {
                     const auto self = weak.lock();
                     if (!self || self->phase_ == Phase::kFailed) {
                       return;
                     }
                     if (!*result) {
                       return self->fail(Failure::kGuestMemory, result->error().text);
                     }
                     (*self).*done = self->wake_ = true;
                   });
}

void Destination::Impl::on(const wire::RoundBegin& message) {
  const bool listed = stored_ended_ || !is_split();
  const bool expected = phase_ == Phase::kTables
                            ? table_ended_ && (listed || apart_come_) && round_ == 0
                            : phase_ == Phase::kRounds && acknowledged_ && coming_.round == 0 && listed;
  if (!expected || message.round != round_ + 1 || message.round >= config_.epoch_count) {
    return protocol_error("begins round " + std::to_string(message.round) + " after round " + std::to_string(round_));
  }
  place();
  pump();
  if (phase_ == Phase::kFailed) {
    return;
  }
  if (placed_pages_ != message.pages_before || partial_pages() != 0) {
    return protocol_error("says that round " + std::to_string(round_) + " had " + std::to_string(message.pages_before) +
                          " pages; placed were " + std::to_string(placed_pages_) + ", and " +
                          std::to_string(partial_pages()) + " in part");
  }
  if (round_ == 1 && !first_round_complete_ && !completing_) {
    complete_first_round();
  }
  start_round(message.round);
  round_over_ = true;
  all_placed_.reset();
  phase_ = Phase::kRounds;
  wake_ = true;
}

void Destination::Impl::acknowledge_if_due() {
  const bool stores = stored_taken_ || (round_ == 1 && apart_taken_) || !is_split();
  const bool tables = stores && (round_ == 1 ? table_decoded_ : first_round_complete_);
  if (phase_ != Phase::kRounds || acknowledged_ || !tables || unhashed_pages_ + rest_left_ > kUnhashedPagesMax) {
    return;
  }
  acknowledged_ = true;
  gate_.open(round_);
  outbox_.push(wire::RoundAck{.round = round_});
}

void Destination::Impl::on(const wire::DeviceState& message) {
  if (device_state_ended_) {
    return protocol_error("device state after its end");
  }
  totals_.device_state_bytes += message.bytes.size();
  events_.on_device_state(message.bytes, false);
}

void Destination::Impl::on(const wire::DeviceStateEnd&) {
  if (device_state_ended_) {
    return protocol_error("device state ends twice");
  }
  device_state_ended_ = true;
  events_.on_device_state({}, true);
}

void Destination::Impl::on(const wire::AllPlaced& message) {
  if (phase_ != Phase::kRounds || message.round != round_ || all_placed_ || coming_.round != 0 ||
      !device_state_ended_ || is_split()) {
    return protocol_error("AllPlaced in round " + std::to_string(message.round) + " while round " +
                          std::to_string(round_) +
                          " is open, the device state is not complete, or what stores have is missing");
  }
  all_placed_ = message;
  wake_ = true;
}

void Destination::Impl::on(const wire::Abort& message) {
  fail(Failure::kPeerFailed, "the source gave up: " + message.text);
}
void Destination::Impl::on(const wire::Keepalive&) {}

void Destination::Impl::hash_if_due() {
  const bool waiting = unhashed_pages_ >= kHashPagesMin || (round_over_ && unhashed_pages_ != 0) || rest_left_ != 0;
  if (phase_ != Phase::kRounds || hashing_ || !waiting || (all_placed_ && acknowledged_) || all_announced_) {
    return;
  }
  hashing_ = true;
  round_over_ = false;
  executor_.submit(
      [self = shared_from_this(), runs = take_unhashed()] { hash_runs(self->memory_, runs, *self->hashes_); },
      [weak = weak_from_this()] {
        if (const auto self = weak.lock()) {
          self->hashing_ = false;
          self->wake_ = true;
        }
      });
}

void Destination::Impl::verify_if_due() {
  if (phase_ != Phase::kRounds || !all_placed_ || verifying_ || !acknowledged_) {
    return;
  }
  if (placed_pages_ > all_placed_->pages) {
    return protocol_error("counted fewer pages in its last round than it sent");
  }
  if (placed_pages_ < all_placed_->pages || partial_pages() != 0) {
    return;
  }
  if (!first_round_complete_) {
    if (!completing_) {
      complete_first_round();
    }
    if (!first_round_complete_) {
      return;
    }
  }
  if (!hashes()) {
    return verified(true, {});
  }
  struct Result {
    bool equal = false;
    std::vector<pages::PageDigest> chunks;
  };
  std::vector<PageRun> runs = take_all_unhashed();
  verifying_ = true;
  auto result = std::make_shared<Result>();
  executor_.submit(
      [self = shared_from_this(), runs = std::move(runs), expected = *all_placed_, result] {
        hash_runs(self->memory_, runs, *self->hashes_);
        result->equal =
            self->hashes_->digest() == expected.digest && self->hashes_->known_count() == expected.pages_checked;
        if (!result->equal) {
          result->chunks = self->hashes_->chunk_digests();
        }
      },
      [weak = weak_from_this(), result] {
        if (const auto self = weak.lock()) {
          self->verifying_ = false;
          self->verified(result->equal, result->chunks);
        }
      });
}

void Destination::Impl::verified(bool equal, const std::vector<pages::PageDigest>& chunks) {
  if (phase_ != Phase::kRounds) {
    return;
  }
  wake_ = true;
  if (equal && !check_memory()) {
    return;  // what was placed and hashed before may be there no more
  }
  doubtful_ = !equal;
  if (equal) {
    phase_ = Phase::kReady;
    gate_.close();
    finished_at_ = now_;
    outbox_.push(wire::Verified{});
    return;
  }
  all_placed_.reset();
  send_chunk_digests(chunks);
}

void Destination::Impl::send_chunk_digests(const std::vector<pages::PageDigest>& chunks) {
  for (std::size_t at = 0; at < chunks.size();) {
    const std::size_t count = std::min(chunks.size() - at, wire::kChunkDigestsMax);
    const auto from = chunks.begin() + static_cast<std::ptrdiff_t>(at);
    outbox_.push(wire::ChunkDigests{.last = at + count == chunks.size(),
                                    .first_chunk = at,
                                    .digests = {from, from + static_cast<std::ptrdiff_t>(count)}});
    at += count;
  }
}

Stats Destination::Impl::stats(Instant now) const {
  Stats s = totals_;
  s.round = round_;
  s.pages_left = wanted_count_;
  add_transport(s);
  s.payload_bytes = s.pages_sent * pages::kPageSize;
  s.elapsed_us = phase_ == Phase::kIdle
                     ? 0
                     : static_cast<std::uint64_t>(((phase_ >= Phase::kReady ? finished_at_ : now) - started_).us());
  return s;
}

// ---- Destination ----

Destination::Destination(const MigrationConfig& config, DestinationGuest guest, Executor& executor,
                         MigrationEvents& events)
    : impl_(std::make_shared<Impl>(config, std::move(guest), executor, events)) {}
Destination::~Destination() = default;
std::unique_ptr<DestinationShare> Destination::make_share() { return impl_->make_share(); }
bool Destination::pump() { return impl_->pump(); }
void Destination::start(Instant now, std::span<transport::Lane* const> lanes) { impl_->start(now, lanes); }
void Destination::cancel(Instant now, const std::string& reason) { impl_->cancel(now, reason); }
bool Destination::is_paging() const { return impl_->is_paging(); }
void Destination::detach(Instant now) { impl_->detach(now); }
void Destination::resume(Instant now, std::span<transport::Lane* const> lanes) { impl_->resume(now, lanes); }
void Destination::tick(Instant now) { impl_->tick(now); }
Instant Destination::deadline() const { return impl_->deadline(); }
void Destination::flush(Instant now) { impl_->flush(now); }
Stats Destination::stats(Instant now) const { return impl_->stats(now); }
const pages::GenerationTable& Destination::table() const { return impl_->table(); }
std::uint32_t Destination::epoch_next() const { return impl_->epoch_next(); }
bool Destination::next_work(std::uint16_t, transport::Work&) { return false; }
void Destination::read_page(pages::PageNumber, std::uint32_t, std::span<std::byte>) {
  GW_ASSERT(!"a destination hands out no pages");
}
void Destination::on_acknowledged(const transport::Work&) {}
void Destination::on_page(std::uint16_t lane, std::uint32_t round, pages::PageNumber page, std::uint32_t offset,
                          std::span<const std::byte> bytes) {
  impl_->on_page(lane, round, page, offset, bytes);
}
void Destination::on_zero_run(std::uint16_t lane, std::uint32_t round, pages::PageNumber first, std::uint64_t count) {
  impl_->on_zero_run(lane, round, first, count);
}
void Destination::on_message(std::span<const std::byte> message) { impl_->on_message(message); }

}  // namespace godwit::transfer
