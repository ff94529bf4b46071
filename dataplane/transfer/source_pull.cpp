// Post-copy at the source: what is announced when, what the destination is given, and the end of that.

#include <algorithm>
#include <array>
#include <utility>

#include "dataplane/transfer/source_impl.h"

namespace godwit::transfer {

// ---- before the guest runs at the destination ----

bool Source::Impl::may_pull() const {
  return can_page_ && (policy_.mode != Mode::kPrecopy || policy_.on_no_convergence == OnNoConvergence::kPostcopy);
}

bool Source::Impl::switch_to_postcopy(Instant now) {
  now_ = std::max(now_, now);
  if (phase_ == Phase::kIdle || phase_ >= Phase::kServing || announced_ ||
      (phase_ != Phase::kHandshake && !may_pull())) {
    return false;
  }
  switch_asked_ = wake_ = true;
  return true;
}

void Source::Impl::begin_postcopy(Duration estimate) {
  postcopy_ = true;
  if (!ready_) {
    ready(estimate);
  }
}

void Source::Impl::begin_postcopy_if_due() {
  const bool late =
      policy_.mode == Mode::kHybrid && policy_.hybrid_time.ns > 0 && !ready_ && now_ - started_ >= policy_.hybrid_time;
  // Not before the destination has the table that sets of round 1 rest on.
  const bool possible = may_pull() && !at_once() && !postcopy_ && !announced_ && (round_ > 1 || opened_) && listed_;
  if ((switch_asked_ || late) && possible) {
    begin_postcopy(convergence_.time_for(0, 0, rtt()));
  }
}

void Source::Impl::announce_ahead_if_due() {
  if (!at_once() || ahead_announced_ || !loaded_ || !sorted_ || phase_ != Phase::kMoving) {
    return;
  }
  ahead_announced_ = true;
  auto job = std::make_shared<AnnounceJob>();
  job->ahead = true;
  job->link_bps = policy_.bandwidth_limit_bps;
  job->missing = pages::Bitmap(page_count_);
  if (policy_.verify == Verify::kSent) {  // else what is being hashed meanwhile is entered here
    job->hashes = std::move(hashes_);
    ahead_hashed_ = true;
  }
  job->sets.push_back({.round = round_, .missing = pages_.content(), .zero = pages_.zero()});
  submit(std::move(job), &Impl::announced);
}

void Source::Impl::on(const wire::PageSetAck& message) {
  if (phase_ != Phase::kMoving || !ahead_announced_ || postcopy_ || message.round != 1) {
    return protocol_error("acknowledges sets of round " + std::to_string(message.round) + " that were not announced");
  }
  begin_postcopy(convergence_.time_for(0, 0, rtt()));
}

void Source::Impl::announce_missing_if_due() {
  const bool still = stopped_ && end_scanned_ && !scanning_ && !carried_over_ && !sorting_ && opened_ &&
                     outstanding_ == 0 && unread_count_ == 0 && rest_left_ == 0 && !rest_hashing_;
  if (!postcopy_ || !still || announcing_ || announced_ || phase_ != Phase::kMoving) {
    return;
  }
  announcing_ = true;
  auto job = std::make_shared<AnnounceJob>();
  job->link_bps = policy_.bandwidth_limit_bps;
  job->missing = missing_.size() != 0 ? std::move(missing_) : pages::Bitmap(page_count_);
  job->hashes = std::move(hashes_);
  if (loaded_) {
    AnnouncedSet rest{.round = round_,
                      .missing = pages_.content(),
                      .zero = pages_.zero(),
                      .told = ahead_announced_,
                      .hashed = ahead_hashed_};
    rest.missing |= unsorted_;
    unlooked_ |= unsorted_;
    job->sets.push_back(std::move(rest));
  }
  if (found_ && found_->count != 0) {
    if (!found_->sorted) {
      unlooked_ |= found_->pages;
    }
    job->sets.push_back({.round = found_->round, .missing = std::move(found_->pages), .zero = std::move(found_->zero)});
  }
  found_.reset();
  submit(std::move(job), &Impl::announced);
}

void Source::Impl::announced(AnnounceJob& job) {
  if (phase_ == Phase::kFailed) {
    return;
  }
  push_tables(job.messages);
  if (job.ahead) {
    if (ahead_hashed_) {
      hashes_ = std::move(job.hashes);
    }
    return;
  }
  announcing_ = false;
  announced_ = true;
  missing_ = std::move(job.missing);
  hashes_ = std::move(job.hashes);
  wire::AllAnnounced message{.round = round_, .pages = handed_pages_, .last_round = round_};
  if (!job.sets.empty()) {
    message.last_round = job.sets.back().round;
  }
  if (hashes()) {
    message.pages_checked = hashes_.known_count();
    message.digest = hashes_.digest();
  }
  outbox_.push(message);
  // As after a round that is over: what verification may want mended is the next.
  round_ = message.last_round;
  handed_pages_ = handed_content_ = 0;
  pages_ = {};
  unsorted_.clear_all();
  loaded_ = false;
  over_ = true;
  phase_ = Phase::kServing;
}

// ---- once it may run there ----

void Source::Impl::serve_if_due() {
  if (phase_ != Phase::kServing || !connected_) {
    return;
  }
  give_fetched();
  if (!pull_sorting_ && serving_ && now_ >= background_from_) {
    if (auto stretch = pull_.take_unsorted(std::max(kSortPagesMax, page_count_ / kSortJobsMax))) {
      pull_sorting_ = true;
      auto job = std::make_shared<SortJob>();
      job->among = std::move(*stretch);
      job->connection = connection_;
      submit(std::move(job), &Impl::sorted_pull);
    }
  }
  if (serving_ && pull_.all_sent() && !std::exchange(all_sent_told_, true)) {
    outbox_.push(wire::AllSent{});
  }
  digest_if_due();
}

void Source::Impl::sorted_pull(SortJob& job) {
  if (phase_ != Phase::kServing || job.connection != connection_) {
    return;
  }
  pull_sorting_ = false;
  if (job.guest_error) {
    if (check_memory()) {  // the guest may run there by now: the next connection looks again
      lose_connection("the source's memory could not be looked at: " + *job.guest_error);
    }
    return;
  }
  job.among.and_not(job.zero);
  pull_.sorted(std::move(job.among), std::move(job.zero));
}

void Source::Impl::on(const wire::DemandRequest& message) {
  if (phase_ == Phase::kDone && postcopy_) {
    return;  // crossed with the end
  }
  if (phase_ != Phase::kServing || !(serving_ || resumed_)) {
    return protocol_error("asks for pages before it can miss any");
  }
  for (const std::uint64_t page : message.pages) {
    if (page >= page_count_) {
      return protocol_error("asks for page " + std::to_string(page) + " of " + std::to_string(page_count_));
    }
    if (is_stored(page)) {
      ask_stored(page);
      continue;
    }
    totals_.pages_demand += pull_.ask(page, message.again) ? 1U : 0U;
    totals_.pages_asked_again += message.again ? 1U : 0U;
  }
}

/// Once the destination has the stores it asks them.
void Source::Impl::ask_stored(pages::PageNumber page) {
  if (stores_ != nullptr && std::ranges::find(fetching_, page) == fetching_.end()) {
    stores_->fetch(page);
    fetching_.push_back(page);
  }
}

void Source::Impl::give_fetched() {
  std::erase_if(fetching_, [this](pages::PageNumber page) {
    if (!stores_->is_here(page)) {
      return false;
    }
    stored_.away.clear(page);
    totals_.pages_demand += pull_.ask(page, false) ? 1U : 0U;
    return true;
  });
}

bool Source::Impl::is_zero(pages::PageNumber page) {
  std::array<std::byte, pages::kPageSize> bytes;
  memory_.read_page(page, 0, bytes);
  return pages::is_zero_page(bytes);
}

void Source::Impl::committed(Instant now) {
  now_ = std::max(now_, now);
  background_from_ = std::min(background_from_, now_);
  stores_ = nullptr;
  fetching_.clear();
  wake_ = true;
}

bool Source::Impl::next_pulled(std::uint16_t lane, transport::Work& out) {
  if (!connected_) {
    return false;
  }
  if (lane == transport::kPriorityLane) {
    if (!pull_.next_asked(out)) {
      return false;
    }
    out.zero = is_zero(out.page);
  } else if (!serving_ || now_ < background_from_ || !bucket_.open() || !pull_.next_background(lane, out)) {
    return false;
  } else {
    totals_.pages_background += out.count;
  }
  out.round = kPullRound;
  out.background = lane != transport::kPriorityLane;
  (out.zero ? totals_.pages_zero : totals_.pages_sent) += out.count;
  bucket_.promise(out.zero ? sizeof(transport::Work) : pages::kPageSize);
  return true;
}

// ---- the end ----

void Source::Impl::on(const wire::PageSetPiece& message) {
  const bool still_missing = message.kind == wire::PageSet::kStillMissing && resumed_ && !still_missing_come_;
  const bool got = message.kind == wire::PageSet::kGot && (serving_ || resumed_) && !got_come_;
  if (phase_ == Phase::kDone && postcopy_) {
    return;
  }
  if (phase_ != Phase::kServing || !(still_missing || got) || complete_) {
    return protocol_error("a set of pages that nobody has asked for");
  }
  if (const std::string wrong = pieces_.add(message); !wrong.empty()) {
    return protocol_error(wrong);
  }
  if (pieces_.complete()) {
    (got ? got_come_ : still_missing_come_) = true;
    auto job = std::make_shared<DecodeJob>();
    job->pieces = pieces_.take();
    job->kind = message.kind;
    job->connection = connection_;
    submit(std::move(job), &Impl::decoded);
  }
}

void Source::Impl::decoded(DecodeJob& job) {
  if (phase_ != Phase::kServing || job.connection != connection_) {
    return;
  }
  if (job.peer_error) {
    return protocol_error(*job.peer_error);
  }
  if (job.kind == wire::PageSet::kGot) {
    got_ = std::move(job.set);
    got_pages_ = job.count;
    got_from_ = 0;
    got_digest_ = {};
  } else {
    if (stored_.away.size() != 0) {
      job.set.and_not(stored_.away);
    }
    pull_.load(std::move(job.set));
    serving_ = true;
  }
}

void Source::Impl::on(const wire::Resume& message) {
  if (message.version != wire::kTransferVersion || message.id != config_.id) {
    return protocol_error("goes on with another migration, or is of version " + std::to_string(message.version));
  }
  if ((phase_ != Phase::kServing && phase_ != Phase::kDone) || connection_ == 0 || resumed_) {
    return protocol_error("goes on with what has not stopped");
  }
  resumed_ = true;
}

void Source::Impl::on(const wire::Complete& message) {
  if (phase_ == Phase::kDone && postcopy_) {
    if (outbox_.empty()) {
      outbox_.push(wire::Completed{.equal = equal_});  // it has not heard the first one
      wake_ = true;
    }
    return;
  }
  if (phase_ != Phase::kServing || !(serving_ || resumed_) || complete_) {
    return protocol_error("is complete before it can be");
  }
  complete_ = message;
  wake_ = true;
}

void Source::Impl::digest_if_due() {
  if (!complete_ || digesting_) {
    return;
  }
  if (complete_->pages == 0) {
    return complete(true);
  }
  if (!got_) {
    return;
  }
  if (got_pages_ != complete_->pages) {
    return complete(false);
  }
  auto job = std::make_shared<HashJob>();
  pages::PageNumber page = got_->next_set(got_from_);
  for (; page < page_count_ && job->pages.size() < kHashPagesMax; page = got_->next_set(page + 1)) {
    job->pages.push_back(page);
    got_from_ = page + 1;
  }
  if (job->pages.empty()) {
    if (check_memory()) {
      complete(got_digest_ == complete_->digest);
    }
    return;
  }
  digesting_ = true;
  submit(std::move(job), &Impl::digested);
}

void Source::Impl::digested(HashJob& job) {
  digesting_ = false;
  if (phase_ != Phase::kServing || !complete_) {
    return;
  }
  for (std::size_t i = 0; i < job.pages.size(); ++i) {
    got_digest_ += pages::digest_term(job.pages[i], job.hashes[i]);
  }
}

void Source::Impl::complete(bool equal) {
  equal_ = equal;
  phase_ = Phase::kDone;
  finished_at_ = now_;
  outbox_.push(wire::Completed{.equal = equal});
  wake_ = true;
}

// ---- other lanes ----

void Source::Impl::detach(Instant now) {
  GW_ASSERT(phase_ >= Phase::kServing);
  now_ = std::max(now_, now);
  totals_.payload_bytes += payload_sent();
  detach_lanes();
  shares_.clear();
  ++connection_;
  pull_.forget_lanes();
  fetching_.clear();
  pieces_.clear();
  complete_.reset();
  got_.reset();
  serving_ = resumed_ = pull_sorting_ = all_sent_told_ = still_missing_come_ = got_come_ = false;
  bytes_charged_ = 0;
}

void Source::Impl::resume(Instant now, std::span<transport::Lane* const> lanes) {
  if (phase_ == Phase::kIdle) {
    begin(now, lanes);
    bucket_.start(now_);
    phase_ = Phase::kServing;
    postcopy_ = announced_ = stopped_ = ended_ = true;
    connection_ = 1;
    if (std::string mismatch = shape_mismatch(table_.size()); !mismatch.empty()) {
      fail(Failure::kGuestMemory, std::move(mismatch));
    }
  } else {
    attach_lanes(now, lanes);
  }
  start_timers();
}

}  // namespace godwit::transfer
