// The rounds of a source: scans and the other jobs, what is sent when, convergence, and the end.

#include <algorithm>

#include "dataplane/transfer/source_impl.h"

namespace godwit::transfer {
namespace {
constexpr std::uint32_t kEpochsForSwitchover =
    8;  // kept back: two scans after STOP, and mending what verification finds
constexpr Duration kScanIntervalMin =
    milliseconds(20);                               // once the rest fits: fresh enough, and an idle link stays idle
constexpr std::int64_t kScanShareInverse = 4;       // scanning takes at most a quarter of the time then
constexpr std::uint64_t kUnhashedPagesMax = 16384;  // full verification: what may be left for the downtime
constexpr std::uint64_t kFeedWorksMin = 8;          // of a lane on another lcore
static_assert(kEpochsMin > kEpochsForSwitchover);
}  // namespace

void Source::Impl::compare() {
  phase_ = Phase::kComparing;
  auto job = std::make_shared<CompareJob>();
  job->epoch_now = epoch_now_;
  job->link_bps = policy_.bandwidth_limit_bps;
  job->has_retained = has_retained_;
  job->retained_pieces = std::move(retained_pieces_);
  job->accesses = accesses_;
  job->stores = stores_;
  listed_ = stores_ == nullptr || stores_->at_rest();
  job->at_rest = listed_;
  job->stored_there_max = policy_.verify == Verify::kFull ? 0 : stored_there_max_;
  scan_before_ = scan_submitted_ = now_;
  submit(std::move(job), &Impl::compared);
}

void Source::Impl::compared(CompareJob& job) {
  if (phase_ == Phase::kFailed) {
    return;
  }
  if (job.guest_error) {
    return fail(Failure::kGuestMemory, *job.guest_error);
  }
  if (job.peer_error) {
    return protocol_error(*job.peer_error);
  }
  push_tables(job.messages);
  written_before_ = std::move(job.often);
  phase_ = Phase::kMoving;
  scans_top_ = 1;
  const std::uint64_t count = job.to_send.count();
  stored_ = std::move(job.stored);
  totals_.pages_stored = stored_.told.size() != 0 ? stored_.told.count() : 0;
  totals_.pages_reused = page_count_ - count - totals_.pages_stored;
  if (policy_.verify == Verify::kFull) {
    rest_.set_all();
    rest_.and_not(job.to_send);
    if (stores_ != nullptr) {
      rest_.and_not(stored_.away);
    }
    rest_left_ = rest_.count();
  }
  found_ =
      Found{.round = 1, .pages = std::move(job.to_send), .zero = {}, .count = count, .likely = {}, .sorted = false};
  over_ = true;  // of "round 0" nothing was sent
}

// Each step does what is due and leaves the state such that doing it again does nothing.
void Source::Impl::advance() {
  if (phase_ != Phase::kMoving) {
    return;
  }
  check_time_limit();
  begin_postcopy_if_due();
  finish_round();
  announce_if_due();
  come_to_rest_if_due();
  begin_round();
  load_round();
  scan_if_due();
  sort_if_due();
  hash_if_due();
  announce_if_due();
  announce_ahead_if_due();
  announce_missing_if_due();
}

bool Source::Impl::handed_out() const { return loaded_ && sorted_ && !sorting_ && pages_.left() == 0; }

void Source::Impl::finish_round() {
  if (!handed_out() || outstanding_ != 0 || at_once()) {
    return;
  }
  loaded_ = false;
  over_ = true;
  convergence_.round_moved(handed_content_, now_ - round_started_);
  scan_due_ = now_;
  if (fits_ || ready_) {
    scan_due_ =
        std::max(now_, scan_submitted_ + std::max(kScanIntervalMin, convergence_.scan_time() * kScanShareInverse));
  }
}

void Source::Impl::begin_round() {
  if (round_ == 1 && !listed_) {
    return;  // what was apart is told of first
  }
  // After the last scan there is no next round, unless verification asks for one.
  const bool all_found = end_scanned_ && !found_ && !scanning_ && !carried_over_;
  const bool no_more = holds_back() && round_ != 0;
  if (!over_ || announced_ || all_found || no_more || phase_ != Phase::kMoving) {
    return;
  }
  over_ = opened_ = false;
  ++round_;
  outbox_.push(wire::RoundBegin{.round = round_, .pages_before = handed_pages_});
  handed_pages_ = handed_content_ = 0;
}

void Source::Impl::load_round() {
  // Scans begin where round 1 is loaded.
  const bool held_back = holds_back() && round_ != 1;
  if (!found_ || found_->round != round_ || !opened_ || loaded_ || over_ || scanning_ || held_back ||
      phase_ != Phase::kMoving) {
    return;
  }
  put_off_likely();
  loaded_ = true;
  round_started_ = now_;
  pages_ = RoundPages(page_count_);
  sort_from_ = 0;
  sorted_ = found_->sorted;
  if (sorted_) {
    pages::Bitmap content = std::move(found_->pages);
    content.and_not(found_->zero);
    pages_.add(content, found_->zero);
  } else {
    unsorted_ = std::move(found_->pages);
    totals_.pages_left = found_->count;
  }
  found_.reset();
  finish_round();  // at once if there was nothing
  wake_ = wake_ || over_;
}

void Source::Impl::put_off_likely() {
  const bool goes_on = !stopped_ && !ready_ && !postcopy_;
  if (!goes_on || found_->likely_count == 0) {
    return;
  }
  GW_ASSERT(!carried_over_);  // the scan that found these took it
  found_->pages.and_not(found_->likely);
  found_->zero.and_not(found_->likely);
  found_->count -= found_->likely_count;
  carried_over_ = std::move(found_->likely);
}

void Source::Impl::come_to_rest_if_due() {
  const bool read = round_ == 1 && over_ && rest_left_ == 0 && !rest_hashing_;
  if (listed_ || resting_ || !read) {
    return;
  }
  resting_ = true;
  stores_->come_to_rest();
}

bool Source::Impl::must_rest() const { return !listed_ && !(resting_ && stores_->at_rest()); }

void Source::Impl::scan_if_due() {
  if (scanning_ || phase_ != Phase::kMoving || round_ == 0 || must_rest()) {
    return;
  }
  // What is announced waits for the last scan anyway; what is sent is sent sooner.
  const bool stop_due = !postcopy_ && !stop_covered_;
  const bool due = !listed_   ? true
                   : stopped_ ? stop_due || (ended_ && !end_covered_) || carried_over_.has_value()
                              : !loaded_ && !over_ && !found_ && now_ >= scan_due_ &&
                                    round_ <= config_.epoch_count - kEpochsForSwitchover && reused_hashed();
  const std::uint32_t round = found_ ? found_->round : loaded_ || over_ ? round_ + 1 : round_;
  // Round 1 has the generations of the table that is already on its way: nothing may join it.
  if (!due || round == 1) {
    return;
  }
  if (round >= config_.epoch_count) {
    return fail(Failure::kEpochsExhausted,
                "the " + std::to_string(config_.epoch_count) + " epochs of this attempt are used up");
  }
  auto job = std::make_shared<ScanJob>();
  job->round = round;
  job->epoch = config_.epoch_base + round;
  job->also = std::move(carried_over_);
  carried_over_.reset();
  job->before = std::move(written_before_);
  job->stores = stores_;
  job->stored = std::move(stored_);
  job->lists = !listed_;
  scans_top_ = std::max(scans_top_, round);
  scanning_ = true;
  stop_covered_ = stopped_;
  end_covered_ = scan_covers_end_ = ended_;
  scan_before_ = scan_submitted_;
  scan_submitted_ = now_;
  submit(std::move(job), &Impl::scanned);
}

void Source::Impl::scanned(ScanJob& job) {
  scanning_ = false;
  if (phase_ == Phase::kFailed) {
    return;
  }
  if (job.guest_error) {
    return fail(Failure::kGuestMemory, *job.guest_error);
  }
  end_scanned_ = end_scanned_ || scan_covers_end_;
  written_before_ = std::move(job.before);
  stored_ = std::move(job.stored);
  if (job.lists) {
    listed(job);
  }
  convergence_.scan_found(job.found_count, scan_submitted_ - scan_before_, now_ - scan_submitted_);
  if (loaded_ && sorted_ && job.written_count != 0) {
    pages_.drop(job.written);  // the newer round carries them
  }
  if (!stopped_) {
    judge(job);
  }
  if (found_) {
    found_->zero.and_not(job.written);
    found_->zero |= job.zero;
    found_->pages |= job.written;
    found_->count = found_->pages.count();
    found_->sorted = found_->sorted && job.sorted;
  } else {
    found_ = Found{.round = job.round,
                   .pages = std::move(job.written),
                   .zero = std::move(job.zero),
                   .count = job.written_count,
                   .likely = std::move(job.likely),
                   .likely_count = job.likely_count,
                   .sorted = job.sorted};
  }
}

void Source::Impl::listed(ScanJob& job) {
  listed_ = true;
  push_tables(job.messages);
  totals_.pages_stored = stored_.told.count();
  if (hashes()) {
    hashes_.forget(stored_.told);  // some were sent before they left
  }
}

// Full verification reads the reusable pages at both ends before the guest is asked to stop. The destination says so by
// taking the round.
bool Source::Impl::reused_hashed() const {
  return policy_.verify != Verify::kFull || (opened_ && rest_left_ <= kUnhashedPagesMax);
}

std::uint32_t Source::Impl::rounds_running_max() const {
  return std::min(std::max(policy_.rounds_max, 1U), config_.epoch_count - kEpochsForSwitchover);
}

void Source::Impl::judge(const ScanJob& job) {
  const std::uint64_t content = job.written_count - job.zero_count;
  const Duration estimate = convergence_.time_for(content, job.zero_count, rtt());
  fits_ = estimate <= policy_.downtime_limit;
  if (ready_) {
    return;
  }
  if (fits_) {
    // What stores have stays missing at the destination, so the end is post-copy's, however little is left.
    stores_ != nullptr ? begin_postcopy(estimate) : ready(estimate);
  } else if (policy_.mode == Mode::kHybrid && policy_.hybrid_rounds != 0 && job.round > policy_.hybrid_rounds) {
    begin_postcopy(convergence_.time_for(0, 0, rtt()));
  } else if (job.round >= rounds_running_max()) {
    no_convergence("after " + std::to_string(job.round) + " rounds", estimate, content);
  }
}

void Source::Impl::check_time_limit() {
  if (listed_ && policy_.time_limit.ns > 0 && !ready_ && !stopped_ && !at_once() &&
      now_ - started_ >= policy_.time_limit) {
    const std::uint64_t left = pages_.content_left() + unsorted_.count() + (found_ ? found_->count : 0);
    no_convergence("after " + std::to_string(policy_.time_limit.us() / 1000) + " ms",
                   convergence_.time_for(left, 0, rtt()), left);
  }
}

void Source::Impl::ready(Duration estimate) {
  ready_ = true;
  ready_estimate_ = estimate;
  wake_ = true;
}

void Source::Impl::no_convergence(const std::string& why, Duration estimate, std::uint64_t content_pages) {
  if (may_pull()) {
    return begin_postcopy(convergence_.time_for(0, 0, rtt()));
  }
  if (policy_.on_no_convergence == OnNoConvergence::kStopAnyway) {
    return ready(estimate);
  }
  std::string text =
      "no convergence " + why + ": " + convergence_.explain(content_pages, estimate, policy_.downtime_limit);
  text += policy_.on_no_convergence == OnNoConvergence::kPostcopy
              ? "; the destination cannot catch the faults that post-copy needs"
              : "; raise downtime_limit or bandwidth_limit, or choose stop-anyway";
  fail(Failure::kNoConvergence, std::move(text));
}

void Source::Impl::sort_if_due() {
  if (!loaded_ || sorted_ || sorting_ || (holds_back() && !at_once()) || phase_ != Phase::kMoving) {
    return;
  }
  auto job = std::make_shared<SortJob>();
  job->among = pages::Bitmap(page_count_);
  const std::uint64_t pages_max = std::max(kSortPagesMax, page_count_ / kSortJobsMax);
  std::uint64_t taken = 0;
  while (taken < pages_max) {
    const pages::PageNumber first = unsorted_.next_set(sort_from_);
    if (first == page_count_) {
      sort_from_ = page_count_;
      break;
    }
    sort_from_ = std::min(unsorted_.next_clear(first), first + (pages_max - taken));
    job->among.set_range(first, sort_from_ - first);
    taken += sort_from_ - first;
  }
  if (taken == 0) {
    sorted_ = true;
    wake_ = true;
    return;
  }
  totals_.pages_left -= std::min(totals_.pages_left, taken);
  sorting_ = true;
  submit(std::move(job), &Impl::sorted);
}

void Source::Impl::sorted(SortJob& job) {
  sorting_ = false;
  if (phase_ == Phase::kFailed) {
    return;
  }
  if (job.guest_error) {
    return fail(Failure::kGuestMemory, *job.guest_error);
  }
  unsorted_.and_not(job.among);
  job.among.and_not(job.zero);
  if (round_ == 1 && !has_retained_ && !at_once()) {
    // The destination's memory is zero as it is; its table takes these pages over when the round is over.
    const std::uint64_t zero_count = job.zero.count();
    totals_.pages_zero += zero_count;
    if (policy_.verify == Verify::kFull) {
      rest_ |= job.zero;
      rest_left_ += zero_count;
    }
    job.zero.clear_all();
  }
  pages_.add(job.among, job.zero);
}

// ---- handing out ----

bool Source::Impl::next_work(std::uint16_t lane, transport::Work& out) {
  if (phase_ == Phase::kServing) {
    return next_pulled(lane, out);
  }
  if (lane == transport::kPriorityLane || !loaded_ || holds_back() || phase_ != Phase::kMoving) {
    return false;
  }
  // While the guest stands still nothing is gained by holding back.
  if (!stopped_ && !bucket_.open()) {
    return false;
  }
  if (!pages_.next(lane, out)) {
    return false;
  }
  out.round = round_;
  ++outstanding_;
  handed_pages_ += out.count;
  if (out.zero) {
    totals_.pages_zero += out.count;
    bucket_.promise(sizeof(transport::Work));
    if (hashes()) {
      hashes_.set_zero(out.page, out.count);
    }
  } else {
    ++handed_content_;
    ++totals_.pages_sent;
    bucket_.promise(pages::kPageSize);
    if (hashes()) {
      unread_.set(out.page);
      ++unread_count_;
    }
  }
  if (stopped_) {
    totals_.pages_last_round += out.count;
  }
  if (policy_.verify == Verify::kFull) {
    ever_sent_.set_range(out.page, out.count);
  }
  if (pages_.left() == 0) {
    wake_ = true;
  }
  return true;
}

bool Source::Impl::wants_hash(pages::PageNumber page, std::uint32_t offset) const {
  return memory_.compares_content() || (hashes() && offset == 0 && unread_.test(page));
}

void Source::Impl::note_sent(pages::PageNumber page, pages::PageHash hash) {
  memory_.note_sent(page, hash);
  note_read(page, hash);
}

// Of a page's last round every read gives the same bytes, or a later scan would have found it written. So one hash a
// round is enough.
void Source::Impl::note_read(pages::PageNumber page, pages::PageHash hash) {
  if (!hashes() || !unread_.test(page)) {
    return;
  }
  hashes_.set(page, hash);
  unread_.clear(page);
  if (--unread_count_ == 0 && pages_.left() == 0) {
    wake_ = true;
  }
}

void Source::Impl::on_acknowledged(const transport::Work& work) {
  if (work.round == kPullRound) {
    pull_.on_acknowledged(work);
    wake_ = wake_ || (pull_.all_sent() && !all_sent_told_);
    return;
  }
  if (phase_ != Phase::kMoving) {
    return;
  }
  GW_ASSERT(work.round == round_ && outstanding_ != 0);
  if (--outstanding_ == 0) {
    wake_ = true;
  }
}

// ---- shares ----

std::unique_ptr<SourceShare> Source::Impl::make_share(const std::vector<std::uint16_t>& lanes) {
  GW_ASSERT(lanes_.empty());
  auto share = std::make_unique<SourceShare>(memory_, lanes, hashes());
  shares_.push_back(share.get());
  return share;
}

bool Source::Impl::pump() {
  bool found = false;
  SourceShare::Report report;
  for (SourceShare* share : shares_) {
    while (share->fetch(report)) {
      found = true;
      if (report.acknowledged) {
        on_acknowledged(report.work);
      } else if (phase_ == Phase::kMoving) {
        note_read(report.work.page, report.hash);
      }
    }
    if (const TransferError* error = share->error(); error != nullptr && phase_ != Phase::kFailed && connected_) {
      found = true;
      phase_ == Phase::kServing ? lose_connection(error->text) : fail(error->failure, error->text);
    }
    found |= feed(*share);
  }
  return found;
}

bool Source::Impl::feed(SourceShare& share) {
  // Near the end of a round each lane gets its part, so that none waits for another.
  const std::uint64_t part = pages_.left() / lanes_.size();
  const std::uint64_t works_max = std::clamp<std::uint64_t>(part, kFeedWorksMin, SourceShare::kWorksMax);
  bool given = false;
  for (const auto& feed : share.feeds()) {
    transport::Work work;
    while (feed->works.size() < works_max && next_work(feed->lane, work)) {
      const bool pushed = feed->works.push(std::move(work));
      GW_ASSERT(pushed);
      given = true;
    }
  }
  return given;
}

// ---- the end ----

bool Source::Impl::rest_hashed() const {
  return policy_.verify != Verify::kFull ||
         (rest_left_ == 0 && !rest_hashing_ && (has_retained_ || round_ > 1 || sorted_));
}

void Source::Impl::hash_if_due() {
  if (rest_left_ == 0 || rest_hashing_ || scanning_ || phase_ != Phase::kMoving) {
    return;
  }
  auto job = std::make_shared<HashJob>();
  pages::PageNumber page = rest_.next_set(rest_from_);
  for (; page < page_count_ && job->pages.size() < kHashPagesMax; page = rest_.next_set(page + 1)) {
    job->pages.push_back(page);
    rest_from_ = page + 1;
  }
  GW_ASSERT(!job->pages.empty());
  rest_hashing_ = true;
  submit(std::move(job), &Impl::hashed);
}

void Source::Impl::hashed(HashJob& job) {
  rest_hashing_ = false;
  if (phase_ == Phase::kFailed) {
    return;
  }
  rest_left_ -= job.pages.size();
  for (std::size_t i = 0; i < job.pages.size(); ++i) {
    if (!ever_sent_.test(job.pages[i])) {  // else what was sent counts
      hashes_.set(job.pages[i], job.hashes[i]);
    }
  }
}

void Source::Impl::announce_if_due() {
  if (!end_scanned_ || scanning_ || announced_ || carried_over_ || postcopy_ || phase_ != Phase::kMoving) {
    return;
  }
  if (found_) {
    if (found_->count != 0) {
      return;
    }
    found_.reset();
    over_ = !loaded_;  // what its round was begun for does not exist
  }
  if ((loaded_ && !handed_out()) || unread_count_ != 0 || !rest_hashed()) {
    return;
  }
  announced_ = true;
  wire::AllPlaced message{.round = round_, .pages = handed_pages_};
  if (hashes()) {
    message.pages_checked = hashes_.known_count();
    message.digest = hashes_.digest();
  }
  outbox_.push(message);
}

}  // namespace godwit::transfer
