// Post-copy at the destination: what is punched out before the guest runs here, and how it comes while it does.

#include <algorithm>
#include <utility>

#include "dataplane/transfer/destination_impl.h"

namespace godwit::transfer {
namespace {
/// How long an answer may take beyond two round trips: the grain of timers on a shared CPU (LaneConfig).
constexpr Duration kAnswerSlack = milliseconds(2);
}  // namespace

// ---- sets ----

void Destination::Impl::on(const wire::PageSetPiece& message) {
  if (message.kind == wire::PageSet::kApart) {
    return on_apart(message);
  }
  const bool zero = message.kind == wire::PageSet::kZero;
  const bool expected = phase_ == Phase::kRounds && acknowledged_ && paging_ != nullptr &&
                        mode_ != wire::TransferMode::kPrecopy && !all_announced_ && (stored_ended_ || !is_split()) &&
                        (zero || message.kind == wire::PageSet::kMissing);
  const std::uint32_t round_max = std::min(round_ + 1, config_.epoch_count - 1);
  if (!expected || message.round < round_ || message.round > round_max) {
    return protocol_error("a set of pages of round " + std::to_string(message.round) + " in round " +
                          std::to_string(round_));
  }
  // The missing set of a later round than before, then the zero set of the same.
  const bool begins = pieces_.idle() && !zero;
  const bool in_order = begins ? coming_.missing_pieces.empty() && message.round > coming_.round
                               : message.round == coming_.round && (!pieces_.idle() || !coming_.missing_pieces.empty());
  if (!in_order) {
    return protocol_error("sets of pages out of order");
  }
  coming_.round = message.round;
  if (const std::string wrong = pieces_.add(message); !wrong.empty()) {
    return protocol_error(wrong);
  }
  totals_.table_bytes += message.bytes.size();
  if (!pieces_.complete()) {
    return;
  }
  (zero ? coming_.zero_pieces : coming_.missing_pieces) = pieces_.take();
  if (zero) {
    MissingSet set = std::move(coming_);
    coming_ = {};
    coming_.round = set.round;
    take_set(std::move(set));
  }
}

void Destination::Impl::take_set(MissingSet set) {
  struct Job {
    MissingSet set;
    pages::Bitmap not_carried;
    bool ahead = false, guarded = false;
    std::optional<GuestError> guest_error;
    std::string peer_error;
  };
  place();
  pump();
  if (phase_ == Phase::kFailed) {
    return;
  }
  gate_.close();  // what the source has announced it does not send any more
  auto job = std::make_shared<Job>();
  job->set = std::move(set);
  if (job->set.round == 1) {
    job->not_carried = not_carried();
    job->ahead = mode_ == wire::TransferMode::kPostcopy;
    completing_ = true;
  } else if (!first_round_complete_ && !completing_) {
    complete_first_round();
  }
  ++punching_;
  executor_.submit(
      [self = shared_from_this(), job] {
        if (!self->failed_.load(std::memory_order_relaxed)) {
          self->punch(job->set, job->not_carried, job->guest_error, job->peer_error);
        }
        if (job->ahead && !job->guest_error && job->peer_error.empty()) {
          self->guard(job->guarded, job->guest_error);
        }
      },
      [weak = weak_from_this(), job] {
        const auto self = weak.lock();
        if (!self || self->phase_ == Phase::kFailed) {
          return;
        }
        --self->punching_;
        self->wake_ = true;
        if (!job->peer_error.empty()) {
          return self->protocol_error(job->peer_error);
        }
        if (job->guest_error) {
          return self->fail(Failure::kGuestMemory, job->guest_error->text);
        }
        if (job->set.round == 1) {
          self->completing_ = false;
          self->first_round_complete_ = true;
          self->ahead_punched_ = job->ahead;
          self->hash_rest(std::move(job->not_carried));
          if (job->guarded) {
            self->events_.on_memory_guarded();
          }
        }
      });
}

// A job. A page of a set has no content from here on, or is zero; until it is armed the table claims nothing of it.
void Destination::Impl::punch(MissingSet& set, pages::Bitmap& not_carried, std::optional<GuestError>& guest_error,
                              std::string& peer_error) {
  auto missing = decode_page_set(set.missing_pieces, page_count_);
  auto zero = decode_page_set(set.zero_pieces, page_count_);
  if (!missing || !zero) {
    peer_error = !missing ? missing.error() : zero.error();
    return;
  }
  missing->and_not(*zero);
  if (is_split()) {
    stored_.and_not(*missing);
    stored_.and_not(*zero);
  }
  table_.set_written(*missing, pages::kUnknownGeneration);
  table_.set_written(*zero, pages::kUnknownGeneration);
  if (const auto punched = paging_->punch(*missing, *zero); !punched) {
    guest_error = punched.error();
    return;
  }
  if (set.round == 1) {
    not_carried.and_not(*missing);
    table_.set_from(*zero, source_table_);
    if (!has_retained_) {
      table_.set_from(not_carried, source_table_);  // they are zero, here and there
    }
    not_carried.and_not(*zero);
  } else {
    table_.set_written(*zero, config_.epoch_base + set.round);
  }
  if (hashes()) {
    forget_announced(*hashes_, *missing, *zero);
  }
  if (missing_.size() == 0) {
    missing_ = pages::Bitmap(page_count_);
  }
  missing_ |= *missing;
  missing_.and_not(*zero);
  sets_.push_back({.round = set.round, .missing_pieces = {}, .zero_pieces = {}, .missing = std::move(*missing)});
}

// A job.
void Destination::Impl::guard(bool& guarded, std::optional<GuestError>& guest_error) {
  if (const auto done = paging_->guard(); done) {
    guarded = *done;
  } else {
    guest_error = done.error();
  }
}

void Destination::Impl::acknowledge_set_if_due() {
  if (ahead_punched_ && !ahead_acknowledged_ && unhashed_pages_ + rest_left_ <= kUnhashedPagesMax) {
    ahead_acknowledged_ = true;
    outbox_.push(wire::PageSetAck{.round = 1});
  }
}

// ---- the moment from which the guest may run ----

void Destination::Impl::on(const wire::AllAnnounced& message) {
  const bool expected = phase_ == Phase::kRounds && acknowledged_ && paging_ != nullptr && !all_announced_ &&
                        mode_ != wire::TransferMode::kPrecopy && device_state_ended_ && pieces_.idle() &&
                        coming_.missing_pieces.empty() && (stored_ended_ || !is_split());
  if (!expected || message.round != round_ || message.last_round != std::max(round_, coming_.round)) {
    return protocol_error("AllAnnounced of rounds " + std::to_string(message.round) + " and " +
                          std::to_string(message.last_round) + " while round " + std::to_string(round_) +
                          " is open, or sets or the device state are not complete");
  }
  place();
  pump();
  if (phase_ == Phase::kFailed) {
    return;
  }
  if (placed_pages_ != message.pages || partial_pages() != 0) {
    return protocol_error("announces what is missing with pages in flight: round " + std::to_string(round_) + " had " +
                          std::to_string(message.pages) + "; placed were " + std::to_string(placed_pages_) + ", and " +
                          std::to_string(partial_pages()) + " in part");
  }
  gate_.close();
  all_announced_ = message;
  round_ = message.last_round;
  placed_pages_ = 0;
  if (!first_round_complete_ && !completing_) {
    complete_first_round();
  }
  wake_ = true;
}

void Destination::Impl::arm_if_due() {
  const bool taken = first_round_complete_ && (stored_taken_ || !is_split());
  if (phase_ != Phase::kRounds || !all_announced_ || arming_ || punching_ != 0 || !taken) {
    return;
  }
  arming_ = true;
  auto result = std::make_shared<Armed>();
  executor_.submit(
      [self = shared_from_this(), announced = *all_announced_, unhashed = take_all_unhashed(), result] {
        if (!self->failed_.load(std::memory_order_relaxed)) {
          self->arm(announced, unhashed, *result);
        }
      },
      [weak = weak_from_this(), result] {
        if (const auto self = weak.lock()) {
          self->arming_ = false;
          self->armed(*result);
        }
      });
}

// A job.
void Destination::Impl::arm(const wire::AllAnnounced& announced, const std::vector<PageRun>& unhashed, Armed& result) {
  if (missing_.size() == 0) {
    missing_ = pages::Bitmap(page_count_);
  }
  result.equal = true;
  if (hashes()) {
    hash_runs(memory_, unhashed, *hashes_);
    hashes_->forget(missing_);
    result.equal = hashes_->digest() == announced.digest && hashes_->known_count() == announced.pages_checked;
    if (!result.equal) {
      result.chunks = hashes_->chunk_digests();
      return;
    }
  }
  pages::Bitmap away = missing_;
  if (is_split()) {
    pages::Bitmap unknown = stored_;
    if (unknown.and_not(stored_listed_).any()) {
      result.peer_error =
          "it never said which stores have " + std::to_string(unknown.count()) + " of the guest's pages";
      return;
    }
    if (const auto settled = stores_->settle(missing_, stored_, version_next_); !settled) {
      result.error = settled.error();
      return;
    }
    away |= stored_;
  }
  if (const auto armed = paging_->arm(away); !armed) {
    result.error = armed.error();
    return;
  }
  if (is_split()) {
    table_.set_from(stored_, source_table_);
    table_.set_written(stored_written_ &= stored_, config_.epoch_base + 2);
  }
  for (MissingSet& set : sets_) {
    set.missing &= missing_;
    set.round == 1 ? table_.set_from(set.missing, source_table_)
                   : table_.set_written(set.missing, config_.epoch_base + set.round);
  }
  sets_.clear();
  source_table_ = {};
}

void Destination::Impl::armed(Armed& result) {
  if (phase_ != Phase::kRounds) {
    return;
  }
  wake_ = true;
  if (!result.peer_error.empty()) {
    return protocol_error(result.peer_error);
  }
  if (result.error) {
    return fail(Failure::kGuestMemory, result.error->text);
  }
  if (!check_memory()) {
    return;
  }
  doubtful_ = !result.equal;
  if (doubtful_) {
    all_announced_.reset();
    return send_chunk_digests(result.chunks);
  }
  wanted_ = std::move(missing_);
  wanted_count_ = wanted_.count();
  begin_paging();
  outbox_.push(wire::Verified{});
}

void Destination::Impl::begin_paging() {
  phase_ = Phase::kPaging;
  if (hashes()) {
    got_ = pages::Bitmap(page_count_);
    gate_.want_hashes();
  }
  gate_.open(kPullRound);
}

void Destination::Impl::forget_missing() {
  const bool armed = phase_ >= Phase::kPaging;
  executor_.submit(
      [self = shared_from_this(), missing = armed ? std::move(wanted_) : pages::Bitmap(), armed] {
        const pages::Bitmap& doubtful = armed ? missing : self->missing_;
        for (const pages::Bitmap* away : {&doubtful, &std::as_const(self->stored_)}) {
          if (away->size() != 0) {
            self->table_.set_written(*away, pages::kUnknownGeneration);
          }
        }
      },
      [] {});
}

// ---- while it runs ----

bool Destination::Impl::read_events() {
  if (phase_ != Phase::kPaging || disarmed_) {
    return false;
  }
  paging_events_.faults.clear();
  paging_events_.given_back.clear();
  if (const auto read = paging_->read_events(paging_events_); !read) {
    fail(Failure::kGuestMemory, read.error().text);
    return true;
  }
  totals_.faults += paging_events_.faults.size();
  for (const PageRun& run : paging_events_.given_back) {
    for (pages::PageNumber page = run.first; page < run.first + run.count; ++page) {
      totals_.pages_given_back += wants(page) ? 1U : 0U;
      has(page);
    }
  }
  for (const pages::PageNumber page : paging_events_.faults) {
    if (is_split() && stored_.test(page)) {
      asked_stored_.push_back(page);  // its store does not serve us yet: the source fetches it
      stored_.clear(page);
      wanted_.set(page);
      ++wanted_count_;
    }
    wake_ = (wants(page) && requests_.want(page)) || wake_;
  }
  return !paging_events_.faults.empty() || !paging_events_.given_back.empty();
}

bool Destination::Impl::has(pages::PageNumber page) {
  if (wants(page)) {
    wanted_.clear(page);
    wake_ = --wanted_count_ == 0 || wake_;
  }
  return requests_.forget(page);
}

void Destination::Impl::on_pulled(const PlacedRun& run) {
  if (phase_ != Phase::kPaging) {
    return;
  }
  (run.zero ? totals_.pages_zero : totals_.pages_sent) += run.count;
  for (pages::PageNumber page = run.first; page < run.first + run.count; ++page) {
    std::uint64_t& origin = has(page) ? totals_.pages_demand : totals_.pages_background;
    ++origin;
  }
  if (gate_.hashes()) {
    got_.set_range(run.first, run.count);
    got_count_ += run.count;
    got_digest_ += run.digest;
  }
}

Duration Destination::Impl::answer_time() const { return lanes_[0]->smoothed_rtt() * 2 + kAnswerSlack; }

void Destination::Impl::page() {
  if (connected_) {
    if (const std::string silent = silence(kSilenceMax); !silent.empty()) {
      lose_connection(silent);
    }
  }
  check_memory_if_due();
  if (phase_ != Phase::kPaging) {
    return;
  }
  if (connected_) {
    ask_for_rest();
    wire::DemandRequest request;
    while (requests_.next(now_, answer_time(), request)) {
      totals_.pages_asked_again += request.again ? request.pages.size() : 0;
      outbox_.push(request);
    }
  }
  complete_if_due();
}

/// Another source than the one that was asked may not know that it has them not.
void Destination::Impl::leave_to_stores() {
  for (const pages::PageNumber page : std::exchange(asked_stored_, {})) {
    if (wants(page)) {
      has(page);
      stored_.set(page);
    }
  }
}

// What was sent and acknowledged, and could not be placed at its time.
void Destination::Impl::ask_for_rest() {
  if (!all_sent_ || wanted_count_ == 0 || resuming_ || !requests_.empty()) {
    return;
  }
  std::size_t asked = 0;
  for (auto page = wanted_.next_set(0); page < page_count_ && asked < wire::kDemandPagesMax;
       page = wanted_.next_set(page + 1)) {
    if (paging_->missing(page)) {
      requests_.want_again(page);
      ++asked;
    } else {
      has(page);
    }
  }
}

void Destination::Impl::on(const wire::AllSent&) {
  if (phase_ != Phase::kPaging) {
    return protocol_error("AllSent before anything is missing");
  }
  place();
  pump();
  all_sent_ = wake_ = true;
}

// ---- the end ----

void Destination::Impl::complete_if_due() {
  if (wanted_count_ != 0 || resuming_ || (is_split() && !stores_->serve())) {
    return;
  }
  if (!std::exchange(disarming_, true)) {
    totals_.all_there_us = static_cast<std::uint64_t>((now_ - started_).us());
    submit_for(&Impl::disarmed_, [](Impl& self) { return self.paging_->disarm(); });
  }
  if (connected_ && !equal_ && !std::exchange(complete_sent_, true)) {
    if (got_count_ != 0) {
      send_set(std::make_shared<pages::Bitmap>(got_), wire::PageSet::kGot);
    } else {
      outbox_.push(wire::Complete{});
    }
  }
  if (equal_ && disarmed_) {
    phase_ = Phase::kReady;
    finished_at_ = now_;
    gate_.close();
  }
}

void Destination::Impl::on(const wire::Completed& message) {
  if (phase_ != Phase::kPaging || !complete_sent_ || equal_) {
    return protocol_error("Completed before it can be");
  }
  equal_ = message.equal;
  wake_ = true;
}

/// What follows the set is sent with it. Of kStillMissing only what is missing indeed: shares that are gone may have
/// placed pages without a word.
void Destination::Impl::send_set(std::shared_ptr<pages::Bitmap> set, wire::PageSet kind) {
  auto messages = std::make_shared<std::vector<std::vector<std::byte>>>();
  executor_.submit(
      [self = shared_from_this(), set, kind, messages] {
        if (kind == wire::PageSet::kStillMissing) {
          for (auto page = set->next_set(0); page < set->size(); page = set->next_set(page + 1)) {
            if (!self->paging_->missing(page)) {
              set->clear(page);
            }
          }
        }
        encode_page_set(*set, 0, kind, 0, *messages);
      },
      [weak = weak_from_this(), set, kind, messages, connection = connection_] {
        const auto self = weak.lock();
        if (!self || self->phase_ != Phase::kPaging) {
          return;
        }
        self->wake_ = true;
        if (kind == wire::PageSet::kStillMissing) {
          self->wanted_ &= *set;
          self->wanted_count_ = self->wanted_.count();
        }
        if (connection != self->connection_ || !self->connected_) {
          return;
        }
        self->resuming_ = false;
        for (auto& message : *messages) {
          self->outbox_.push_encoded(std::move(message));
        }
        if (kind == wire::PageSet::kGot) {
          self->outbox_.push(wire::Complete{.pages = self->got_count_, .digest = self->got_digest_});
        }
      });
}

// ---- other lanes ----

void Destination::Impl::detach(Instant now) {
  GW_ASSERT(phase_ >= Phase::kPaging);
  now_ = std::max(now_, now);
  place();
  pump();
  detach_lanes();
  shares_.clear();
  pull_placer_.forget_lanes();
  ++connection_;
  all_sent_ = complete_sent_ = resuming_ = false;
}

void Destination::Impl::resume(Instant now, std::span<transport::Lane* const> lanes) {
  if (phase_ == Phase::kIdle) {
    GW_ASSERT(paging_ != nullptr);
    begin(now, lanes);
    ready_told_ = true;
    wanted_ = pages::Bitmap(page_count_);
    wanted_.set_all();
    wanted_count_ = page_count_;
    begin_paging();
    if (std::string mismatch = shape_mismatch(table_.size()); !mismatch.empty()) {
      return fail(Failure::kGuestMemory, std::move(mismatch));
    }
  } else {
    attach_lanes(now, lanes);
  }
  heard_at_ = now_;
  packets_heard_ = 0;
  if (phase_ != Phase::kPaging) {
    return;
  }
  leave_to_stores();
  resuming_ = true;
  requests_.ask_all_anew();
  outbox_.push(wire::Resume{.id = config_.id});
  send_set(std::make_shared<pages::Bitmap>(wanted_), wire::PageSet::kStillMissing);
}

}  // namespace godwit::transfer
