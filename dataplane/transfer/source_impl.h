#pragma once
// Inside of Source: its state and steps. Private to source*.cpp.
//
// A round r goes: RoundBegin{r} → RoundAck; meanwhile scan r → its pages. With both there the pages are "loaded" and go
// out; when all are acknowledged the round is over and r + 1 is begun at once, so that its acknowledgement is in before
// its pages are known. What is likely to be written again goes a round later, so that it is not sent for nothing. Once
// the guest stands still scans no longer wait for the round in flight. The last scan's round
// ends with AllPlaced instead of a barrier.
//
// With post-copy decided (postcopy_) and the guest stopped nothing is handed out any more; when all in flight is
// acknowledged and the last scan is in, the sets are sent, and AllAnnounced: kServing. Post-copy at once never hands
// out, and sends the sets of round 1 ahead.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dataplane/transfer/convergence.h"
#include "dataplane/transfer/migration_end.h"
#include "dataplane/transfer/page_sets.h"
#include "dataplane/transfer/pull_pages.h"
#include "dataplane/transfer/round_pages.h"
#include "dataplane/transfer/source.h"
#include "dataplane/transfer/source_jobs.h"
#include "dataplane/transfer/token_bucket.h"

namespace godwit::transfer {

class Source::Impl final : public MigrationEnd, public std::enable_shared_from_this<Source::Impl> {
 public:
  Impl(const MigrationConfig& config, const Policy& policy, SourceGuest guest, Executor& executor,
       MigrationEvents& events);

  std::unique_ptr<SourceShare> make_share(const std::vector<std::uint16_t>& lanes);
  bool pump();
  void start(Instant now, std::span<transport::Lane* const> lanes);
  void guest_stopped(Instant now);
  bool device_state(std::span<const std::byte> data);
  void device_state_end(Instant now);
  bool switch_to_postcopy(Instant now);
  void committed(Instant now);
  [[nodiscard]] bool serves() const { return phase_ >= Phase::kServing && phase_ != Phase::kFailed; }
  void detach(Instant now);
  void resume(Instant now, std::span<transport::Lane* const> lanes);
  void tick(Instant now);
  [[nodiscard]] Instant deadline() const;
  [[nodiscard]] Stats stats(Instant now) const;
  [[nodiscard]] std::uint32_t epoch_next() const;

  bool next_work(std::uint16_t lane, transport::Work& out);
  void read_page(pages::PageNumber page, std::uint32_t offset, std::span<std::byte> out) {
    memory_.read_page(page, offset, out);
  }
  std::span<const std::byte> page_in_place(pages::PageNumber page, bool hash_in_tag) {
    return memory_.page_in_place(page, hash_in_tag);
  }
  [[nodiscard]] bool wants_hash(pages::PageNumber page, std::uint32_t offset) const;
  void note_sent(pages::PageNumber page, pages::PageHash hash);
  void on_acknowledged(const transport::Work& work);
  void on_message(std::span<const std::byte> bytes);
  void fail(Failure failure, std::string text) override;
  void protocol_error(const std::string& text);

 private:
  enum class Phase : std::uint8_t { kIdle, kHandshake, kRetainedTable, kComparing, kMoving, kServing, kDone, kFailed };
  /// The pages that a scan has found for a round.
  struct Found {
    std::uint32_t round = 0;
    pages::Bitmap pages, zero;  // zero: of those, as far as sorted
    std::uint64_t count = 0;
    pages::Bitmap likely;  // of those: to be written again soon
    std::uint64_t likely_count = 0;
    bool sorted = false;
  };

  // ---- source.cpp: the peer ----
  void on(const wire::HelloReply& message);
  void on(const wire::TablePiece& message);
  void on(const wire::RoundAck& message);
  void on(const wire::Verified& message);
  void on(const wire::ChunkDigests& message);
  void on(const wire::Abort& message);
  void on(const wire::PageSetPiece& message);
  void on(const wire::PageSetAck& message);
  void on(const wire::DemandRequest& message);
  void on(const wire::Complete& message);
  void on(const wire::Resume& message);
  template <class Unexpected>
  void on(const Unexpected& message);
  void check_peer();
  void deliver();
  void progress();
  void start_timers();

  // ---- source_rounds.cpp: jobs and rounds ----
  template <class Job>
  void submit(std::shared_ptr<Job> job, void (Impl::*done)(Job&)) {
    executor_.submit([job, guest = JobGuest{memory_, table_}] { run(*job, guest); },
                     [weak = weak_from_this(), job, done] {
                       if (const auto self = weak.lock()) {
                         (self.get()->*done)(*job);
                         self->wake_ = true;
                       }
                     });
  }
  void compare();
  void compared(CompareJob& job);
  void advance();
  void check_time_limit();
  void finish_round();
  void begin_round();
  void load_round();
  void put_off_likely();
  void come_to_rest_if_due();
  /// Pages leave for stores, or may: nothing but round 1 is possible.
  [[nodiscard]] bool must_rest() const;
  void scan_if_due();
  void scanned(ScanJob& job);
  void listed(ScanJob& job);
  void judge(const ScanJob& job);
  void no_convergence(const std::string& why, Duration estimate, std::uint64_t content_pages);
  void ready(Duration estimate);
  void sort_if_due();
  void sorted(SortJob& job);
  void hash_if_due();
  void hashed(HashJob& job);
  void announce_if_due();
  void note_read(pages::PageNumber page, pages::PageHash hash);
  bool feed(SourceShare& share);

  // ---- source_pull.cpp: post-copy ----
  [[nodiscard]] bool may_pull() const;
  [[nodiscard]] bool at_once() const { return policy_.mode == Mode::kPostcopy; }
  /// What is not placed yet is announced instead of sent.
  [[nodiscard]] bool holds_back() const { return at_once() || (postcopy_ && stopped_); }
  void begin_postcopy(Duration estimate);
  void begin_postcopy_if_due();
  void announce_ahead_if_due();
  void announce_missing_if_due();
  void announced(AnnounceJob& job);
  void serve_if_due();
  void sorted_pull(SortJob& job);
  void decoded(DecodeJob& job);
  void ask_stored(pages::PageNumber page);
  void give_fetched();
  void digest_if_due();
  void digested(HashJob& job);
  void complete(bool equal);
  bool next_pulled(std::uint16_t lane, transport::Work& out);
  [[nodiscard]] bool is_zero(pages::PageNumber page);
  [[nodiscard]] bool handed_out() const;
  [[nodiscard]] bool rest_hashed() const;
  [[nodiscard]] bool reused_hashed() const;
  [[nodiscard]] Duration rtt() const;
  [[nodiscard]] std::uint64_t payload_sent() const;
  [[nodiscard]] std::uint32_t rounds_running_max() const;
  [[nodiscard]] bool hashes() const { return policy_.verify != Verify::kOff; }
  [[nodiscard]] bool is_stored(pages::PageNumber page) const {
    return stored_.away.size() != 0 && stored_.away.test(page);
  }

  const Policy policy_;
  pages::GenerationTable& table_;
  const std::uint32_t epoch_now_;
  const pages::AccessHistory* const accesses_;
  KeptStores* stores_;  // null from the destination's commit on
  std::vector<SourceShare*> shares_;

  Phase phase_ = Phase::kIdle;
  TokenBucket bucket_;
  std::uint64_t bytes_charged_ = 0;
  Instant keepalive_at_{};
  bool done_told_ = false;

  // tables
  bool has_retained_ = false;
  std::vector<std::vector<std::byte>> retained_pieces_;
  std::uint64_t retained_bytes_ = 0;

  // the round that the destination takes pages of
  std::uint32_t round_ = 0;
  bool opened_ = false;  // acknowledged
  bool loaded_ = false;  // its pages are known and go out
  bool over_ = false;    // all acknowledged; the next may begin
  RoundPages pages_;
  pages::Bitmap unsorted_;
  pages::PageNumber sort_from_ = 0;
  bool sorting_ = false, sorted_ = false;
  std::uint64_t outstanding_ = 0;  // works handed out and not acknowledged
  std::uint64_t handed_pages_ = 0;
  std::uint64_t handed_content_ = 0;
  Instant round_started_{};

  std::uint64_t stored_there_max_ = 0;       // of those that the destination has too, as many stay there
  StoredSets stored_;                        // while a scan is under way its job has them
  bool listed_ = true;                       // what stays with stores is told; not so: what is apart
  bool resting_ = false;                     // the stores are to come to rest, or have
  std::vector<pages::PageNumber> fetching_;  // of stored_, asked for

  // scans
  std::optional<Found> found_;                 // for round_, or the one after it
  pages::Bitmap written_before_;               // found by the scan before the next one; at first what history says
  std::optional<pages::Bitmap> carried_over_;  // joins what the next scan finds: put off, or different over there
  bool scanning_ = false;
  std::uint32_t scans_top_ = 0;  // highest round a scan was made for
  Instant scan_due_{}, scan_submitted_{}, scan_before_{};
  bool stopped_ = false, ended_ = false;
  bool stop_covered_ = false, end_covered_ = false;     // by a scan submitted
  bool scan_covers_end_ = false, end_scanned_ = false;  // by the scan in flight; by one whose result is in
  Convergence convergence_;
  bool fits_ = false;  // the last scan's pages fit the downtime limit
  bool ready_ = false, ready_told_ = false;
  Duration ready_estimate_{};

  // verification
  pages::PageHashes hashes_;
  pages::Bitmap unread_;  // handed out, hash not taken yet
  std::uint64_t unread_count_ = 0;
  pages::Bitmap ever_sent_, rest_;  // full: rest_ is never sent unless written
  pages::PageNumber rest_from_ = 0;
  std::uint64_t rest_left_ = 0;  // not hashed yet
  bool rest_hashing_ = false;
  bool announced_ = false;
  std::uint32_t mismatches_ = 0;
  std::vector<pages::PageDigest> peer_chunks_;

  // post-copy
  bool can_page_ = false;  // the destination
  bool postcopy_ = false, switch_asked_ = false;
  bool announcing_ = false, ahead_announced_ = false, ahead_hashed_ = false;
  pages::Bitmap missing_;   // announced, until it is to be given
  pages::Bitmap unlooked_;  // of what was announced: may be zero
  PullPages pull_;
  bool serving_ = false;       // the destination takes what is pulled
  Instant background_from_{};  // and from then on what nobody has asked for
  bool pull_sorting_ = false, all_sent_told_ = false;
  std::uint32_t connection_ = 0;  // jobs of an older one are of no use
  bool resumed_ = false;          // the destination has begun on these lanes
  PageSetPieces pieces_;
  bool still_missing_come_ = false, got_come_ = false;  // whole, on these lanes
  std::optional<wire::Complete> complete_;
  bool digesting_ = false, equal_ = false;
  std::optional<pages::Bitmap> got_;
  std::uint64_t got_pages_ = 0;
  pages::PageNumber got_from_ = 0;
  pages::PageDigest got_digest_;

  // figures
  Instant stopped_at_{}, progress_at_{};
  std::uint64_t progress_payload_ = 0;
};

}  // namespace godwit::transfer
